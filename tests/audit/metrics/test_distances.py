"""Distances of samples: known values, the order of rows, and what cannot be compared."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.audit.metrics.distances import entropy_difference, histograms, jensen_shannon, wasserstein
from efface.errors import InputError

samples = st.lists(st.floats(-50, 50), min_size=1, max_size=40)


def test_apart_and_identical() -> None:
    a, b = np.zeros(5), np.ones(7)
    assert jensen_shannon(a, b) == pytest.approx(1.0)
    assert wasserstein(a, b) == pytest.approx(1.0)
    assert jensen_shannon(a, a) == wasserstein(a, a) == entropy_difference(a, a) == 0.0


def test_against_plain_sums() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=300), rng.normal(1.0, 2.0, size=200)
    p, q = histograms(a, b, bins=10)
    m = (p + q) / 2
    js = sum(0.5 * x * np.log2(x / z) for x, z in zip(p, m, strict=True) if x)
    js += sum(0.5 * y * np.log2(y / z) for y, z in zip(q, m, strict=True) if y)
    assert jensen_shannon(a, b, bins=10) == pytest.approx(js)
    h = [-sum(x * np.log2(x) for x in side if x) for side in (p, q)]
    assert entropy_difference(a, b, bins=10) == pytest.approx(h[0] - h[1])
    grid = np.sort(np.concatenate([a, b]))
    cdf = [np.searchsorted(np.sort(side), grid[:-1], side="right") / len(side) for side in (a, b)]
    assert wasserstein(a, b) == pytest.approx(float((np.abs(cdf[0] - cdf[1]) * np.diff(grid)).sum()))


@given(samples, samples)
def test_order_does_not_count_and_neither_side_is_first(a: list[float], b: list[float]) -> None:
    """The official script's figure changes when a list is shuffled: it takes unpaired lists for probability vectors."""
    assert jensen_shannon(a, b) == pytest.approx(jensen_shannon(a[::-1], sorted(b)), abs=1e-12)
    assert jensen_shannon(a, b) == pytest.approx(jensen_shannon(b, a), abs=1e-12)
    assert 0 <= jensen_shannon(a, b) <= 1 + 1e-12
    assert wasserstein(a, b) == pytest.approx(wasserstein(b, sorted(a)), abs=1e-9)


@pytest.mark.parametrize("bad", [[], [np.nan], [np.inf]])
def test_what_cannot_be_compared(bad: list[float]) -> None:
    for distance in (jensen_shannon, wasserstein, entropy_difference):
        with pytest.raises(InputError):
            distance(bad, [1.0])
