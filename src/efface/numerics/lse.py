"""Log-sum-exp over the rows and columns of scale * Q K^T without holding the matrix: exact, memory linear in B.

The forward pass keeps a sum (and maximum) for each row only; the backward pass computes each tile again:
p_ij = exp(s_ij - lse_i), dq_i = scale * sum_j g_i p_ij k_j, dscale = sum_ij g_i p_ij <q_i, k_j>.

Paper: Inf-CL, Cheng et al., arXiv 2410.17243. Departures from the official code: plain torch on any device, in place of
GPU kernels; masks and float64; one product serves rows and columns; of a symmetric matrix only the upper tiles are
computed; and where |s| is bounded (unit rows), a constant shift replaces the running maximum, and the sums prove that it
was enough. Passing blocks between processes (the paper's ring) is not done here.

Arithmetic is in float32 (float64 for float64 inputs), inside autocast too; gradients come back in the input's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from efface.errors import InputError
from efface.numerics.masks import Mask, Shifted, slices

CPU_TILE, SELF_TILE, GPU_TILE = 1024, 512, 4096
"""Sides of a tile: on the CPU it stays in the cache (smaller where half the tiles are left out), on the GPU it fills it."""


def lse_rows(
    q: Tensor, k: Tensor, scale: float | Tensor, *, exclude: Mask | None = None, tile: int | None = None
) -> Tensor:
    """logsumexp_j scale * <q_i, k_j> over the j that are not excluded, [B].

    Args:
        q: [B, D].
        k: [M, D].
        scale: one over the temperature; a tensor [] may require a gradient.
        exclude: pairs of the [B, M] matrix to leave out.
        tile: side of a tile; default: by device. The result does not depend on it beyond rounding.

    Raises:
        InputError: shapes that do not fit, values that are not finite, or a row without any candidate.
    """
    q, k, factor = _inputs(q, k, scale)
    found: tuple[Tensor] = _Lse.apply(q, k, factor, _Plan(q, k, exclude, tile, "rows"))  # type: ignore[no-untyped-call]
    return found[0]


def lse_both(
    q: Tensor, k: Tensor, scale: float | Tensor, *, exclude: Mask | None = None, tile: int | None = None
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of the rows [B] and of the columns [M] of the same matrix; see `lse_rows`.

    Raises:
        InputError: as `lse_rows`, and for a column without any candidate.
    """
    q, k, factor = _inputs(q, k, scale)
    found: tuple[Tensor, Tensor] = _Lse.apply(q, k, factor, _Plan(q, k, exclude, tile, "both"))  # type: ignore[no-untyped-call]
    return found


def lse_self(z: Tensor, scale: float | Tensor, *, exclude: Mask | None = None, tile: int | None = None) -> Tensor:
    """logsumexp over j != i of scale * <z_i, z_j>, [N]: `lse_rows` with q = k = z at half the work.

    Args:
        z: [N, D].
        scale: as in `lse_rows`.
        exclude: more pairs to leave out beside the self pairs; must be symmetric.
        tile: side of a tile.

    Raises:
        InputError: as `lse_rows`, and for a mask that is not symmetric.
    """
    z, _, factor = _inputs(z, z, scale)
    mask = Shifted() if exclude is None else exclude | Shifted()
    found: tuple[Tensor] = _Lse.apply(z, z, factor, _Plan(z, z, mask, tile, "self"))  # type: ignore[no-untyped-call]
    return found[0]


class _Plan:
    """How the matrix is walked: tiles, mask, and which sums are wanted ("rows", "both", or "self")."""

    def __init__(self, q: Tensor, k: Tensor, exclude: Mask | None, tile: int | None, wanted: str) -> None:
        if exclude is not None:
            exclude.check(len(q), len(k))
        side = tile if tile is not None else GPU_TILE if q.is_cuda else SELF_TILE if wanted == "self" else CPU_TILE
        self.row_tiles, self.col_tiles = list(slices(len(q), side)), list(slices(len(k), side))
        self.exclude, self.wanted = exclude, wanted
        self.doubtful = wanted == "self" and exclude is not None and not exclude.symmetric()

    def buffer(self, like: Tensor) -> Tensor:
        """Room for one tile."""
        return like.new_empty(self.row_tiles[0].stop * self.col_tiles[0].stop)

    def scores(self, q: Tensor, k: Tensor, scale: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """(rows, columns, s [r, c]) of every tile, excluded pairs at -inf; s is one buffer, overwritten each time."""
        flat = self.buffer(q)
        for i, rows in enumerate(self.row_tiles):
            scaled = q[rows] * scale
            for cols in self.col_tiles[i if self.wanted == "self" else 0 :]:
                s = _shaped(flat, rows, cols)
                torch.mm(scaled, k[cols].t(), out=s)
                if self.exclude is not None and not self.exclude.empty(rows, cols):
                    s.masked_fill_(self.exclude.tile(rows, cols, q.device), -math.inf)
                yield rows, cols, s

    def mirrored(self, rows: slice, cols: slice) -> bool:
        """Whether sums over the rows of this tile are wanted too (for "self" they belong to the tile below the diagonal)."""
        return self.wanted == "both" or (self.wanted == "self" and rows != cols)

    def refuse_asymmetry(self, device: torch.device) -> None:
        """Compares every tile of a mask that may not be symmetric with its mirror image."""
        assert self.exclude is not None
        for i, rows in enumerate(self.row_tiles):
            for cols in self.row_tiles[i:]:
                tile, mirror = self.exclude.tile(rows, cols, device), self.exclude.tile(cols, rows, device)
                if not torch.equal(tile, mirror.t()):
                    raise InputError("a mask that is not symmetric", "(j, i) excluded wherever (i, j) is")


@dataclass
class _Sums:
    """sum_j exp(s_ij - top_i) of N rows or columns: `top` is [N], or one number for all; `total` is [N]."""

    top: Tensor | float
    total: Tensor

    def lse(self) -> Tensor:
        return self.total.log().add_(self.top)

    def minus_top(self, s: Tensor, part: slice, dim: int) -> Tensor:
        """Subtract `top` from the tile in place; `dim` is the one that the sum runs over."""
        if isinstance(self.top, Tensor):
            return s.sub_(self.top[part].unsqueeze(dim))
        return s.sub_(self.top) if self.top else s

    def take(self, s: Tensor, work: Tensor, part: slice, dim: int) -> None:
        """Take in the tile `s`, moving the maximum where it grows; `work` is overwritten."""
        assert isinstance(self.top, Tensor)
        top = torch.maximum(self.top[part], s.amax(dim))
        shift = top.masked_fill(top == -math.inf, 0)  # nothing but excluded pairs so far: exp(-inf - 0) = 0
        torch.sub(s, shift.unsqueeze(dim), out=work).exp_()
        self.total[part] = self.total[part] * (self.top[part] - shift).exp_() + work.sum(dim)
        self.top[part] = top


class _Lse(torch.autograd.Function):
    """(lse of rows,) or (lse of rows, lse of columns)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, scale: Tensor, plan: _Plan) -> tuple[Tensor, ...]:
        with torch.autocast(q.device.type, enabled=False):
            if plan.doubtful:
                plan.refuse_asymmetry(q.device)
            sums = _by_constant_shift(q, k, scale, plan) or _by_running_maximum(q, k, scale, plan)
        ctx.save_for_backward(q, k, scale)
        ctx.plan, ctx.sums = plan, sums
        return tuple(one.lse() for one in sums)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        if torch.is_grad_enabled():  # create_graph: what follows is no function of q, k and scale to autograd
            raise InputError(
                "a second derivative of a tiled log-sum-exp", "first derivatives only", "leave create_graph off"
            )
        q, k, scale = ctx.saved_tensors
        need_q, need_k, need_scale, _ = ctx.needs_input_grad
        alike = ctx.plan.wanted == "self"
        by_q = torch.zeros_like(q) if need_q or need_scale else None
        by_k = by_q if alike else torch.zeros_like(k) if need_k else None
        with torch.autocast(q.device.type, enabled=False):
            if ctx.plan.wanted == "rows":
                _row_gradients(q, k, scale, ctx.plan, ctx.sums[0], grads[0], by_q, by_k)
            else:
                _pair_gradients(q, k, scale, ctx.plan, ctx.sums, grads, by_q, by_k)
        by_scale = None
        if need_scale:  # sum_ij w_ij <q_i, k_j>; of a symmetric matrix every pair is met from both ends
            assert by_q is not None
            by_scale = torch.linalg.vecdot(q, by_q).sum() * (0.5 if alike else 1)
        d_q = by_q.mul_(scale) if need_q and by_q is not None else None
        d_k = by_k.mul_(scale) if by_k is not None and not alike else None
        return d_q, d_k, by_scale, None


def _by_constant_shift(q: Tensor, k: Tensor, scale: Tensor, plan: _Plan) -> tuple[_Sums, ...] | None:
    """One exp serves rows and columns and no maximum is sought; None where that would cost precision."""
    shift = _shift(q, k, scale)
    if shift is None:
        return None
    by_row = q.new_zeros(len(q))
    by_col = by_row if plan.wanted == "self" else q.new_zeros(len(k))
    for rows, cols, s in plan.scores(q, k, scale):
        if shift:
            s.sub_(shift)
        s.exp_()
        by_row[rows] += s.sum(1)
        if plan.mirrored(rows, cols):
            by_col[cols] += s.sum(0)
    totals = (by_row, by_col) if plan.wanted == "both" else (by_row,)
    # what underflowed is at most tiny * (terms of a sum), and that must stay below the sum's own rounding
    limits = torch.finfo(q.dtype)
    lost = max(len(q), len(k)) * limits.tiny
    if min(float(total.min()) for total in totals) < lost / (limits.eps / 16):
        return None
    return tuple(_Sums(shift, total) for total in totals)


def _by_running_maximum(q: Tensor, k: Tensor, scale: Tensor, plan: _Plan) -> tuple[_Sums, ...]:
    """The maximum and the sum of every row (and column) are carried from tile to tile."""
    by_row = _Sums(q.new_full((len(q),), -math.inf), q.new_zeros(len(q)))
    by_col = by_row if plan.wanted == "self" else _Sums(q.new_full((len(k),), -math.inf), q.new_zeros(len(k)))
    flat = plan.buffer(q)
    for rows, cols, s in plan.scores(q, k, scale):
        work = _shaped(flat, rows, cols)
        by_row.take(s, work, rows, 1)
        if plan.mirrored(rows, cols):
            by_col.take(s, work, cols, 0)
    sums = (by_row, by_col) if plan.wanted == "both" else (by_row,)
    for one, name in zip(sums, ("rows", "columns"), strict=False):
        bad = int((one.total == 0).sum())
        if bad:
            raise InputError(
                f"{bad} of {len(one.total)} {name} have no candidate: every pair is excluded", "one pair or more in each",
                "exclude less, or leave these out",
            )  # fmt: skip
    return sums


def _row_gradients(
    q: Tensor,
    k: Tensor,
    scale: Tensor,
    plan: _Plan,
    sums: _Sums,
    grad: Tensor,
    by_q: Tensor | None,
    by_k: Tensor | None,
) -> None:
    """Adds sum_j w_ij k_j to `by_q` and sum_i w_ij q_i to `by_k`, w_ij = g_i p_ij.

    With e_ij = exp(s_ij - top_i) and a_i = g_i / sum_j e_ij, w_ij = a_i e_ij: a_i goes to the rows of the factors, so
    that nothing but the exponential is computed for each pair.
    """
    share = (grad / sums.total)[:, None]
    for rows, cols, s in plan.scores(q, k, scale):
        e = sums.minus_top(s, rows, 1).exp_()
        if by_q is not None:
            by_q[rows].addmm_(e, k[cols])
        if by_k is not None:
            by_k[cols].addmm_(e.t(), q[rows] * share[rows])
    if by_q is not None:
        by_q.mul_(share)


def _pair_gradients(
    q: Tensor, k: Tensor, scale: Tensor, plan: _Plan, sums: tuple[_Sums, ...], grads: tuple[Tensor, ...],
    by_q: Tensor | None, by_k: Tensor | None,
) -> None:  # fmt: skip
    """As `_row_gradients` with w_ij = g_i p_ij + h_j p'_ij, p' over the columns; for "self" h = g and p'_ij = p_ji."""
    row, col = sums[0], sums[-1]
    row_share, col_share = grads[0] / row.total, grads[-1] / col.total
    shared = not isinstance(row.top, Tensor)  # then one exponential serves both
    flat = plan.buffer(q)
    for rows, cols, s in plan.scores(q, k, scale):
        work, a, b = _shaped(flat, rows, cols), row_share[rows, None], col_share[None, cols]
        if shared:
            w = row.minus_top(s, rows, 1).exp_().mul_(torch.add(a, b, out=work))
        else:
            torch.exp(col.minus_top(work.copy_(s), cols, 0), out=work).mul_(b)
            w = row.minus_top(s, rows, 1).exp_().mul_(a).add_(work)
        if by_q is not None:
            by_q[rows].addmm_(w, k[cols])
        if by_k is not None and (by_k is not by_q or rows != cols):
            by_k[cols].addmm_(w.t(), q[rows])


def _shift(q: Tensor, k: Tensor, scale: Tensor) -> float | None:
    """What to subtract from every s so that no sum overflows; None where |s| is too wide for one number.

    |s_ij| <= |scale| max |q_i| max |k_j| (Cauchy and Schwarz). An exponential may reach the root of the largest number;
    the other half of the range is for the number of terms and for the gradient's products.
    """
    bound = float(scale.abs() * _longest(q, "first") * _longest(k, "second"))
    if not math.isfinite(bound):
        raise InputError(
            f"a scale of {float(scale)} and similarities up to {bound}", "finite ones", "normalise the rows"
        )
    room = 0.5 * math.log(torch.finfo(q.dtype).max)
    return max(0.0, bound - room) if bound < 4 * room else None


def _longest(x: Tensor, name: str) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(x, dim=1)
    longest = norms.max()
    if not math.isfinite(longest):
        bad = int((~norms.isfinite()).sum())
        raise InputError(
            f"{bad} of the {len(x)} {name} embeddings are not finite", "finite numbers",
            "look for a diverged model, or an overflow in half precision",
        )  # fmt: skip
    return longest


def _inputs(q: Tensor, k: Tensor, scale: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Checked, and in the dtype of the arithmetic."""
    for name, x in (("first", q), ("second", k)):
        if not x.is_floating_point() or x.ndim != 2 or 0 in x.shape:
            given = f"{name} embeddings of shape {list(x.shape)} and dtype {str(x.dtype).removeprefix('torch.')}"
            raise InputError(given, "a floating-point tensor [N, D] with one row or more")
    if q.shape[1] != k.shape[1] or q.device != k.device:
        raise InputError(
            f"embeddings of shapes {list(q.shape)} on {q.device} and {list(k.shape)} on {k.device}",
            "the same width and device",
        )
    dtype = torch.float64 if torch.float64 in (q.dtype, k.dtype) else torch.float32
    factor = torch.as_tensor(scale, dtype=dtype)  # of a Python float too: the default type would round it to float32
    if factor.ndim != 0:
        raise InputError(f"a scale of shape {list(factor.shape)}", "a number or a tensor of shape []")
    return q.to(dtype), k.to(dtype), factor.to(q.device)


def _shaped(flat: Tensor, rows: slice, cols: slice) -> Tensor:
    r, c = rows.stop - rows.start, cols.stop - cols.start
    return flat[: r * c].view(r, c)
