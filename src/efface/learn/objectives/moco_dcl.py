"""DCL with a queue: MoCo whose denominator holds the queue only, and not the positive key.

Paper: Yeh et al., Decoupled contrastive learning, arXiv 2110.06848, on the frame of MoCo, arXiv 1911.05722:

    L_i = log sum_{k in queue} exp(<q_i, k> / T) - <q_i, k_i> / T,  keys without gradient

No official code was found. Departures from MoCo's: as in `moco` (the queue starts empty, earlier keys of the same item are
masked by id). An anchor without any negative has a loss of 0: its positive alone would pull everything together.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from efface.catalog import Card
from efface.learn.objective import Embedded, Recipe
from efface.learn.objectives.moco import MoCoConfig, queue_energies
from efface.numerics.contrast import check_pair, paired_logits, scale_of

CARD = Card(
    name="moco-dcl",
    system="dcl",
    title="DCL with a queue",
    summary="MoCo without the positive in the denominator: the queue alone is what an anchor is told from.",
    paper="Yeh et al., Decoupled contrastive learning, arXiv 2110.06848 (ECCV 2022); MoCo: arXiv 1911.05722",
    verb="learn",
    mechanism="objectives",
    modalities=("any",),
    subjects=("encoder",),
    defaults_source="temperature 0.1: DCL; momentum 0.999, queue 65536: MoCo",
)


class MoCoDCLConfig(MoCoConfig):
    """MoCo's settings at DCL's temperature."""

    temperature: float = Field(0.1, gt=0, description="DCL: 0.1")


def moco_dcl(
    first: Tensor, keys: Tensor, queue: Tensor | None, temperature: float, *, ids: Tensor | None = None,
    queue_ids: Tensor | None = None, tile: int | None = None,
) -> Tensor:  # fmt: skip
    """The mean over the anchors, []; see `moco` for the arguments and errors."""
    scale = scale_of(temperature)
    check_pair(first, keys, scale, paired=True)
    return moco_dcl_losses(first, keys, queue, scale, ids=ids, queue_ids=queue_ids, tile=tile).mean()


def moco_dcl_losses(
    first: Tensor, keys: Tensor, queue: Tensor | None, scale: Tensor | float, *, ids: Tensor | None = None,
    queue_ids: Tensor | None = None, tile: int | None = None,
) -> Tensor:  # fmt: skip
    """L_i -> [B]."""
    own = paired_logits(first, keys.detach(), scale)
    if queue is None or len(queue) == 0:
        return 0 * own  # nothing to be told from yet
    energies = queue_energies(first, queue, scale, ids=ids, queue_ids=queue_ids, tile=tile)
    return torch.where(energies == -torch.inf, 0 * own, energies - own)


def _loss(batch: Embedded, config: MoCoDCLConfig) -> tuple[Tensor, dict[str, float]]:
    check_pair(batch.first, batch.second_all, batch.scale)
    losses = moco_dcl_losses(
        batch.first, batch.second, batch.queue, batch.scale, ids=batch.ids if config.unique_ids else None,
        queue_ids=batch.queue_ids, tile=config.tile,
    )  # fmt: skip
    return losses.sum() / batch.total, {"queue": float(0 if batch.queue is None else len(batch.queue))}


CONFIG = MoCoDCLConfig
RECIPE = Recipe(CARD, CONFIG, _loss, takes="views", momentum=True)
