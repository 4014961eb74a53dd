"""Triplet loss: an anchor is nearer to its class than to any other by a margin.

Paper: Schroff et al. (FaceNet), arXiv 1503.03832, equation 3; batch-hard and soft margin: Hermans et al., arXiv 1703.07737.
With d the (squared) Euclidean distance of unit rows:

    L = mean over violating triplets (a, p, n) of max(0, d_ap - d_an + m)

Departures: the mean is over violating triplets (FaceNet sums), since the satisfied ones would only dilute the gradient;
semi-hard takes the nearest negative beyond the positive, and skips a pair that has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import softplus

from efface.catalog import Card
from efface.errors import InputError
from efface.learn.objective import ContrastiveConfig, Embedded, Recipe
from efface.numerics.contrast import check_marks, check_pair, shape, wide
from efface.numerics.masks import Mask, Same, Shifted, counts, slices

CARD = Card(
    name="triplet",
    system="infonce-core",
    title="Triplet loss",
    summary="Each anchor must be nearer to its own class than to another one by a margin.",
    paper="Schroff et al., FaceNet, arXiv 1503.03832 (CVPR 2015); Hermans et al., arXiv 1703.07737",
    verb="learn",
    mechanism="objectives",
    modalities=("any",),
    subjects=("encoder",),
    needs=("labels",),
    defaults_source="margin 0.05 and all triplets: pytorch-metric-learning; FaceNet: 0.2 on squared distances, semi-hard",
)
CUBE = 2**20
"""Elements of one [anchors, positives, candidates] block: 4 MB of float32."""
Mining = Literal["all", "batch-hard", "semi-hard"]


class TripletConfig(ContrastiveConfig):
    """Margin, distance and which triplets count."""

    margin: float = Field(0.05, ge=0, description="m; pytorch-metric-learning: 0.05, FaceNet: 0.2 (squared distances)")
    mining: Mining = Field(
        "all", description="all; batch-hard: farthest positive, nearest negative; semi-hard: FaceNet"
    )
    soft: bool = Field(False, description="softplus in place of max(0, .): every triplet counts (Hermans et al.)")
    squared: bool = Field(False, description="squared Euclidean distance, as FaceNet")


def triplet(
    z: Tensor, labels: Tensor, *, margin: float = 0.05, mining: Mining = "all", soft: bool = False,
    squared: bool = False, tile: int | None = None,
) -> Tensor:  # fmt: skip
    """The mean over violating triplets, []; 0 if none violates.

    Args:
        z: [N, D] unit rows.
        labels: [N] int.
        margin, mining, soft, squared: see `TripletConfig`.
        tile: anchors at a time.

    Raises:
        InputError: see `check_pair`; labels that are not [N] integers; no label appears twice.
    """
    check_pair(z, z, 1.0)
    same = Same(check_marks("labels", labels, len(z)))
    total, violating = triplet_terms(
        z, z, same & ~Shifted(0), ~same, margin=margin, mining=mining, soft=soft, squared=squared, tile=tile
    )
    return total / violating.clamp(min=1)


def triplet_terms(
    q: Tensor, k: Tensor, positive: Mask, negative: Mask, *, margin: float, mining: Mining, soft: bool, squared: bool,
    tile: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The sum over violating triplets of the anchors q [b, D] among k [N, D], and their number: [], [].

    Blocks of anchors give their gradient at once, so that none of their [t, P, N] elements is kept.
    """
    if mining not in ("all", "batch-hard", "semi-hard"):
        raise InputError(f"mining='{mining}'", "all, batch-hard or semi-hard")
    q, k = wide(q), wide(k)
    widest = int(counts(positive, len(q), len(k), device=q.device).max())
    if widest == 0:
        raise InputError(
            f"none of the {len(q)} anchors of {shape(q)} has a positive", "one with one or more", "raise batch_size"
        )
    step = tile or max(1, CUBE // (len(k) * (1 if mining == "batch-hard" else widest)))
    everything = slice(0, len(k))

    def block(r: slice, anchors: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        d = torch.cdist(anchors, candidates, compute_mode="donot_use_mm_for_euclid_dist")  # exact for near twins
        d = d * d if squared else d
        masks = positive.tile(r, everything, q.device), negative.tile(r, everything, q.device)
        near, far, valid = chosen(d, *masks, mining, widest)
        value = softplus(near - far + margin) if soft else torch.relu(near - far + margin)
        value = torch.where(valid, value, 0.0)
        return value.sum(), (value > 0).sum()

    total, violating = _SumOverAnchors.apply(q, k, block, step, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return total, violating


class _SumOverAnchors(torch.autograd.Function):
    """sum of block(rows, q[rows], k) over blocks of rows, and of its counts.

    The sum is one number, so its gradient is known in the forward pass up to a factor: only [b, D] and [N, D] are kept.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, block: Callable[..., tuple[Tensor, Tensor]], step: int, wanted: bool
    ) -> tuple[Tensor, Tensor]:
        total, count = q.new_zeros(()), torch.zeros((), dtype=torch.int64, device=q.device)
        by_q, by_k = torch.zeros_like(q), torch.zeros_like(k)
        with torch.set_grad_enabled(wanted), torch.autocast(q.device.type, enabled=False):
            candidates = k.detach().requires_grad_(wanted)
            for r in slices(len(q), step):
                anchors = q[r].detach().requires_grad_(wanted)
                value, found = block(r, anchors, candidates)
                if wanted:
                    by_q[r], part = torch.autograd.grad(value, (anchors, candidates))
                    by_k += part
                total, count = total + value.detach(), count + found
        ctx.save_for_backward(by_q, by_k)
        ctx.mark_non_differentiable(count)
        return total, count

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        by_q, by_k = ctx.saved_tensors
        return grads[0] * by_q, grads[0] * by_k, None, None, None


def chosen(d: Tensor, positive: Tensor, negative: Tensor, mining: Mining, widest: int) -> tuple[Tensor, Tensor, Tensor]:
    """d_ap and d_an of the triplets that count and which of them exist, all broadcastable to one shape.

    Args:
        d: [t, N] distances.
        positive, negative: [t, N].
        widest: most positives of an anchor, P.
    """
    if mining == "batch-hard":
        far = torch.where(negative, d, torch.inf).amin(1)
        near = torch.where(positive, d, -torch.inf).amax(1)
        valid = positive.any(1) & negative.any(1)
        return torch.where(valid, near, 0.0), torch.where(valid, far, 0.0), valid  # [t]
    place = positive.int().argsort(dim=1, descending=True, stable=True)[:, :widest]  # the positives come first
    near = d.gather(1, place)[:, :, None]  # [t, P, 1]
    valid = positive.gather(1, place)[:, :, None] & negative[:, None, :]  # [t, P, N]
    if mining == "all":
        return near, d[:, None, :], valid
    beyond = valid & (d[:, None, :] > near)
    exists = beyond.any(2)
    nearest = torch.where(beyond, d[:, None, :], torch.inf).amin(2)
    return near[:, :, 0], torch.where(exists, nearest, 0.0), exists  # [t, P]


def _loss(batch: Embedded, config: TripletConfig) -> tuple[Tensor, dict[str, float]]:
    check_pair(batch.first, batch.second_all, 1.0)
    check_pair(batch.second, batch.first_all, 1.0)
    labels = check_marks("labels", batch.labels, len(batch.first)).repeat(2)
    labels_all = check_marks("labels", batch.labels_all, batch.total).repeat(2)
    ids = batch.ids if config.unique_ids else None
    everyone = torch.arange(2 * batch.total, device=labels.device)
    candidates = torch.cat([batch.first_all, batch.second_all])

    def terms(anchors: Tensor, place: Tensor, labels: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        same = Same(labels, labels_all)
        either: Mask = (
            same if ids is None or batch.ids_all is None else same | Same(ids.repeat(2), batch.ids_all.repeat(2))
        )
        return triplet_terms(
            anchors, candidates, same & ~Same(place, everyone), ~either, margin=config.margin, mining=config.mining,
            soft=config.soft, squared=config.squared, tile=config.tile,
        )  # fmt: skip

    rows = torch.arange(batch.start, batch.start + len(batch.first), device=labels.device)
    total, violating = terms(torch.cat([batch.first, batch.second]), torch.cat([rows, rows + batch.total]), labels, ids)
    if len(batch.first) < batch.total:  # the mean needs the violating triplets of all processes
        with torch.no_grad():
            _, violating = terms(candidates, everyone, labels_all, batch.ids_all if config.unique_ids else None)
    return total / violating.clamp(min=1), {"violating": float(violating)}


CONFIG = TripletConfig
RECIPE = Recipe(CARD, CONFIG, _loss, takes="labelled")
