"""ROC, AUC and the true positive rate at a low false positive rate, with intervals.

One sign convention in the whole audit: a larger score speaks for membership. AUC counts a tie as one half. A
rate that the number of non-members cannot resolve is returned as not measurable, with the reason: with fewer
than 1/t of them, one false positive is already more than t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efface.audit.finding import Estimate
from efface.audit.metrics.intervals import LEVEL, RESAMPLES, bootstrap, clopper_pearson
from efface.errors import InputError

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Roc:
    """The curve from (0, 0) to (1, 1): calling "member" everything with a score >= `threshold[i]`.

    All arrays are [P]; thresholds fall from infinity to the smallest score.
    """

    threshold: Floats
    fpr: Floats
    tpr: Floats


@dataclass(frozen=True)
class TprAtFpr:
    """The largest true positive rate whose false positive rate is at most `target`.

    `estimate` is None when it cannot be measured, and then `reason` says why.
    """

    target: float
    estimate: Estimate | None
    threshold: float | None
    reason: str = ""


def roc_curve(members: npt.ArrayLike, nonmembers: npt.ArrayLike) -> Roc:
    """The ROC of [M] member scores and [N] non-member scores.

    Raises:
        InputError: an empty side or NaN.
    """
    inside, outside = _scores(members, "members"), _scores(nonmembers, "non-members")
    threshold = np.unique(np.concatenate([inside, outside]))[::-1]
    tp = len(inside) - np.searchsorted(np.sort(inside), threshold, side="left")
    fp = len(outside) - np.searchsorted(np.sort(outside), threshold, side="left")
    return Roc(
        threshold=np.concatenate([[np.inf], threshold]),
        fpr=np.concatenate([[0.0], fp / len(outside)]),
        tpr=np.concatenate([[0.0], tp / len(inside)]),
    )


def auc(members: npt.ArrayLike, nonmembers: npt.ArrayLike) -> float:
    """The chance that a random member scores above a random non-member, ties counting one half.

    Raises:
        InputError: an empty side or NaN.
    """
    inside, outside, levels = to_levels(members, nonmembers)
    return float(auc_of_levels(inside[None], outside[None], levels)[0])


def auc_interval(
    members: npt.ArrayLike,
    nonmembers: npt.ArrayLike,
    *,
    seed: int | np.random.Generator = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """AUC with a stratified bootstrap interval; `n` counts both sides. Raises as `auc` does."""
    inside, outside, levels = to_levels(members, nonmembers)

    def statistic(a: Integers, b: Integers) -> Floats:
        return auc_of_levels(a, b, levels)

    return bootstrap(statistic, inside, outside, seed=seed, resamples=resamples, level=level)


def tpr_at_fpr(
    members: npt.ArrayLike, nonmembers: npt.ArrayLike, target: float = 0.01, *, level: float = LEVEL
) -> TprAtFpr:
    """Max TPR with FPR <= target, with a Clopper-Pearson interval over the members.

    The interval holds for the threshold found; it does not carry the noise of finding it. Fewer than 1/target
    non-members give a result without an estimate (1 % needs 100, 0.1 % needs 1000).

    Raises:
        InputError: an empty side, NaN, or a target outside (0, 1).
    """
    if not 0 < target < 1:
        raise InputError(f"a target false positive rate of {target}", "a number between 0 and 1")
    inside, outside = _scores(members, "members"), _scores(nonmembers, "non-members")
    needed = math.ceil(1 / target - 1e-9)
    if len(outside) < needed:
        reason = f"not measurable: {len(outside)} non-members, a false positive rate of {target:g} needs {needed}"
        return TprAtFpr(target=target, estimate=None, threshold=None, reason=reason)
    allowed = math.floor(target * len(outside) + 1e-9)  # false positives
    barrier = np.sort(outside)[::-1][allowed]  # a threshold at or below this score lets too many in
    passed = inside[inside > barrier]
    return TprAtFpr(
        target=target,
        estimate=clopper_pearson(len(passed), len(inside), level=level),
        threshold=float(passed.min()) if len(passed) else None,
        reason="" if len(passed) else "no member scores above the threshold",
    )


def to_levels(members: npt.ArrayLike, nonmembers: npt.ArrayLike) -> tuple[Integers, Integers, int]:
    """Scores as indices of their distinct values: [M], [N] and the number of distinct values.

    Raises:
        InputError: an empty side or NaN.
    """
    inside, outside = _scores(members, "members"), _scores(nonmembers, "non-members")
    values, index = np.unique(np.concatenate([inside, outside]), return_inverse=True)
    flat = index.reshape(-1).astype(np.int64)
    return flat[: len(inside)], flat[len(inside) :], len(values)


def auc_of_levels(members: Integers, nonmembers: Integers, levels: int) -> Floats:
    """AUC of every row of [B, M] and [B, N] levels (`to_levels`) -> [B], in O(B (M + N + levels))."""
    rows = np.arange(len(members))[:, None] * levels
    shape = (len(members), levels)
    inside = np.bincount((rows + members).ravel(), minlength=len(members) * levels).reshape(shape)
    outside = np.bincount((rows + nonmembers).ravel(), minlength=len(members) * levels).reshape(shape)
    below = np.cumsum(outside, axis=1) - 0.5 * outside
    result: Floats = (inside * below).sum(axis=1) / (members.shape[1] * nonmembers.shape[1])
    return result


def _scores(values: npt.ArrayLike, side: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise InputError(f"scores of {side} with shape {list(array.shape)}", "a list of one score or more")
    if np.isnan(array).any():
        raise InputError(f"score {int(np.argmax(np.isnan(array)))} of {side} is not a number", "one number a text")
    return array
