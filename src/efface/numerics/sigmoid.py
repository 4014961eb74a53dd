"""Sums of softplus over the pairs of two sets of embeddings, tile by tile, with nothing of size B x M kept.

SigLIP's loss (every pair is a yes or no) and the supervised pair loss are both such sums. The backward pass computes each
tile again: chunking the forward pass alone would still keep all logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from efface.numerics.contrast import tiles, wide
from efface.numerics.masks import Mask


def softplus_rows(
    q: Tensor, k: Tensor, scale: Tensor | float, shift: Tensor, *, positive: Mask, exclude: Mask | None = None,
    tile: int | None = None,
) -> Tensor:  # fmt: skip
    """sum_{j not excluded} softplus(-y_ij (scale <q_i, k_j> + shift_i)) -> [B], y = +1 on positives, -1 elsewhere.

    Args:
        q: [B, D].
        k: [M, D].
        scale: [].
        shift: [B] added to every logit of a row; +inf is allowed on rows of positives only and gives 0.
        positive, exclude: [B, M].
        tile: side of a tile.
    """
    for mask in (positive, exclude):
        if mask is not None:
            mask.check(len(q), len(k))
    q, k = wide(q), wide(k)
    factor = torch.as_tensor(scale, dtype=q.dtype, device=q.device)
    found: Tensor = _SoftplusRows.apply(  # type: ignore[no-untyped-call]
        q, k, factor, shift.to(q.dtype), positive, None if exclude is None else ~exclude, tile
    )
    return found


class _SoftplusRows(torch.autograd.Function):
    """Keeps q, k, scale and shift only."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, scale: Tensor, shift: Tensor, positive: Mask, included: Mask | None,
        tile: int | None,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(q, k, scale, shift)
        ctx.positive, ctx.included, ctx.tile = positive, included, tile
        found = torch.zeros_like(shift)
        with torch.autocast(q.device.type, enabled=False):
            for r, c in tiles(included, len(q), len(k), tile):
                sign, keep = _signs(q, r, c, positive, included)
                value = softplus(-sign * (scale * (q[r] @ k[c].T) + shift[r, None]))
                found[r] += torch.where(keep, value, 0.0).sum(1)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        q, k, scale, shift = ctx.saved_tensors
        dq, dk, dscale, dshift = (torch.zeros_like(x) for x in (q, k, scale, shift))
        with torch.autocast(q.device.type, enabled=False):
            for r, c in tiles(ctx.included, len(q), len(k), ctx.tile):
                sign, keep = _signs(q, r, c, ctx.positive, ctx.included)
                cosine = q[r] @ k[c].T
                slope = -sign * torch.sigmoid(-sign * (scale * cosine + shift[r, None])) * grad[r, None]
                slope = torch.where(keep, slope, 0.0)
                dq[r] += scale * (slope @ k[c])
                dk[c] += scale * (slope.T @ q[r])
                dscale += (slope * cosine).sum()
                dshift[r] += slope.sum(1)
        return dq, dk, dscale, dshift, None, None, None


def _signs(q: Tensor, r: slice, c: slice, positive: Mask, included: Mask | None) -> tuple[Tensor, Tensor]:
    """y [t, t] and what counts [t, t]."""
    yes = positive.tile(r, c, q.device)
    keep = torch.ones_like(yes) if included is None else included.tile(r, c, q.device)
    return torch.where(yes, 1.0, -1.0).to(q.dtype), keep
