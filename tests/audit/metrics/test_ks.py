"""The KS tail against exact rational arithmetic and scipy."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from efface.audit.metrics.ks import ks_two_sample
from efface.errors import InputError


def exact_log10(n: int, h: int) -> float:
    """log10 of the exact p for two samples of n with D = h/n, summed in rationals."""
    total, sign, k = Fraction(0), 1, 1
    while k * h <= n:
        total += sign * Fraction(math.comb(2 * n, n - k * h), math.comb(2 * n, n))
        sign, k = -sign, k + 1
    total *= 2
    return math.log10(total.numerator) - math.log10(total.denominator)


@pytest.mark.parametrize(("n", "expected"), [(40, -22.73), (200, -118.71), (300, -178.8), (400, -238.95)])
def test_complete_separation(n: int, expected: float) -> None:
    test = ks_two_sample(np.arange(n), np.arange(n) + n)
    assert test.log10_p == pytest.approx(exact_log10(n, n), abs=1e-8)
    assert test.log10_p == pytest.approx(expected, abs=0.05)  # 1.9e-23, 1.9e-119, 1.5e-179, 1.1e-239
    assert (test.statistic, test.n, test.m, test.method) == (1.0, n, n, "exact")


def test_separation_of_unequal_samples_and_beyond_the_range_of_doubles() -> None:
    test = ks_two_sample(np.arange(5), np.arange(7) + 9)
    assert test.p == pytest.approx(2 / math.comb(12, 5))
    large = ks_two_sample(np.arange(1000), np.arange(1000) + 2000)
    assert large.log10_p == pytest.approx(math.log10(2) - math.log10(math.comb(2000, 1000)), abs=1e-6)
    assert large.p == 0.0
    assert large.log10_p < -590


def test_a_tail_that_underflows_is_exact_for_equal_samples() -> None:
    n, overlap = 700, 35
    first = np.arange(n, dtype=float)
    test = ks_two_sample(first, first + n - overlap)
    assert test.p < 1e-290
    assert test.log10_p == pytest.approx(exact_log10(n, round(test.statistic * n)), abs=1e-6)


def test_ordinary_values_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    for n, m in [(30, 30), (40, 25), (1, 9)]:
        a, b = rng.normal(size=n), rng.normal(0.7, 1, size=m)
        test, expected = ks_two_sample(a, b), stats.ks_2samp(a, b)
        assert test.p == pytest.approx(expected.pvalue, rel=1e-9)
        assert test.statistic == expected.statistic


def test_unequal_samples_that_underflow_use_the_series() -> None:
    a = np.arange(3000, dtype=float)
    test = ks_two_sample(a, np.concatenate([a[:30], np.full(1470, 1e6)]))
    assert test.method == "asymptotic"
    assert -2000 < test.log10_p < -290


def test_a_decreasing_map_changes_nothing() -> None:
    a, b = np.random.default_rng(1).normal(size=(2, 60))
    assert ks_two_sample(np.exp(-a), np.exp(-b)).p == pytest.approx(ks_two_sample(a, b).p)


def test_a_sample_against_itself_has_p_one() -> None:
    a = np.random.default_rng(2).normal(size=20)
    assert ks_two_sample(a, a).p == 1.0


@pytest.mark.parametrize("bad", [[], [float("nan")], [float("-inf")]])
def test_bad_samples_raise(bad: list[float]) -> None:
    with pytest.raises(InputError):
        ks_two_sample(bad, [1.0])
