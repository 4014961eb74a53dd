"""The averaging baseline of many views: each view in NT-Xent with the mean of the others.

Source: the baseline AVG of arXiv 2507.06979 and its official code.

    L = 1/N sum_l NT-Xent(z_l, 1/(N - 1) sum_{m != l} z_m)

The mean is not made unit again, as in the official code. Departures: none in the value; repeated items are masked by id.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from efface.catalog import Card
from efface.learn.objective import Recipe
from efface.learn.objectives.multi_view import MultiViewConfig, draws, mean_over_items, step_of
from efface.learn.objectives.nt_xent import nt_xent_losses
from efface.numerics.contrast import wide

CARD = Card(
    name="mv-avg",
    system="mv-infonce",
    title="Mean of the other views (AVG)",
    summary="NT-Xent of each view with the mean of the item's other views.",
    paper="baseline of arXiv 2507.06979 (2025)",
    verb="learn",
    mechanism="objectives",
    modalities=("any",),
    subjects=("encoder",),
    defaults_source="as mv-infonce, whose baseline it is",
)


class MVAvgConfig(MultiViewConfig):
    """Number of views and temperature."""


def mv_avg(
    views: Tensor | Sequence[Tensor], temperature: float, *, ids: Tensor | None = None, tile: int | None = None
) -> Tensor:
    """The mean over the items and the views, [].

    Args:
        views: [V, B, D], or V times [B, D]; unit rows, row i of all views is item i.
        temperature: T.
        ids: [B] int; rows of other items with the anchor's id are left out.
        tile: side of a tile of the similarities.

    Raises:
        InputError: see `as_views` and `check_pair`; T <= 0; ids that are not [B] integers.
    """
    return mean_over_items(mv_avg_losses, views, temperature, ids=ids, tile=tile)


def mv_avg_losses(
    views: Sequence[Tensor], views_all: Sequence[Tensor], scale: Tensor | float, *, start: int = 0,
    ids: Tensor | None = None, ids_all: Tensor | None = None, tile: int | None = None,
) -> Tensor:  # fmt: skip
    """L_i of the local items -> [b].

    Args:
        views: V times [b, D], rows start to start + b of `views_all`, V times [B, D].
    """
    count = len(views)
    total, total_all = sum_of(views), sum_of(views_all)
    losses = views[0].new_zeros(())
    for view, everyone in zip(views, views_all, strict=True):
        rest, rest_all = ((x - wide(own)) / (count - 1) for x, own in ((total, view), (total_all, everyone)))
        both = nt_xent_losses(
            wide(view), rest, wide(everyone), rest_all, scale, start=start, ids=ids, ids_all=ids_all, tile=tile
        )
        losses = losses + both.view(2, -1).mean(0)
    return losses / count


def sum_of(views: Sequence[Tensor]) -> Tensor:
    """[b, D], in float32 or better."""
    return torch.stack([wide(view) for view in views]).sum(0)


CONFIG = MVAvgConfig
RECIPE = Recipe(CARD, CONFIG, step_of(mv_avg_losses), takes="views", draws=draws)
