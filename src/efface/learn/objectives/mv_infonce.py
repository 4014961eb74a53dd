"""MV-InfoNCE: all views of an item are aligned in one term, and told from all else by one partition sum an item.

Paper: A principled framework for multi-view contrastive learning, arXiv 2507.06979. With N views z_l [B, D] of B items,
a_i(l, m) = <z_li, z_mi> / T and Z_l,i the partition sum of anchor (l, i),

    L_i = log sum_l Z_l,i - log sum_{l != m} exp(a_i(l, m)),  mean over the B items

Z_l,i runs over every row but (l, i) itself (the official code, whose figures are published), or with `within_view=False`
over the rows of the other views only (the paper's formula). With two views

    L_i = (N_1,i + N_2,i) / 2 + log cosh((log Z_1,i - log Z_2,i) / 2)

where N_k,i are the anchors' NT-Xent losses (`within_view=True`) or the two directions of InfoNCE (False): it is never less
than their mean, and equals it where both partition sums agree.

Departures from the official code: sums of exponentials are log-sum-exps by tiles; repeated items are masked by id.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from efface.catalog import Card
from efface.learn.objective import Recipe
from efface.learn.objectives.multi_view import MultiViewConfig, draws, mean_over_items, step_of
from efface.numerics.multi_view import energies_among, pair_logits, unordered

CARD = Card(
    name="mv-infonce",
    system="mv-infonce",
    title="MV-InfoNCE",
    summary="Any number of views of an item in one contrast: aligned in one term, told from the batch by one sum.",
    paper="A principled framework for multi-view contrastive learning, arXiv 2507.06979 (2025)",
    verb="learn",
    mechanism="objectives",
    modalities=("any",),
    subjects=("encoder",),
    defaults_source="official configurations: temperature 0.5 on CIFAR and ImageNet-100, 0.1 on ImageNet-1K; batch 256",
)


class MVInfoNCEConfig(MultiViewConfig):
    """What the partition sum runs over."""

    within_view: bool = Field(
        True, description="rows of the anchor's own view are candidates too, as in the official code; formula: false"
    )


def mv_infonce(
    views: Tensor | Sequence[Tensor], temperature: float, *, within_view: bool = True, ids: Tensor | None = None,
    tile: int | None = None,
) -> Tensor:  # fmt: skip
    """The mean over the items, [].

    Args:
        views: [V, B, D], or V times [B, D]; unit rows, row i of all views is item i.
        temperature: T.
        within_view: see the module.
        ids: [B] int; rows of other items with the anchor's id are left out.
        tile: side of a tile of the [V B, V B] similarities.

    Raises:
        InputError: see `as_views` and `check_pair`; T <= 0; ids that are not [B] integers.
    """
    return mean_over_items(mv_infonce_losses, views, temperature, ids=ids, tile=tile, within_view=within_view)


def mv_infonce_losses(
    views: Sequence[Tensor], views_all: Sequence[Tensor], scale: Tensor | float, *, within_view: bool = True,
    start: int = 0, ids: Tensor | None = None, ids_all: Tensor | None = None, tile: int | None = None,
) -> Tensor:  # fmt: skip
    """L_i of the local items -> [b].

    Args:
        views: V times [b, D], rows start to start + b of `views_all`, V times [B, D].
    """
    energies = energies_among(
        views, views_all, scale, "itself" if within_view else "view", start=start, ids=ids, ids_all=ids_all, tile=tile
    )  # [V, b]
    agreement = unordered(pair_logits(views, scale)).logsumexp(1) + math.log(2)  # ordered pairs: each twice
    return energies.logsumexp(0) - agreement


CONFIG = MVInfoNCEConfig
RECIPE = Recipe(
    CARD,
    CONFIG,
    step_of(mv_infonce_losses, lambda config: {"within_view": config.within_view}),
    takes="views",
    draws=draws,
)
