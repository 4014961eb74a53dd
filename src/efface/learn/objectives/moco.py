"""MoCo: the anchor's key comes from a slowly moving copy of the encoder, its negatives from a queue of earlier keys.

Paper: He et al., arXiv 1911.05722, equation 1; v2 (arXiv 2003.04297) changes the head, the views and T.

    L_i = log( exp(s_i+) + sum_{k in queue} exp(s_ik) ) - s_i+,  keys without gradient

Departures from the official code: the queue starts empty and not with random vectors, so the first step has no negatives
and a loss of 0; earlier keys of the same item are masked by id; the keys of the batch itself are no negatives, as there.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from efface.catalog import Card
from efface.errors import InputError
from efface.learn.objective import ContrastiveConfig, Embedded, Recipe
from efface.numerics.contrast import check_marks, check_pair, lse_or_nothing, paired_logits, scale_of, shape
from efface.numerics.masks import Same

CARD = Card(
    name="moco",
    system="infonce-core",
    title="MoCo",
    summary="Many negatives at a small batch: a queue of keys from a slowly moving copy of the encoder.",
    paper="He et al., Momentum contrast, arXiv 1911.05722 (CVPR 2020); v2: Chen et al., arXiv 2003.04297",
    verb="learn",
    mechanism="objectives",
    modalities=("any",),
    subjects=("encoder",),
    defaults_source="MoCo v1: momentum 0.999, queue 65536, temperature 0.07; v2: temperature 0.2",
)


class MoCoConfig(ContrastiveConfig):
    """The moving copy, the queue and the temperature."""

    temperature: float = Field(0.07, gt=0, description="MoCo v1: 0.07; v2: 0.2")
    momentum: float = Field(0.999, ge=0, lt=1, description="m of key <- m key + (1 - m) query; MoCo: 0.999")
    unique_ids: bool = Field(True, description="earlier keys of the anchor's own item are no negatives")
    queue_size: int = Field(65536, ge=1, description="keys that are kept; MoCo: 65536")


def moco(
    first: Tensor, keys: Tensor, queue: Tensor | None, temperature: float, *, ids: Tensor | None = None,
    queue_ids: Tensor | None = None, tile: int | None = None,
) -> Tensor:  # fmt: skip
    """The mean over the anchors, [].

    Args:
        first: [B, D] unit rows of the encoder.
        keys: [B, D] unit rows of the moving copy; no gradient flows into them.
        queue: [K, D] earlier keys, or None while there are none.
        temperature: T.
        ids, queue_ids: [B], [K] int; earlier keys of the anchor's id are left out.
        tile: side of a tile of the [B, K] similarities.

    Raises:
        InputError: see `check_pair`; T <= 0; ids that are not integers of the right shape.
    """
    scale = scale_of(temperature)
    check_pair(first, keys, scale, paired=True)
    return moco_losses(first, keys, queue, scale, ids=ids, queue_ids=queue_ids, tile=tile).mean()


def moco_losses(
    first: Tensor, keys: Tensor, queue: Tensor | None, scale: Tensor | float, *, ids: Tensor | None = None,
    queue_ids: Tensor | None = None, tile: int | None = None,
) -> Tensor:  # fmt: skip
    """L_i -> [B]."""
    own = paired_logits(first, keys.detach(), scale)
    if queue is None or len(queue) == 0:
        return 0 * own  # nothing to be told from yet
    return softplus(queue_energies(first, queue, scale, ids=ids, queue_ids=queue_ids, tile=tile) - own)


def queue_energies(
    first: Tensor, queue: Tensor, scale: Tensor | float, *, ids: Tensor | None = None, queue_ids: Tensor | None = None,
    tile: int | None = None,
) -> Tensor:  # fmt: skip
    """log sum_k exp(scale <q_i, k>) over the keys of other items -> [B]; -inf where there is none.

    Raises:
        InputError: a queue that is not [K, D]; ids that are not integers of the right shape.
    """
    if queue.ndim != 2 or queue.shape[1] != first.shape[1]:
        raise InputError(f"a queue {shape(queue)} for embeddings {shape(first)}", f"keys [K, {first.shape[1]}]")
    exclude = None
    if ids is not None and queue_ids is not None:
        exclude = Same(check_marks("ids", ids, len(first)), check_marks("ids of the queue", queue_ids, len(queue)))
    return lse_or_nothing(first, queue.detach(), scale, exclude=exclude, tile=tile)


def _loss(batch: Embedded, config: MoCoConfig) -> tuple[Tensor, dict[str, float]]:
    check_pair(batch.first, batch.second_all, batch.scale)
    losses = moco_losses(
        batch.first, batch.second, batch.queue, batch.scale, ids=batch.ids if config.unique_ids else None,
        queue_ids=batch.queue_ids, tile=config.tile,
    )  # fmt: skip
    return losses.sum() / batch.total, {"queue": float(0 if batch.queue is None else len(batch.queue))}


CONFIG = MoCoConfig
RECIPE = Recipe(CARD, CONFIG, _loss, takes="views", momentum=True)
