"""Contrast against the hardest negatives only: explicit hardness, in place of a small temperature.

Paper: Wang and Liu, arXiv 2012.09740, section 3.4. Of each anchor's negatives only those at or above s_alpha(i), the upper
quantile of its row, count:

    hard contrastive  L_i = -log exp(s_ii/tau) / ( sum_{s_ik >= s_alpha} exp(s_ik/tau) + exp(s_ii/tau) )
    hard simple       L_i = -s_ii + lambda sum_{s_ik >= s_alpha} s_ik

No official code was found. Departures: negatives come from the batch, not from a memory bank; ties with the quantile all
count; rows are computed in blocks, again in the backward pass, so that no matrix of similarities is kept.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from efface.catalog import Card
from efface.errors import InputError
from efface.learn.objective import ContrastiveConfig, Embedded, Recipe
from efface.numerics.contrast import check_marks, check_pair, paired_logits, scale_of, wide
from efface.numerics.masks import TILE, Mask, Same, Shifted, slices

CARD = Card(
    name="hard-contrastive",
    system="contrastive-loss-behaviour",
    title="Hard contrastive loss",
    summary="Counts only each anchor's nearest negatives, so that a large temperature still spreads the embeddings.",
    paper="Wang and Liu, Understanding the behaviour of contrastive loss, arXiv 2012.09740 (CVPR 2021)",
    verb="learn",
    mechanism="objectives",
    modalities=("any",),
    subjects=("encoder",),
    defaults_source="temperature 1: the paper's best hard contrastive; share 10 %: chosen for small data (paper about 6 %)",
)
Form = Literal["contrastive", "simple"]


class HardContrastiveConfig(ContrastiveConfig):
    """Form, temperature and the share of negatives that count."""

    form: Form = Field("contrastive", description="contrastive: softmax over the hard negatives; simple: their sum")
    temperature: float = Field(1.0, gt=0, description="tau of the contrastive form; paper: 1.0 with hard negatives")
    hard_share: float = Field(
        0.1, gt=0, le=1, description="share of an anchor's negatives that count, one at least; paper: 4095 of 65536"
    )
    push: float | None = Field(
        None, gt=0, description="simple form: lambda of each hard negative; default: one over their number"
    )


def hard_contrastive(
    first: Tensor, second: Tensor, temperature: float, *, hard_share: float = 0.1, form: Form = "contrastive",
    push: float | None = None, ids: Tensor | None = None, tile: int | None = None,
) -> Tensor:  # fmt: skip
    """The mean over anchors, [].

    Args:
        first, second: [B, D] unit rows; row i of both belong together.
        temperature: tau of the contrastive form.
        hard_share, form, push: see `HardContrastiveConfig`.
        ids: [B] int; keys of the anchor's id are not negatives.
        tile: anchors at a time.

    Raises:
        InputError: see `check_pair`; a temperature or share out of range; ids that are not [B] integers.
    """
    scale = scale_of(temperature)
    check_pair(first, second, scale, paired=True)
    if not 0 < hard_share <= 1:
        raise InputError(f"hard_share {hard_share}", "above 0, at most 1")
    ids = None if ids is None else check_marks("ids", ids, len(first))
    return hard_losses(
        first, second, second, scale, hard_share=hard_share, form=form, push=push, ids=ids, ids_all=ids, tile=tile
    ).mean()


def hard_losses(
    first: Tensor, second: Tensor, second_all: Tensor, scale: Tensor | float, *, start: int = 0, hard_share: float = 0.1,
    form: Form = "contrastive", push: float | None = None, ids: Tensor | None = None, ids_all: Tensor | None = None,
    tile: int | None = None,
) -> Tensor:  # fmt: skip
    """L_i of the local anchors, [b].

    Args:
        first, second: [b, D], rows start to start + b of the whole; second_all: [B, D].
        scale: [] one over tau.
        ids, ids_all: [b], [B].

    Raises:
        InputError: an anchor whose id every key carries: it has no negative.
    """
    keys = wide(second_all)
    not_negative: Mask = Shifted(start)
    if ids is not None and ids_all is not None:
        not_negative = not_negative | Same(ids, ids_all)

    def block(anchors: Tensor, positive: Tensor, keys: Tensor, excluded: Tensor) -> Tensor:
        s = anchors @ keys.T
        hard, count = hardest(s.detach(), excluded, hard_share)
        if form == "simple":
            weight = 1 / count if push is None else torch.full_like(count, push)
            return weight * s.masked_fill(~hard, 0.0).sum(1) - positive
        logits = (s * scale).masked_fill(~hard, -math.inf)
        return torch.logaddexp(logits.logsumexp(1), positive * scale) - positive * scale

    positive = paired_logits(first, second, 1.0)
    parts = []
    for rows in slices(len(first), tile or TILE):
        excluded = not_negative.tile(rows, slice(0, len(keys)), first.device)
        if bool(excluded.all(1).any()):
            row = rows.start + int(excluded.all(1).nonzero()[0])
            raise InputError(
                f"anchor {row} has no negative: every key carries its id", "one or more",
                "raise batch_size, or set unique_batches",
            )  # fmt: skip
        parts.append(
            checkpoint(
                block, wide(first[rows]), positive[rows], keys, excluded, use_reentrant=False, preserve_rng_state=False
            )
        )
    return torch.cat(parts)


def hardest(s: Tensor, excluded: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Which negatives count, [b, B] bool, and how many for each anchor, [b].

    Args:
        s: [b, B] similarities.
        excluded: [b, B] pairs that are no negatives.
        share: of each anchor's negatives, rounded up.
    """
    negatives = (~excluded).sum(1)
    wanted = (negatives * share - 1e-9).ceil().long().clamp(min=1)
    ranked = s.masked_fill(excluded, -math.inf).topk(int(wanted.max()), dim=1).values
    edge = ranked.gather(1, wanted[:, None] - 1)
    hard = (s >= edge) & ~excluded
    return hard, hard.sum(1).to(s.dtype)


def _loss(batch: Embedded, config: HardContrastiveConfig) -> tuple[Tensor, dict[str, float]]:
    check_pair(batch.first, batch.second_all, batch.scale)
    losses = hard_losses(
        batch.first, batch.second, batch.second_all, batch.scale, start=batch.start, hard_share=config.hard_share,
        form=config.form, push=config.push, ids=batch.ids if config.unique_ids else None, ids_all=batch.ids_all,
        tile=config.tile,
    )  # fmt: skip
    return losses.sum() / batch.total, {}


CONFIG = HardContrastiveConfig
RECIPE = Recipe(CARD, CONFIG, _loss, takes="views")
