"""Poly-view contrast (geometric): each view finds each other view of its item among the other items' rows of all views.

Paper: Shidani et al., Poly-view contrastive learning, arXiv 2403.05490, the geometric form. With the anchor (l, i),

    L_i = 1/(N (N - 1)) sum_{l != m} log( 1 + sum_{j != i, n} exp(<z_li, z_nj> / T) / exp(<z_li, z_mi> / T) )

so that the item's other views are neither positives nor negatives of the pair (l, m). The sum over negatives is one row of
log-sum-exp an anchor, shared by its N - 1 positives.

Departures from the code of arXiv 2507.06979: its arithmetic form subtracts the logarithm of the batch size in place of
N - 1 and is left out; masks are exact and not a large number; repeated items are masked by id.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from efface.catalog import Card
from efface.learn.objective import Recipe
from efface.learn.objectives.multi_view import MultiViewConfig, draws, mean_over_items, step_of
from efface.numerics.multi_view import energies_among, pair_logits

CARD = Card(
    name="mv-pvc",
    system="mv-infonce",
    title="Poly-view contrast (PVC, geometric)",
    summary="Each view of an item must find each of its other views among the rows of all other items.",
    paper="Shidani et al., Poly-view contrastive learning, arXiv 2403.05490 (ICLR 2024)",
    verb="learn",
    mechanism="objectives",
    modalities=("any",),
    subjects=("encoder",),
    defaults_source="as mv-infonce, whose baseline it is",
)


class MVPVCConfig(MultiViewConfig):
    """Number of views and temperature."""


def mv_pvc(
    views: Tensor | Sequence[Tensor], temperature: float, *, ids: Tensor | None = None, tile: int | None = None
) -> Tensor:
    """The mean over the items and the ordered pairs of views, [].

    Args:
        views: [V, B, D], or V times [B, D]; unit rows, row i of all views is item i.
        temperature: T.
        ids: [B] int; rows of other items with the anchor's id are left out.
        tile: side of a tile of the similarities.

    Raises:
        InputError: see `as_views` and `check_pair`; T <= 0; ids that are not [B] integers.
    """
    return mean_over_items(mv_pvc_losses, views, temperature, ids=ids, tile=tile)


def mv_pvc_losses(
    views: Sequence[Tensor], views_all: Sequence[Tensor], scale: Tensor | float, *, start: int = 0,
    ids: Tensor | None = None, ids_all: Tensor | None = None, tile: int | None = None,
) -> Tensor:  # fmt: skip
    """L_i of the local items -> [b].

    Args:
        views: V times [b, D], rows start to start + b of `views_all`, V times [B, D].
    """
    count = len(views)
    negatives = energies_among(views, views_all, scale, "item", start=start, ids=ids, ids_all=ids_all, tile=tile)
    each = softplus(negatives.T[:, :, None] - pair_logits(views, scale))  # [b, V, V]
    own = torch.eye(count, dtype=torch.bool, device=each.device)
    return each.masked_fill(own, 0.0).sum((1, 2)) / (count * (count - 1))


CONFIG = MVPVCConfig
RECIPE = Recipe(CARD, CONFIG, step_of(mv_pvc_losses), takes="views", draws=draws)
