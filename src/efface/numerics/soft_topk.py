"""Soft top-k: a threshold such that the sigmoids of the scores add up to k, differentiable by the implicit function theorem.

Paper: DEXML, arXiv 2310.10636. For a row of scores s find t with sum_l sigma(a (s_l + t)) = k; p_l = sigma(a (s_l + t)). Forward:
bisection without gradient. Backward, with the gradient g on log p, u = a g (1 - p) and v = p (1 - p): ds = u - v sum(u) / sum(v);
on p itself u = a g p (1 - p).

Departure from the official code: it looks for t between -max s - 10 / a and -min s + 10 / a, which misses t where more than
22,000 k labels have nearly the largest score (n sigma(-10) > k). With n labels, t lies between logit(k / n) / a - max s and
logit(k / n) / a - min s, always; that interval is taken. Arithmetic is in float32 or better.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import logsigmoid

from efface.errors import InputError

Reduce = Callable[[Tensor], Tensor]
"""[Q] of this shard to [Q] over all shards."""
TINY = 1e-12


def same(x: Tensor) -> Tensor:
    """The reduction over a single shard."""
    return x


def soft_topk(
    s: Tensor, k: Tensor | float, alpha: float = 2.0, *, iterations: int = 32, log: bool = True, total: Reduce = same,
    largest: Reduce = same,
) -> Tensor:  # fmt: skip
    """log p [Q, L], or p with `log=False`; each row of p over all shards sums to its k.

    Args:
        s: [Q, L] scores, with gradient; -inf leaves a label out (p = 0).
        k: a number, or [Q].
        alpha: sharpness.
        iterations: halvings of the interval; its width shrinks to (max s - min s) / 2^iterations.
        total, largest: sum and maximum over shards where each holds some of the labels; called in the same order everywhere.

    Raises:
        InputError: no matrix, NaN or +inf, alpha that is not above 0, or a k that no threshold reaches: not above 0 or not
            below the row's number of labels.
    """
    if s.ndim != 2 or not s.is_floating_point() or bool((s.isnan() | (s == torch.inf)).any()):
        raise InputError(
            f"scores of shape {list(s.shape)} and type {s.dtype}", "real numbers [Q, L], -inf for no label"
        )
    if not alpha > 0:
        raise InputError(f"alpha={alpha}", "a number above 0")
    wide = s if s.dtype == torch.float64 else s.float()
    goal = torch.as_tensor(k, dtype=wide.dtype, device=s.device).expand(len(s))
    counts = total((s.detach() > -torch.inf).sum(1).to(wide.dtype))
    wrong = (goal <= 0) | (goal >= counts)
    if bool(wrong.any()):
        row = int(wrong.int().argmax())
        raise InputError(
            f"k={float(goal[row]):g} of {int(counts[row])} labels in row {row}: no threshold gives that",
            "0 < k < number of labels", "lower k, or put more labels into the loss",
        )  # fmt: skip
    found: Tensor = _SoftTopK.apply(wide, goal, counts, alpha, iterations, log, total, largest)  # type: ignore[no-untyped-call]
    return found


class _SoftTopK(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, s: Tensor, k: Tensor, counts: Tensor, alpha: float, iterations: int, log: bool, total: Reduce,
        largest: Reduce,
    ) -> Tensor:  # fmt: skip
        nothing = s == -torch.inf
        empty = s.shape[1] == 0
        high = largest(s.new_full((len(s),), -torch.inf) if empty else s.amax(1))
        low = -largest(s.new_full((len(s),), -torch.inf) if empty else (-s.masked_fill(nothing, torch.inf)).amax(1))
        middle = torch.logit(k / counts) / alpha
        lower, upper = middle - high, middle - low
        for _ in range(iterations):
            t = (lower + upper) / 2
            below = total(torch.sigmoid(alpha * (s + t[:, None])).sum(1)) < k
            lower, upper = torch.where(below, t, lower), torch.where(below, upper, t)
        x = alpha * (s + ((lower + upper) / 2)[:, None])
        ctx.save_for_backward(x)
        ctx.alpha, ctx.log, ctx.total = alpha, log, total
        return logsigmoid(x) if log else torch.sigmoid(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        (x,) = ctx.saved_tensors
        p, q = torch.sigmoid(x), torch.sigmoid(-x)
        v = p * q
        u = ctx.alpha * grad * (q if ctx.log else v)
        sum_u, sum_v = ctx.total(u.sum(1)), ctx.total(v.sum(1))
        # where every p is saturated sum v vanishes, and with it the effect of t
        return u - v * (sum_u / sum_v.clamp(min=TINY))[:, None], None, None, None, None, None, None, None


__all__ = ["Reduce", "same", "soft_topk"]
