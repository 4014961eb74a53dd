"""NT-Xent (SimCLR): both views are anchors, and every other view of the batch is a candidate.

Paper: Chen et al., arXiv 2002.05709, equation 1. With z = [first; second] in R^{2B x D} and p(i) the other view of i,

    L_i = log sum_{j != i} exp(<z_i, z_j> / T) - <z_i, z_p(i)> / T,  mean over the 2B anchors

Departures from the official code: none in the value; repeated items are masked by id.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from efface.catalog import Card
from efface.learn.objective import ContrastiveConfig, Embedded, Recipe
from efface.numerics.contrast import check_marks, check_pair, paired_logits, scale_of
from efface.numerics.lse import lse_rows, lse_self
from efface.numerics.masks import Mask, Same

CARD = Card(
    name="nt-xent",
    system="infonce-core",
    title="NT-Xent (SimCLR)",
    summary="Each view must pick the other view of its item among all other views of the batch.",
    paper="Chen et al., A simple framework for contrastive learning, arXiv 2002.05709 (ICML 2020)",
    verb="learn",
    mechanism="objectives",
    modalities=("any",),
    subjects=("encoder",),
    defaults_source="temperature 0.5: SimCLR on CIFAR-10 (appendix B.9); ImageNet: 0.1",
)


class NTXentConfig(ContrastiveConfig):
    """NT-Xent's temperature."""

    temperature: float = Field(0.5, gt=0, description="SimCLR: 0.5 on CIFAR-10, 0.1 on ImageNet")


def nt_xent(
    first: Tensor, second: Tensor, temperature: float, *, ids: Tensor | None = None, tile: int | None = None
) -> Tensor:
    """The mean over the 2B anchors, [].

    Args:
        first, second: [B, D] unit rows, the two views.
        temperature: T.
        ids: [B] int; views of other rows with the anchor's id are left out.
        tile: side of a tile of the [2B, 2B] similarities.

    Raises:
        InputError: see `check_pair`; T <= 0; ids that are not [B] integers.
    """
    scale = scale_of(temperature)
    check_pair(first, second, scale, paired=True)
    ids = None if ids is None else check_marks("ids", ids, len(first))
    return nt_xent_losses(first, second, first, second, scale, ids=ids, ids_all=ids, tile=tile).mean()


def nt_xent_losses(
    first: Tensor, second: Tensor, first_all: Tensor, second_all: Tensor, scale: Tensor | float, *, start: int = 0,
    ids: Tensor | None = None, ids_all: Tensor | None = None, tile: int | None = None,
) -> Tensor:  # fmt: skip
    """L_i of the local anchors [first; second] among [first_all; second_all] -> [2b].

    Args:
        first, second: [b, D], rows start to start + b of the whole.
        first_all, second_all: [B, D].
    """
    b, total = len(first), len(first_all)
    candidates = torch.cat([first_all, second_all])
    place = torch.arange(start, start + b, device=first.device)
    partners = torch.cat([place + total, place])  # [2b]
    exclude: Mask | None = None
    if ids is not None and ids_all is not None:
        own = Same(place.repeat(2), torch.arange(total, device=first.device).repeat(2))  # both views of the item
        exclude = Same(ids.repeat(2), ids_all.repeat(2)) & ~own
    if b == total:  # every anchor is a candidate: half of the work
        lse = lse_self(candidates, scale, exclude=exclude, tile=tile)
        return lse - paired_logits(first_all, second_all, scale).repeat(2)
    itself = Same(torch.cat([place, place + total]), torch.arange(2 * total, device=first.device))
    exclude = itself if exclude is None else exclude | itself
    anchors = torch.cat([first, second])
    return lse_rows(anchors, candidates, scale, exclude=exclude, tile=tile) - paired_logits(
        anchors, candidates[partners], scale
    )


def _loss(batch: Embedded, config: NTXentConfig) -> tuple[Tensor, dict[str, float]]:
    check_pair(batch.first, batch.second_all, batch.scale)
    check_pair(batch.second, batch.first_all, batch.scale)
    losses = nt_xent_losses(
        batch.first, batch.second, batch.first_all, batch.second_all, batch.scale, start=batch.start,
        ids=batch.ids if config.unique_ids else None, ids_all=batch.ids_all, tile=config.tile,
    )  # fmt: skip
    return losses.sum() / (2 * batch.total), {}


CONFIG = NTXentConfig
RECIPE = Recipe(CARD, CONFIG, _loss, takes="views")
