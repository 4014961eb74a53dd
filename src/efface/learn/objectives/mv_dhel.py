"""MV-DHEL: all views of an item are aligned in one term, each view is spread by an energy of its own.

Paper: A principled framework for multi-view contrastive learning, arXiv 2507.06979. With N views z_l [B, D] of B items,

    L_i = sum_l log sum_{j != i} exp(<z_li, z_lj> / T) - log sum_{l < m} exp(<z_li, z_mi> / T),  mean over the B items

No positive stands in a denominator, so alignment and uniformity do not compete; with two views it is DHEL. The loss has no
lower bound at 0 and N energies stand against one alignment term: values of different N cannot be compared, and the
gradient of the energies grows with N (as published; it is not divided away).

Departures from the official code: it multiplies the N partition sums before the logarithm, which overflows float32 from
about N = 6 at T = 0.1; here their logarithms are added. The README's formula counts ordered pairs and j = i; the code, which
is followed, does neither. Repeated items are masked by id.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from efface.catalog import Card
from efface.learn.objective import Recipe
from efface.learn.objectives.multi_view import MultiViewConfig, draws, mean_over_items, step_of
from efface.numerics.multi_view import energies_within, pair_logits, unordered

CARD = Card(
    name="mv-dhel",
    system="mv-infonce",
    title="MV-DHEL",
    summary="Any number of views of an item: aligned in one term, spread view by view, so that neither disturbs the other.",
    paper="A principled framework for multi-view contrastive learning, arXiv 2507.06979 (2025)",
    verb="learn",
    mechanism="objectives",
    modalities=("any",),
    subjects=("encoder",),
    defaults_source="official configurations: temperature 0.5 on CIFAR and ImageNet-100, 0.1 on ImageNet-1K; batch 256",
)


class MVDHELConfig(MultiViewConfig):
    """Number of views and temperature."""


def mv_dhel(
    views: Tensor | Sequence[Tensor], temperature: float, *, ids: Tensor | None = None, tile: int | None = None
) -> Tensor:
    """The mean over the items, [].

    Args:
        views: [V, B, D], or V times [B, D]; unit rows, row i of all views is item i.
        temperature: T.
        ids: [B] int; rows of the anchor's id are left out.
        tile: side of a tile of each view's [B, B] similarities.

    Raises:
        InputError: see `as_views` and `check_pair`; T <= 0; ids that are not [B] integers.
    """
    return mean_over_items(mv_dhel_losses, views, temperature, ids=ids, tile=tile)


def mv_dhel_losses(
    views: Sequence[Tensor], views_all: Sequence[Tensor], scale: Tensor | float, *, start: int = 0,
    ids: Tensor | None = None, ids_all: Tensor | None = None, tile: int | None = None,
) -> Tensor:  # fmt: skip
    """L_i of the local items -> [b].

    Args:
        views: V times [b, D], rows start to start + b of `views_all`, V times [B, D].
    """
    energies = energies_within(views, views_all, scale, start=start, ids=ids, ids_all=ids_all, tile=tile)  # [V, b]
    return energies.sum(0) - unordered(pair_logits(views, scale)).logsumexp(1)


CONFIG = MVDHELConfig
RECIPE = Recipe(CARD, CONFIG, step_of(mv_dhel_losses), takes="views", draws=draws)
