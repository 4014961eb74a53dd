"""CACR with a queue: positives are the moving copy's keys of the other views, negatives the queue and the batch together.

Paper: Zheng et al., arXiv 2105.03746, on the frame of MoCo, arXiv 1911.05722. With the query z_i and K keys k_ui, u = 1..K:

    A_i = sum_u p_u d(z_i, k_ui),  p = softmax_u(t_pos d)
    R_i = -sum_j q_j d(z_i, n_j),  q = softmax_j(-t_neg d), n = [queue; queries of the other items]: one softmax
    L_i = alpha A_i + beta R_i,  mean over the B queries

Departures from the official code: there every view is a query in turn, here view 0 is (1 encoder pass with gradient in
place of V); the newest keys in the queue are those of view 1, as in `moco`; the queue starts empty and not with random
vectors; earlier keys of the same item are masked by id; no gradient flows through any of the weights (there it does
through those of the negatives in the batch). Weights, distances and the sign of `tau_plus`: see `cacr`.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from efface.catalog import Card
from efface.errors import InputError
from efface.learn.objective import Embedded, Recipe
from efface.learn.objectives.cacr import CACRConfig, debiased, repulsion_rows, share_of_loss, weighed
from efface.learn.objectives.multi_view import draws
from efface.numerics.contrast import check_pair, shape, wide
from efface.numerics.masks import Same

CARD = Card(
    name="cacr-moco",
    system="cacr",
    title="CACR with a queue",
    summary="CACR whose positives come from a slowly moving copy and whose negatives wait in a queue.",
    paper="Zheng et al., Contrastive attraction and contrastive repulsion, arXiv 2105.03746 (TMLR 2023)",
    verb="learn",
    mechanism="objectives",
    modalities=("any",),
    subjects=("encoder",),
    defaults_source="official large-data code: 5 views, t_pos 1, t_neg 2, queue 65536, momentum 0.999",
)


class CACRMoCoConfig(CACRConfig):
    """The moving copy and the queue."""

    momentum: float = Field(0.999, ge=0, lt=1, description="m of key <- m key + (1 - m) query; paper: 0.999")
    queue_size: int = Field(65536, ge=1, description="keys that are kept; paper: 65536")
    unique_ids: bool = Field(True, description="earlier keys of the anchor's own item are no negatives")


def cacr_queue_losses(
    queries: Tensor, keys: list[Tensor] | tuple[Tensor, ...], queries_all: Tensor, queue: Tensor | None, *,
    t_pos: float = 1.0, t_neg: float = 2.0, detach_weights: bool = True, tau_plus: float | None = None, start: int = 0,
    ids: Tensor | None = None, ids_all: Tensor | None = None, queue_ids: Tensor | None = None, tile: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(A, R) of the local queries, [b] each.

    Args:
        queries: [b, D] unit rows, start to start + b of `queries_all` [B, D].
        keys: K times [b, D] unit rows of the moving copy; no gradient flows into them.
        queue: [Q, D] earlier keys, or None while there are none.
        ids, ids_all, queue_ids: [b], [B], [Q] int; rows of the query's id are no negatives.

    Raises:
        InputError: no keys, shapes that do not fit, a query without any negative.
    """
    if not keys or any(key.shape != queries.shape for key in keys):
        raise InputError(
            f"keys {[shape(key) for key in keys]} for queries {shape(queries)}", f"one or more, each {shape(queries)}"
        )
    d = torch.stack([2 - 2 * (wide(queries) * wide(key.detach())).sum(1) for key in keys], 1)  # [b, K]
    none = torch.zeros_like(d, dtype=torch.bool)
    pull = weighed(d, none, t_pos, detach_weights)
    earlier = queries_all[:0] if queue is None else queue.detach().to(queries_all.dtype)
    if earlier.ndim != 2 or earlier.shape[1] != queries.shape[1]:
        raise InputError(f"a queue {shape(earlier)} for embeddings {shape(queries)}", f"keys [Q, {queries.shape[1]}]")
    device = queries.device
    own, columns = (
        torch.arange(start, start + len(queries), device=device),
        torch.arange(len(queries_all), device=device),
    )
    exclude = Same(own, torch.cat([columns.new_full((len(earlier),), -1), columns]))
    if ids is not None and ids_all is not None:
        marks = queue_ids if queue_ids is not None else ids.new_full((len(earlier),), -1)
        exclude = Same(ids, torch.cat([marks, ids_all]))
    push = repulsion_rows(queries, torch.cat([earlier, queries_all]), exclude, t_neg, detach_weights, tile=tile)
    return pull, debiased(push, d.mean(1), tau_plus)


def _loss(batch: Embedded, config: CACRMoCoConfig) -> tuple[Tensor, dict[str, float]]:
    for keys in batch.views_all:
        check_pair(batch.first, keys, batch.scale)
    pull, push = cacr_queue_losses(
        batch.first, batch.views[1:], batch.first_all, batch.queue, t_pos=config.t_pos, t_neg=config.t_neg,
        detach_weights=config.detach_weights, tau_plus=config.tau_plus, start=batch.start,
        ids=batch.ids if config.unique_ids else None, ids_all=batch.ids_all, queue_ids=batch.queue_ids, tile=config.tile,
    )  # fmt: skip
    value, numbers = share_of_loss(pull, push, batch.total, config)
    return value, numbers | {"queue": float(0 if batch.queue is None else len(batch.queue))}


CONFIG = CACRMoCoConfig
RECIPE = Recipe(CARD, CONFIG, _loss, takes="views", momentum=True, draws=draws)
