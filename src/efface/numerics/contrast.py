"""The masked supervised-contrastive loss that learning and forgetting share, and the checks of every objective's input.

Khosla et al., arXiv 2004.11362, the 'out' form, for any positive and exclude mask. Anchors q and candidates k are given
apart, so that a process may hold some of the anchors and all of the candidates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from efface.errors import InputError
from efface.numerics.lse import lse_rows
from efface.numerics.masks import TILE, Mask, Same, Shifted, counts, slices

UNIT = {torch.float64: 1e-3, torch.float32: 1e-3}
"""How far from 1 a row's norm may be; 0.02 in the half types."""


@dataclass(frozen=True)
class Contrast:
    """One loss an anchor.

    Attributes:
        losses: [B]; 0 at anchors without a positive, which means must not count.
        positives: [B] int64, |P(i)|.
    """

    losses: Tensor
    positives: Tensor

    @property
    def without_positive(self) -> int:
        """Anchors that were ignored."""
        return int((self.positives == 0).sum())


def supervised_contrast(
    q: Tensor, k: Tensor, scale: Tensor | float, positive: Mask, exclude: Mask | None = None, *,
    tile: int | None = None,
) -> Contrast:  # fmt: skip
    """-(1/|P(i)|) sum_{p in P(i)} [s_ip - lse_{j not excluded} s_ij] for every anchor i, with s = scale q k^T.

    What is excluded is no positive either. Memory is linear in B and M: no B x M matrix outlives a tile.

    Args:
        q: [B, D] anchors, unit rows.
        k: [M, D] candidates, unit rows.
        scale: [] one over the temperature.
        positive, exclude: [B, M].
        tile: side of a tile.

    Raises:
        InputError: no anchor has a positive, or the masks do not fit.
    """
    if exclude is not None:
        positive = positive & ~exclude
    rows = len(q)
    n = counts(positive, rows, len(k), tile or TILE, q.device)
    if not bool((n > 0).any()):
        raise InputError(
            f"none of the {rows} anchors of {shape(q)} has a positive among {shape(k)}", "one anchor with one or more",
            "give batches in which a label appears twice, or two views of each item",
        )  # fmt: skip
    mean = masked_sum(k, positive, rows, tile) / n.clamp(min=1)[:, None]
    losses = lse_or_nothing(q, k, scale, exclude=exclude, tile=tile) - paired_logits(q, mean, scale)
    return Contrast(torch.where(n > 0, losses, torch.zeros_like(losses)), n)


def lse_or_nothing(
    q: Tensor, k: Tensor, scale: Tensor | float, *, exclude: Mask | None = None, tile: int | None = None
) -> Tensor:
    """`lse_rows`, but -inf (and no gradient) for a row whose candidates are all excluded -> [B]."""
    if exclude is None:
        return lse_rows(q, k, scale, tile=tile)
    alone = counts(exclude, len(q), len(k), tile or TILE, q.device) == len(k)
    if bool(alone.any()):
        exclude = exclude & ~Same(alone.long(), torch.ones(len(k), dtype=torch.int64, device=q.device))
    return torch.where(alone, -torch.inf, lse_rows(q, k, scale, exclude=exclude, tile=tile))


def masked_sum(k: Tensor, mask: Mask, rows: int, tile: int | None = None) -> Tensor:
    """sum_j mask_ij k_j for i < rows -> [rows, D], by tiles in the backward pass as well."""
    mask.check(rows, len(k))
    found: Tensor = _MaskedSum.apply(wide(k), mask, rows, tile)  # type: ignore[no-untyped-call]
    return found


class _MaskedSum(torch.autograd.Function):
    """Mask times k; autograd would keep every tile of the mask."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, mask: Mask, rows: int, tile: int | None) -> Tensor:
        ctx.mask, ctx.rows, ctx.tile, ctx.columns = mask, rows, tile, len(k)
        found = k.new_zeros(rows, k.shape[1])
        with torch.autocast(k.device.type, enabled=False):
            for r, c in tiles(mask, rows, len(k), tile):
                found[r] += mask.tile(r, c, k.device).to(k.dtype) @ k[c]
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        found = grad.new_zeros(ctx.columns, grad.shape[1])
        with torch.autocast(grad.device.type, enabled=False):
            for r, c in tiles(ctx.mask, ctx.rows, ctx.columns, ctx.tile):
                found[c] += ctx.mask.tile(r, c, grad.device).to(grad.dtype).T @ grad[r]
        return found, None, None, None


def tiles(mask: Mask | None, rows: int, columns: int, side: int | None) -> Iterator[tuple[slice, slice]]:
    """The tiles of a rows x columns matrix, row by row, without those that surely hold nothing of the mask."""
    for r in slices(rows, side or TILE):
        for c in slices(columns, side or TILE):
            if mask is None or not mask.empty(r, c):
                yield r, c


def wide(x: Tensor) -> Tensor:
    """Half types as float32; others as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def paired_logits(q: Tensor, k: Tensor, scale: Tensor | float) -> Tensor:
    """scale <q_i, k_i> -> [B], in float32 or better."""
    return scale * (wide(q) * wide(k)).sum(1)


def same_item(ids: Tensor | None, ids_all: Tensor | None, start: int = 0) -> Mask | None:
    """[b, B]: candidates of the anchor's id but not its own partner (row `start + i`); None without ids."""
    return None if ids is None or ids_all is None else Same(ids, ids_all) & ~Shifted(start)


def scale_of(temperature: float) -> float:
    """1 / T. Raises InputError unless T is a number above 0."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise InputError(f"a temperature of {temperature}", "a number above 0", "usual: 0.05 to 0.5")
    return 1 / temperature


def check_pair(q: Tensor, k: Tensor, scale: Tensor | float, *, paired: bool = False) -> None:
    """Refuse embeddings that no contrastive loss can use.

    Args:
        q: [B, D] anchors; k: [M, D] candidates; scale: [].
        paired: row i of both belongs together, so B = M.

    Raises:
        InputError: not two matrices, differing D (or B), fewer than two candidates, a value that is not finite, a zero row,
            rows that are not unit, a scale that is not above 0.
    """
    given = f"embeddings {shape(q)} and {shape(k)}"
    if q.ndim != 2 or k.ndim != 2:
        raise InputError(given, "two matrices [rows, D]")
    if q.shape[1] != k.shape[1]:
        raise InputError(given, "the same D on both sides", "project both sides to one width")
    if paired and len(q) != len(k):
        raise InputError(given, "as many rows on both sides, row i belonging to row i")
    if len(q) < 1 or len(k) < 2:
        raise InputError(given, "2 rows or more: a single one has nothing to be told from", "raise batch_size")
    value = float(scale.detach() if isinstance(scale, Tensor) else scale)
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"a scale (one over the temperature) of {value:g}", "a number above 0")
    for name, rows in (("first", q), ("second", k)):
        _check_rows(name, rows.detach())


def _check_rows(name: str, rows: Tensor) -> None:
    if not rows.is_floating_point():
        raise InputError(f"the {name} embeddings {shape(rows)} are {rows.dtype}", "floating point")
    norms = wide(rows).norm(dim=1)  # [B]; not finite where a value is not
    off = (norms - 1).abs()
    if bool((off <= UNIT.get(rows.dtype, 2e-2)).all()):
        return
    place = int((~torch.isfinite(norms)).int().argmax() if not bool(torch.isfinite(norms).all()) else off.argmax())
    given = f"row {place} of the {name} embeddings {shape(rows)}"
    if not math.isfinite(float(norms[place])):
        raise InputError(f"{given} is not finite", "numbers", "lower the learning rate, or look at that item")
    if float(norms[place]) == 0:
        raise InputError(f"{given} is zero", "a direction", "look at that item: an empty text, a blank picture?")
    raise InputError(f"{given} has norm {float(norms[place]):.4g}", "unit rows", "normalise the embeddings first")


def check_marks(name: str, marks: Tensor | None, rows: int) -> Tensor:
    """Labels or ids as they must be: [rows] integers.

    Raises:
        InputError: missing, another shape, or not integers.
    """
    if marks is None:
        raise InputError(f"no {name}", f"{rows} integers", f"give a column of {name}")
    if marks.shape != (rows,):
        raise InputError(f"{name} of shape {shape(marks)} for {rows} rows", f"shape [{rows}]")
    if marks.is_floating_point() or marks.is_complex() or marks.dtype == torch.bool:
        raise InputError(f"{name} {shape(marks)} of type {marks.dtype}", "integers", "number the classes first")
    return marks.long()


def shape(x: Tensor) -> str:
    """The shape as messages show it: [32, 16]."""
    return str(list(x.shape))
