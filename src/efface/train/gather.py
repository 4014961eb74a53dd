"""Rows of all processes, with the exact gradient: what lets each process compute its own anchors against everybody's keys.

Each process holds b rows, the whole batch has B = W b. The sum over processes of their local losses then has, after the
sum of the parameters' gradients over processes, the gradient of the one-process loss (InfoNCE core, "local loss").

open_clip's defaults (gather without gradient) and GradCache's distributed loss keep the local part of the gradient only,
so that averaging over processes gives 1/W of what is due from the keys: harmless for Adam, wrong for SGD and LARS. Here
the backward pass adds what every process owes to a row. Where each process's loss is its anchors' *sum* divided by B, the
true gradient is the sum over processes; DDP takes the mean, so the loss is multiplied by W (the engine's `scale`).

The gathers of a step are collectives, forward and backward: every process must make the same ones in the same order, and
its loss must depend on each (multiply by zero where it has no anchors), or the others wait for ever.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from efface.errors import InputError

MAX_DIMENSIONS = 8
DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip
HALVES = (torch.float16, torch.bfloat16)


def processes() -> int:
    """The number of processes of the default group; 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's place in the default group; 0 without one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_rows(x: Tensor) -> Tensor:
    """The rows of all processes in the order of their ranks, with the exact gradient.

    Args:
        x: [b, ...] with the same shape and type on every process, on the backend's device (CUDA for NCCL).

    Returns:
        [B, ...]; this process's rows are `rank() * b` and the b - 1 after it. With one process, `x` itself.

    Raises:
        InputError: shapes or types differ between processes (raised on all of them), or `x` has no rows' dimension.
    """
    _check_rows(x)
    if processes() == 1:
        return x
    _check_equal(x)
    gathered: Tensor = _GatherRows.apply(x)  # type: ignore[no-untyped-call]
    return gathered


def gather_plain(x: Tensor) -> Tensor:
    """As `gather_rows`, without a gradient: for ids, labels, weights and keys that are constants."""
    _check_rows(x)
    if processes() == 1:
        return x
    _check_equal(x)
    return _all_gather(x.detach())


class _GatherRows(torch.autograd.Function):
    """Forward: all_gather. Backward: sum of the gathered gradient over processes, of which each takes its own rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        return _all_gather(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # contributions of many processes are added in float32, whatever the embeddings' type
        total = grad.to(torch.float32) if grad.dtype in HALVES else grad.clone()
        total = total.contiguous()
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
        start = rank() * ctx.rows
        return total[start : start + ctx.rows].to(grad.dtype)


def _all_gather(x: Tensor) -> Tensor:
    mine = x.contiguous()
    parts = [torch.empty_like(mine) for _ in range(processes())]
    dist.all_gather(parts, mine)
    return torch.cat(parts)


def _check_rows(x: Tensor) -> None:
    if x.ndim == 0 or x.ndim > MAX_DIMENSIONS or x.dtype not in DTYPES:
        raise InputError(
            f"cannot gather a tensor of shape {list(x.shape)} and type {x.dtype}",
            f"[b, ...] with at most {MAX_DIMENSIONS} dimensions, real, integer or boolean",
        )


def _check_equal(x: Tensor) -> None:
    """Every process sends its shape and type first: unequal ones would hang or corrupt the gather itself."""
    header = [DTYPES.index(x.dtype), x.ndim, *x.shape, *[0] * (MAX_DIMENSIONS - x.ndim)]
    mine = torch.tensor(header, dtype=torch.int64, device=x.device)
    parts = [torch.empty_like(mine) for _ in range(processes())]
    dist.all_gather(parts, mine)
    found = [(DTYPES[row[0]], row[2 : 2 + row[1]]) for row in torch.stack(parts).tolist()]
    if any(one != found[0] for one in found):
        listed = ", ".join(f"{shape} {str(dtype).removeprefix('torch.')}" for dtype, shape in found)
        raise InputError(
            f"the processes hold tensors that differ in shape or type: {listed} (by rank)",
            "the same on every process",
            "make batch_size a multiple of the number of processes and drop the last incomplete batch",
        )
