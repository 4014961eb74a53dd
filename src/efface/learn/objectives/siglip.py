"""SigLIP: every pair of the batch is a yes or a no of its own; no softmax, so no row needs the others.

Paper: Zhai et al., arXiv 2303.15343, equation 1 and algorithm 1. With y = +1 on pairs and -1 elsewhere,

    L = (1/B) sum_ij softplus(-y_ij (scale <first_i, second_j> + bias))

a sum over all pairs divided by B, not B^2. Start: scale 10, bias -10, so that the many negatives cost little at first.
Departures from the official code: the backward pass recomputes each tile, so no B x B logits are kept; repeated items are
masked by id.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from efface.catalog import Card
from efface.errors import InputError
from efface.learn.objective import ContrastiveConfig, Embedded, Recipe
from efface.numerics.contrast import check_marks, check_pair, same_item, wide
from efface.numerics.masks import Shifted
from efface.numerics.sigmoid import softplus_rows

CARD = Card(
    name="siglip",
    system="infonce-core",
    title="SigLIP's sigmoid contrast",
    summary="Each picture and text of the batch is judged as a pair or not, at a learnt temperature and bias.",
    paper="Zhai et al., Sigmoid loss for language image pre-training, arXiv 2303.15343 (ICCV 2023)",
    verb="learn",
    mechanism="objectives",
    modalities=("image", "text"),
    subjects=("dual-encoder",),
    defaults_source="start at scale 10 and bias -10: SigLIP, section 3.2",
)


class SigLIPConfig(ContrastiveConfig):
    """Where the learnt temperature starts; the bias of a new model starts at -10."""

    temperature: float | None = Field(
        None, gt=0, description="start of the learnt temperature; default: the model's own (a new one: 0.1, as SigLIP)"
    )


def siglip(
    first: Tensor, second: Tensor, scale: Tensor | float, bias: Tensor | float, *, ids: Tensor | None = None,
    tile: int | None = None,
) -> Tensor:  # fmt: skip
    """The sum over all pairs divided by B, [].

    Args:
        first, second: [B, D] unit rows of the two sides; row i of both belong together.
        scale: [] one over the temperature.
        bias: [] b.
        ids: [B] int; pairs of one id in different rows are left out.
        tile: side of a tile of the [B, B] similarities.

    Raises:
        InputError: see `check_pair`; ids that are not [B] integers.
    """
    check_pair(first, second, scale, paired=True)
    ids = None if ids is None else check_marks("ids", ids, len(first))
    return siglip_losses(first, second, scale, bias, ids=ids, ids_all=ids, tile=tile).mean()


def siglip_losses(
    first: Tensor, second_all: Tensor, scale: Tensor | float, bias: Tensor | float, *, start: int = 0,
    ids: Tensor | None = None, ids_all: Tensor | None = None, tile: int | None = None,
) -> Tensor:  # fmt: skip
    """The sum over j for each local row of `first` [b, D] against `second_all` [B, D] -> [b]."""
    shift = wide(first).new_zeros(len(first)) + bias  # [b]
    exclude = same_item(ids, ids_all, start)
    return softplus_rows(first, second_all, scale, shift, positive=Shifted(start), exclude=exclude, tile=tile)


def _loss(batch: Embedded, config: SigLIPConfig) -> tuple[Tensor, dict[str, float]]:
    check_pair(batch.first, batch.second_all, batch.scale)
    if batch.bias is None:
        raise InputError(
            "no bias", "a learnt bias beside the scale (it starts at -10)", "choose clip for a model without"
        )
    losses = siglip_losses(
        batch.first, batch.second_all, batch.scale, batch.bias, start=batch.start,
        ids=batch.ids if config.unique_ids else None, ids_all=batch.ids_all, tile=config.tile,
    )  # fmt: skip
    return losses.sum() / batch.total, {"bias": float(batch.bias.detach())}


CONFIG = SigLIPConfig
RECIPE = Recipe(CARD, CONFIG, _loss, takes="pairs", learns_scale=True, has_bias=True)
