"""The two-sample Kolmogorov-Smirnov test with a log10 p-value that does not underflow.

Forget quality is such a p-value: 400 questions that two models answer quite differently give 1e-239, a few
hundred more give a plain 0, which hides how far apart they are. scipy computes the test, this file its tail.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from efface.errors import InputError

EXACT_LIMIT = 10_000  # scipy's own: above this its p-value is asymptotic
SMALLEST = 1e-290  # below this a double loses digits

Method = Literal["exact", "asymptotic"]


@dataclass(frozen=True)
class KsTest:
    """Two-sided: D in [0, 1], p, log10 p, both sample sizes and how p was computed."""

    statistic: float
    p: float
    log10_p: float
    n: int
    m: int
    method: Method


def ks_two_sample(first: npt.ArrayLike, second: npt.ArrayLike) -> KsTest:
    """Compare samples [n] and [m]; unchanged by any increasing or decreasing map of both (ties aside).

    Raises:
        InputError: an empty sample or a value that is not finite.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    for sample in (a, b):
        if sample.ndim != 1 or len(sample) == 0 or not np.isfinite(sample).all():
            raise InputError("a sample that is empty or not finite", "one finite number or more")
    test = stats.ks_2samp(a, b, method="auto")
    statistic = float(test.statistic)
    log10_p, method = _log10_p(float(test.pvalue), statistic, len(a), len(b))
    return KsTest(statistic, 10.0**log10_p, log10_p, len(a), len(b), method)


def _log10_p(p: float, statistic: float, n: int, m: int) -> tuple[float, Method]:
    """log10 of the p-value.

    Complete separation has p = 2 / C(n + m, n) exactly. For n = m and a p that underflows, the first term of
    the exact alternating sum, 2 C(2n, n - h) / C(2n, n) with h = n D, is exact to double precision. Else the
    leading term of Kolmogorov's series, 2 exp(-2 D^2 nm / (n + m)).
    """
    if statistic >= 1.0:
        return (math.log(2) - _log_choose(n + m, n)) / math.log(10), "exact"
    if p > SMALLEST:
        return math.log10(min(p, 1.0)), "exact" if max(n, m) <= EXACT_LIMIT else "asymptotic"
    if n == m:
        h = round(statistic * n)
        return (math.log(2) + _log_choose(2 * n, n - h) - _log_choose(2 * n, n)) / math.log(10), "exact"
    return (math.log(2) - 2 * statistic**2 * n * m / (n + m)) / math.log(10), "asymptotic"


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
