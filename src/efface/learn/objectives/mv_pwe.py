"""The pairwise baseline of many views: NT-Xent of every pair of views, averaged.

Paper: Tian et al., Contrastive multiview coding, arXiv 1906.05849 (the full graph of pairs), as PWE in arXiv 2507.06979.
With NT-Xent of the pair (l, m) over the 2B rows of these two views,

    L = 2 / (N (N - 1)) sum_{l < m} NT-Xent(z_l, z_m)

Departures from the official code: none in the value; repeated items are masked by id.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from torch import Tensor

from efface.catalog import Card
from efface.learn.objective import Recipe
from efface.learn.objectives.multi_view import MultiViewConfig, draws, mean_over_items, step_of
from efface.learn.objectives.nt_xent import nt_xent_losses

CARD = Card(
    name="mv-pwe",
    system="mv-infonce",
    title="Pairwise average of views (PWE)",
    summary="NT-Xent of every pair of an item's views, averaged over the pairs.",
    paper="Tian et al., Contrastive multiview coding, arXiv 1906.05849 (ECCV 2020)",
    verb="learn",
    mechanism="objectives",
    modalities=("any",),
    subjects=("encoder",),
    defaults_source="as mv-infonce, whose baseline it is",
)


class MVPWEConfig(MultiViewConfig):
    """Number of views and temperature."""


def mv_pwe(
    views: Tensor | Sequence[Tensor], temperature: float, *, ids: Tensor | None = None, tile: int | None = None
) -> Tensor:
    """The mean over the items and the pairs of views, [].

    Args:
        views: [V, B, D], or V times [B, D]; unit rows, row i of all views is item i.
        temperature: T.
        ids: [B] int; rows of other items with the anchor's id are left out.
        tile: side of a tile of the similarities.

    Raises:
        InputError: see `as_views` and `check_pair`; T <= 0; ids that are not [B] integers.
    """
    return mean_over_items(mv_pwe_losses, views, temperature, ids=ids, tile=tile)


def mv_pwe_losses(
    views: Sequence[Tensor], views_all: Sequence[Tensor], scale: Tensor | float, *, start: int = 0,
    ids: Tensor | None = None, ids_all: Tensor | None = None, tile: int | None = None,
) -> Tensor:  # fmt: skip
    """L_i of the local items -> [b].

    Args:
        views: V times [b, D], rows start to start + b of `views_all`, V times [B, D].
    """
    pairs = list(combinations(range(len(views)), 2))
    losses = views[0].new_zeros(())
    for one, other in pairs:
        both = nt_xent_losses(
            views[one], views[other], views_all[one], views_all[other], scale, start=start, ids=ids, ids_all=ids_all,
            tile=tile,
        )  # fmt: skip
        losses = losses + both.view(2, -1).mean(0)
    return losses / len(pairs)


CONFIG = MVPWEConfig
RECIPE = Recipe(CARD, CONFIG, step_of(mv_pwe_losses), takes="views", draws=draws)
