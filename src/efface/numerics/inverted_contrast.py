"""The supervised contrast with the class relation inverted: away from the own class, towards all others.

One loss for contrastive unlearning (arXiv 2401.10458: `same_class`) and DeepCUT (arXiv 2503.14900: `all`). With anchors i,
context a, N(i) = {a : y_a != y_i}, P(i) = {a : y_a = y_i}, s = <z, z> / tau and C(i) = N(i) u P(i), or P(i) alone,

    L_i = -(1/|N(i)|) sum_{a in N(i)} [ s_ia - lse_{p in C(i)} s_ip ]

`all` is `supervised_contrast` of the inverted relation; the ratio over P(i), which that function cannot have, as it counts
no excluded pair as a positive, is made of the same pieces.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from efface.numerics.contrast import (
    Contrast,
    check_marks,
    check_pair,
    lse_or_nothing,
    masked_sum,
    paired_logits,
    scale_of,
)
from efface.numerics.masks import TILE, Same, counts

Denominator = Literal["all", "same_class"]
Empty = Literal["drop", "omit"]


def inverted_supcon(
    z_anchor: Tensor, y_anchor: Tensor, z_ctx: Tensor, y_ctx: Tensor, tau: float, denominator: Denominator = "all",
    empty: Empty = "drop",
) -> Contrast:  # fmt: skip
    """L_i of every anchor among the context; only the context's other classes attract.

    Args:
        z_anchor: [B, D] unit rows; y_anchor: [B] int, their classes.
        z_ctx: [M, D] unit rows; y_ctx: [M] int.
        tau: the temperature.
        denominator: the context that the log-sum-exp is over.
        empty: an anchor without context of its own class, for `same_class`: `drop` leaves it out, `omit` sets its
            denominator to 1, L_i = -(1/|N(i)|) sum s_ia. One without context of another class is left out always.

    Returns:
        losses [B], 0 and without a gradient where left out; `positives` [B] the number |N(i)|, 0 where left out.

    Raises:
        InputError: see `check_pair`; tau <= 0; classes that are not [B] and [M] integers.
    """
    scale = scale_of(tau)
    check_pair(z_anchor, z_ctx, scale)
    rows = len(z_anchor)
    other = ~Same(check_marks("labels", y_anchor, rows), check_marks("labels", y_ctx, len(z_ctx)))
    n = counts(other, rows, len(z_ctx), TILE, z_anchor.device)
    drawn = paired_logits(z_anchor, masked_sum(z_ctx, other, rows) / n.clamp(min=1)[:, None], scale)
    driven = lse_or_nothing(z_anchor, z_ctx, scale, exclude=other if denominator == "same_class" else None)
    alone = driven == -torch.inf
    if empty == "omit":
        driven, alone = driven.masked_fill(alone, 0.0), torch.zeros_like(alone)
    n = n.masked_fill(alone, 0)
    return Contrast(torch.where(n > 0, driven - drawn, torch.zeros_like(drawn)), n)


def mean_counted(found: Contrast) -> Tensor:
    """The mean over the anchors that count, [], 0 if none does."""
    return found.losses.sum() / (found.positives > 0).sum().clamp(min=1)


__all__ = ["Denominator", "Empty", "inverted_supcon", "mean_counted"]
