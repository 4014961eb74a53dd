"""Balanced assignment and entropic optimal transport in log space.

`balanced_codes` is the balanced soft assignment of rows to prototypes (Cuturi, arXiv 1306.0895; SwAV, arXiv 2006.09882,
section 3.1; DyCE, arXiv 2402.02444): each prototype in turn gets an equal share of all rows, then each row is spread to a
sum of one. exp(s / eps) would overflow half precision at eps = 0.05 and float32 at eps = 0.01: here nothing is
exponentiated before the last line, so that every eps above zero means what it says. `entropic_plan` is the transport plan
between two weighted sets, from POT.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from efface.errors import InputError


def balanced_codes(scores: Tensor, *, eps: float, iterations: int = 3, across: bool = False) -> Tensor:
    """Soft assignments of rows to prototypes that share the rows evenly, [n, K] without gradient.

    Every row sums to one, whatever the iterations; the columns sum to N / K in the limit of many.

    Args:
        scores: [n, K], the larger the closer (a cosine, or minus a distance).
        eps: strength of the entropy, in units of the scores; the smaller, the harder the assignment.
        iterations: passes over columns and rows.
        across: the rows of all processes are shared out together: every process gives its own rows (their number may
            differ) and gets their codes. It is a collective: all must call it. Without a process group, no difference.

    Returns:
        of the scores' type; half precision is widened to float32.

    Raises:
        InputError: no matrix, no row, values that are not finite, eps not above 0, iterations below 1.
    """
    _check_scores(scores, eps, iterations)
    with torch.no_grad(), torch.autocast(scores.device.type, enabled=False):
        wide = scores.detach().to(torch.float64 if scores.dtype == torch.float64 else torch.float32)
        log_codes = wide / eps
        for _ in range(iterations):
            # the constants 1 / K and 1 / N of the two marginals cancel in the rows' normalisation
            log_codes = log_codes - _column_lse(log_codes, across)
            log_codes = log_codes - log_codes.logsumexp(1, keepdim=True)
        return log_codes.exp()


def _column_lse(values: Tensor, across: bool) -> Tensor:
    """[K] log-sum-exp over the rows, of all processes where asked for."""
    if not across or not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return values.logsumexp(0)
    highest = values.amax(0)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    total = (values - highest).exp().sum(0)
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return highest + total.log()


def soft_cross_entropy(targets: Tensor, logits: Tensor) -> Tensor:
    """-sum_k targets[b, k] log softmax(logits[b])_k -> [b], in float32 or wider; no gradient into the targets.

    Args:
        targets: [b, K], rows that sum to one.
        logits: [b, K].

    Raises:
        InputError: shapes that differ.
    """
    if targets.ndim != 2 or targets.shape != logits.shape:
        raise InputError(
            f"targets of shape {list(targets.shape)} for logits of shape {list(logits.shape)}", "one shape [b, K]"
        )
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -(targets.detach().to(wide) * wide.log_softmax(1)).sum(1)


def entropic_plan(
    cost: np.ndarray, *, eps: float, rows: np.ndarray | None = None, columns: np.ndarray | None = None,
    iterations: int = 1000, tolerance: float = 1e-4,
) -> np.ndarray:  # fmt: skip
    """The plan [n, m] that moves the masses `rows` to `columns` at the smallest cost minus eps times its entropy.

    Args:
        cost: [n, m].
        eps: strength of the entropy, in units of the cost.
        rows, columns: positive masses [n] and [m] of equal sum; they are scaled to sum to one. Default: even.
        iterations: at most this many.
        tolerance: stop where the plan's column sums are this near to `columns`, in Euclidean norm.

    Returns:
        float64, summing to one.

    Raises:
        InputError: shapes that do not fit, values that are not finite, eps not above 0, masses that are not positive or of
            unequal sum.
    """
    import ot  # slow to import, and only few-shot episodes need it

    table = np.asarray(cost, dtype=np.float64)
    if table.ndim != 2 or 0 in table.shape or not np.isfinite(table).all():
        raise InputError(f"a cost of shape {list(table.shape)}", "finite numbers [n, m]")
    _check_eps(eps)
    masses = [_masses(given, count) for given, count in zip((rows, columns), table.shape, strict=True)]
    if rows is not None and columns is not None and not math.isclose(np.sum(rows), np.sum(columns), rel_tol=1e-6):
        raise InputError(f"masses that sum to {np.sum(rows):g} and {np.sum(columns):g}", "equal sums")
    plan: np.ndarray = ot.bregman.sinkhorn_log(
        masses[0], masses[1], table, eps, numItermax=iterations, stopThr=tolerance, warn=False
    )
    return plan


def _masses(given: np.ndarray | None, count: int) -> np.ndarray:
    found = np.full(count, 1 / count) if given is None else np.asarray(given, dtype=np.float64)
    if found.shape != (count,) or not (np.isfinite(found).all() and (found > 0).all()):
        raise InputError(f"masses of shape {list(found.shape)}", f"{count} positive numbers", "drop rows without mass")
    scaled: np.ndarray = found / found.sum()
    return scaled


def _check_scores(scores: Tensor, eps: float, iterations: int) -> None:
    if scores.ndim != 2 or 0 in scores.shape or not scores.is_floating_point():
        raise InputError(f"scores of shape {list(scores.shape)} and type {scores.dtype}", "real [n, K]")
    if not bool(torch.isfinite(scores.detach()).all()):
        raise InputError("scores that are not finite", "finite numbers", "look at the embeddings")
    _check_eps(eps)
    if iterations < 1:
        raise InputError(f"{iterations} iterations", "1 or more")


def _check_eps(eps: float) -> None:
    if not (math.isfinite(eps) and eps > 0):
        raise InputError(f"eps = {eps}", "a number above 0")
