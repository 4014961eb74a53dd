"""DCL across two sides (pictures and texts): CLIP's contrast without the pair itself in the denominators.

Paper: Yeh et al., Decoupled contrastive learning, arXiv 2110.06848, with the candidates of CLIP, arXiv 2103.00020:

    L_i = ( log sum_{j != i} exp(<a_i, b_j> / T) + log sum_{j != i} exp(<b_i, a_j> / T) ) / 2 - <a_i, b_i> / T

Departures from CLIP: the temperature is fixed. Where every pair is closer than its negatives this loss falls without bound
as 1 / T grows, so a learnt temperature runs to its bound. No official code was found; repeated items are masked by id.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from efface.catalog import Card
from efface.learn.objective import ContrastiveConfig, Embedded, Recipe
from efface.numerics.contrast import check_marks, check_pair, paired_logits, scale_of
from efface.numerics.lse import lse_both, lse_rows
from efface.numerics.masks import Mask, Same, Shifted

CARD = Card(
    name="clip-dcl",
    system="dcl",
    title="DCL of pictures and texts",
    summary="Pictures and texts pick each other; a pair does not stand in its own denominator. Fixed temperature.",
    paper="Yeh et al., Decoupled contrastive learning, arXiv 2110.06848 (ECCV 2022); CLIP: arXiv 2103.00020",
    verb="learn",
    mechanism="objectives",
    modalities=("image", "text"),
    subjects=("dual-encoder",),
    defaults_source="temperature 0.1: DCL",
)


class CLIPDCLConfig(ContrastiveConfig):
    """The fixed temperature."""

    temperature: float = Field(0.1, gt=0, description="DCL: 0.1; not learnt, for the loss has no bound in it")


def clip_dcl(
    first: Tensor, second: Tensor, temperature: float, *, ids: Tensor | None = None, tile: int | None = None
) -> Tensor:
    """The mean over the pairs, [].

    Args:
        first, second: [B, D] unit rows of the two sides; row i of both belong together.
        temperature: T.
        ids: [B] int; candidates of the anchor's id are left out.
        tile: side of a tile of the [B, B] similarities.

    Raises:
        InputError: see `check_pair`; T <= 0; ids that are not [B] integers; an anchor without any negative.
    """
    scale = scale_of(temperature)
    check_pair(first, second, scale, paired=True)
    ids = None if ids is None else check_marks("ids", ids, len(first))
    return clip_dcl_losses(first, second, first, second, scale, ids=ids, ids_all=ids, tile=tile).mean()


def clip_dcl_losses(
    first: Tensor, second: Tensor, first_all: Tensor, second_all: Tensor, scale: Tensor | float, *, start: int = 0,
    ids: Tensor | None = None, ids_all: Tensor | None = None, tile: int | None = None,
) -> Tensor:  # fmt: skip
    """The mean of both directions for each local pair, [b].

    Args:
        first, second: [b, D], rows start to start + b of the whole.
        first_all, second_all: [B, D].
    """
    exclude: Mask = Shifted(start)
    if ids is not None and ids_all is not None:
        exclude = Same(ids, ids_all)
    if len(first) == len(first_all):
        rows, columns = lse_both(first_all, second_all, scale, exclude=exclude, tile=tile)
        return (rows + columns) / 2 - paired_logits(first_all, second_all, scale)
    rows = lse_rows(first, second_all, scale, exclude=exclude, tile=tile)
    columns = lse_rows(second, first_all, scale, exclude=exclude, tile=tile)
    return (rows + columns) / 2 - paired_logits(first, second, scale)


def _loss(batch: Embedded, config: CLIPDCLConfig) -> tuple[Tensor, dict[str, float]]:
    check_pair(batch.first, batch.second_all, batch.scale)
    check_pair(batch.second, batch.first_all, batch.scale)
    losses = clip_dcl_losses(
        batch.first, batch.second, batch.first_all, batch.second_all, batch.scale, start=batch.start,
        ids=batch.ids if config.unique_ids else None, ids_all=batch.ids_all, tile=config.tile,
    )  # fmt: skip
    return losses.sum() / batch.total, {}


CONFIG = CLIPDCLConfig
RECIPE = Recipe(CARD, CONFIG, _loss, takes="pairs")
