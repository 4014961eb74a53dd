"""InfoNCE: tell the partner of each anchor from the partners of the others, one way.

Paper: van den Oord et al., arXiv 1807.03748, equation 4, with cosine similarity over a temperature T:

    L_i = log sum_j exp(<q_i, k_j> / T) - <q_i, k_i> / T

Departures: the paper's bilinear score is a cosine, as in every later use; repeated items are masked by id.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from efface.catalog import Card
from efface.learn.objective import ContrastiveConfig, Embedded, Recipe
from efface.numerics.contrast import check_marks, check_pair, paired_logits, same_item, scale_of
from efface.numerics.lse import lse_rows

CARD = Card(
    name="info-nce",
    system="infonce-core",
    title="InfoNCE",
    summary="Each first view must pick its second view among all second views of the batch.",
    paper="van den Oord et al., Representation learning with contrastive predictive coding, arXiv 1807.03748 (2018)",
    verb="learn",
    mechanism="objectives",
    modalities=("any",),
    subjects=("encoder",),
    defaults_source="temperature 0.07: MoCo, arXiv 1911.05722; sentence-transformers uses 0.05",
)


class InfoNCEConfig(ContrastiveConfig):
    """InfoNCE's temperature."""

    temperature: float = Field(0.07, gt=0, description="MoCo: 0.07; sentence-transformers: 0.05")


def info_nce(
    first: Tensor, second: Tensor, temperature: float, *, ids: Tensor | None = None, tile: int | None = None
) -> Tensor:
    """The mean over the anchors, [].

    Args:
        first, second: [B, D] unit rows; row i of both belong together.
        temperature: T.
        ids: [B] int; candidates of the anchor's id, but its partner, are left out.
        tile: side of a tile of the [B, B] similarities.

    Raises:
        InputError: see `check_pair`; T <= 0; ids that are not [B] integers.
    """
    scale = scale_of(temperature)
    check_pair(first, second, scale, paired=True)
    ids = None if ids is None else check_marks("ids", ids, len(first))
    return info_nce_losses(first, second, scale, ids=ids, ids_all=ids, tile=tile).mean()


def info_nce_losses(
    first: Tensor, second_all: Tensor, scale: Tensor | float, *, start: int = 0, ids: Tensor | None = None,
    ids_all: Tensor | None = None, tile: int | None = None,
) -> Tensor:  # fmt: skip
    """L_i of the anchors `first` [b, D] among `second_all` [B, D], where anchor i belongs to row start + i -> [b]."""
    lse = lse_rows(first, second_all, scale, exclude=same_item(ids, ids_all, start), tile=tile)
    return lse - paired_logits(first, second_all[start : start + len(first)], scale)


def _loss(batch: Embedded, config: InfoNCEConfig) -> tuple[Tensor, dict[str, float]]:
    check_pair(batch.first, batch.second_all, batch.scale)
    losses = info_nce_losses(
        batch.first, batch.second_all, batch.scale, start=batch.start, ids=batch.ids if config.unique_ids else None,
        ids_all=batch.ids_all, tile=config.tile,
    )  # fmt: skip
    return losses.sum() / batch.total, {}


CONFIG = InfoNCEConfig
RECIPE = Recipe(CARD, CONFIG, _loss, takes="views")
