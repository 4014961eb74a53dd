"""CLIP: each picture must pick its text among all texts, and each text its picture; the temperature is learnt.

Paper: Radford et al., arXiv 2103.00020, figure 3. With s = scale <first, second>:

    L = mean_i ( lse_j s_ij + lse_j s_ji ) / 2 - s_ii

Departures from the usual code: the similarities are computed once and used both ways; over several processes the gradient
is the single process's (open_clip's default settings give a part of it); repeated items are masked by id.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from efface.catalog import Card
from efface.learn.objective import ContrastiveConfig, Embedded, Recipe
from efface.numerics.contrast import check_marks, check_pair, paired_logits, same_item
from efface.numerics.lse import lse_both, lse_rows

CARD = Card(
    name="clip",
    system="infonce-core",
    title="CLIP's symmetric contrast",
    summary="Pictures and texts pick each other within the batch, at a learnt temperature.",
    paper="Radford et al., Learning transferable visual models from natural language supervision, arXiv 2103.00020 (2021)",
    verb="learn",
    mechanism="objectives",
    modalities=("image", "text"),
    subjects=("dual-encoder",),
    defaults_source="start at temperature 0.07, scale at most 100: CLIP, section 2.5",
)


class CLIPConfig(ContrastiveConfig):
    """Where the learnt temperature starts."""

    temperature: float | None = Field(
        None, gt=0, description="start of the learnt temperature; default: the model's own (a new one: 0.07, as CLIP)"
    )


def clip(
    first: Tensor, second: Tensor, scale: Tensor | float, *, ids: Tensor | None = None, tile: int | None = None
) -> Tensor:
    """The mean of both directions, [].

    Args:
        first, second: [B, D] unit rows of the two sides; row i of both belong together.
        scale: [] exp(t), one over the temperature.
        ids: [B] int; candidates of the anchor's id, but its partner, are left out.
        tile: side of a tile of the [B, B] similarities.

    Raises:
        InputError: see `check_pair`; ids that are not [B] integers.
    """
    check_pair(first, second, scale, paired=True)
    ids = None if ids is None else check_marks("ids", ids, len(first))
    return clip_losses(first, second, first, second, scale, ids=ids, ids_all=ids, tile=tile).mean()


def clip_losses(
    first: Tensor, second: Tensor, first_all: Tensor, second_all: Tensor, scale: Tensor | float, *, start: int = 0,
    ids: Tensor | None = None, ids_all: Tensor | None = None, tile: int | None = None,
) -> Tensor:  # fmt: skip
    """The mean of both directions for each local pair, [b].

    Args:
        first, second: [b, D], rows start to start + b of the whole.
        first_all, second_all: [B, D].
    """
    exclude = same_item(ids, ids_all, start)
    if len(first) == len(first_all):
        rows, columns = lse_both(first_all, second_all, scale, exclude=exclude, tile=tile)
        return (rows + columns) / 2 - paired_logits(first_all, second_all, scale)
    rows = lse_rows(first, second_all, scale, exclude=exclude, tile=tile)
    columns = lse_rows(second, first_all, scale, exclude=exclude, tile=tile)
    return (rows + columns) / 2 - paired_logits(first, second, scale)


def batch_losses(batch: Embedded, config: ContrastiveConfig) -> Tensor:
    """`clip_losses` of a checked batch, [b]."""
    check_pair(batch.first, batch.second_all, batch.scale)
    check_pair(batch.second, batch.first_all, batch.scale)
    return clip_losses(
        batch.first, batch.second, batch.first_all, batch.second_all, batch.scale, start=batch.start,
        ids=batch.ids if config.unique_ids else None, ids_all=batch.ids_all, tile=config.tile,
    )  # fmt: skip


def _loss(batch: Embedded, config: CLIPConfig) -> tuple[Tensor, dict[str, float]]:
    return batch_losses(batch, config).sum() / batch.total, {}


CONFIG = CLIPConfig
RECIPE = Recipe(CARD, CONFIG, _loss, takes="pairs", learns_scale=True)
