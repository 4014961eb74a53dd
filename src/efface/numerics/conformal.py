"""Thresholds with a guarantee: split conformal prediction (Vovk et al. 2005; Angelopoulos and Bates, arXiv 2107.07511).

With n calibration scores that are exchangeable with a new one, the new score lies above the k-th smallest,
k = ceil((n + 1)(1 - a)), with probability at most a.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from efface.errors import InputError

Floats = npt.NDArray[np.float64]


def upper_quantile(scores: npt.ArrayLike, level: float) -> float:
    """The k-th smallest score, k = ceil((n + 1)(1 - level)): a new one exceeds it with probability at most `level`.

    Args:
        scores: [n] of calibration rows that are to stay below.
        level: a, in (0, 1).

    Raises:
        InputError: n + 1 < 1 / level (no threshold has the guarantee), a level outside (0, 1), scores that are not finite.
    """
    values = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    if not 0 < level < 1:
        raise InputError(f"a level of {level}", "a number between 0 and 1")
    if not len(values) or not np.isfinite(values).all():
        raise InputError(f"{len(values)} calibration scores, or one that is not finite", "finite scores")
    k = math.ceil((len(values) + 1) * (1 - level) - 1e-9)
    if k > len(values):
        raise InputError(
            f"{len(values)} calibration rows for a rate of {level:g}", f"at least {math.ceil(1 / level - 1e-9) - 1}",
            "give more rows, or allow a higher rate",
        )  # fmt: skip
    return float(values[k - 1])


def prediction_sets(probabilities: npt.ArrayLike, quantiles: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """[n, K] which classes lie in each row's conformal set: 1 - p_k <= q_k.

    Args:
        probabilities: [n, K].
        quantiles: [K], of 1 - p_y on calibration rows (one for all classes, or one a class where they are unbalanced).
    """
    p, q = np.asarray(probabilities, dtype=np.float64), np.asarray(quantiles, dtype=np.float64)
    if p.ndim != 2 or q.shape != (p.shape[1],):
        raise InputError(f"probabilities {list(p.shape)} and quantiles {list(q.shape)}", "[n, K] and [K]")
    return np.asarray(1 - p <= q)


def class_quantiles(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, level: float, *, by_class: bool = True
) -> Floats:
    """[K] quantiles of 1 - p_y over calibration rows, of each class on its own or of all together.

    Raises:
        InputError: a class without enough rows for the level.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    scores = 1 - p[np.arange(len(y)), y]
    if not by_class:
        return np.full(p.shape[1], upper_quantile(scores, level))
    return np.array([upper_quantile(scores[y == k], level) for k in range(p.shape[1])])
