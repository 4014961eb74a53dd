"""Oracles and edge cases of the interval functions."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from efface.audit.metrics.intervals import bootstrap, bootstrap_mean, clopper_pearson, holm
from efface.errors import InputError


def test_bootstrap_of_a_mean_equals_a_loop_over_the_same_draws() -> None:
    values = np.random.default_rng(1).normal(size=37)
    estimate = bootstrap_mean(values, seed=5, resamples=200)
    rng = np.random.default_rng(5)
    index = rng.integers(0, 37, (200, 37))
    means = sorted(sum(values[i] for i in row) / 37 for row in index)
    assert estimate.value == pytest.approx(sum(values) / 37, abs=1e-12)
    assert estimate.low == pytest.approx(np.quantile(means, 0.025), abs=1e-12)
    assert estimate.high == pytest.approx(np.quantile(means, 0.975), abs=1e-12)
    assert estimate.n == 37


def test_the_interval_of_a_mean_is_near_the_normal_one() -> None:
    values = np.random.default_rng(2).normal(3.0, 2.0, size=900)
    estimate = bootstrap_mean(values)
    half = 1.96 * values.std() / 30
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.015)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.015)


def test_the_seed_decides_the_interval() -> None:
    values = np.random.default_rng(3).normal(size=50)
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(values, seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_two_samples_are_resampled_apart() -> None:
    a, b = np.random.default_rng(4).normal(size=(2, 40))
    estimate = bootstrap(lambda x, y: x.mean(1) - y.mean(1), a, b, seed=9, resamples=100)
    rng = np.random.default_rng(9)
    first, second = rng.integers(0, 40, (100, 40)), rng.integers(0, 40, (100, 40))
    gaps = [a[i].mean() - b[j].mean() for i, j in zip(first, second, strict=True)]
    assert estimate.low == pytest.approx(np.quantile(gaps, 0.025), abs=1e-12)
    assert estimate.n == 80


def test_chunks_do_not_change_the_number_of_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def statistic(x: np.ndarray) -> np.ndarray:
        seen.append(len(x))
        return x.mean(axis=1)

    monkeypatch.setattr("efface.audit.metrics.intervals.CHUNK", 90)
    bootstrap(statistic, np.arange(20.0), resamples=11)
    assert seen == [1, 4, 4, 3]


def test_groups_widen_the_interval_of_clustered_data() -> None:
    rng = np.random.default_rng(6)
    keys = np.repeat(np.arange(15), 20)
    values = rng.normal(size=15)[keys] + 0.1 * rng.normal(size=300)
    plain = bootstrap_mean(values)
    grouped = bootstrap_mean(values, groups=keys.tolist())
    assert grouped.value == plain.value
    assert grouped.high - grouped.low > 3 * (plain.high - plain.low)


def test_ragged_groups_equal_a_loop() -> None:
    values = np.arange(6.0)
    keys = ["a", "b", "a", "c", "c", "c"]
    blocks = [[0, 2], [1], [3, 4, 5]]
    rng = np.random.default_rng(8)
    means = [values[[row for i in rng.integers(0, 3, 3) for row in blocks[i]]].mean() for _ in range(300)]
    estimate = bootstrap_mean(values, groups=keys, seed=8, resamples=300)
    assert estimate.low == pytest.approx(np.quantile(means, 0.025), abs=1e-12)
    assert estimate.high == pytest.approx(np.quantile(means, 0.975), abs=1e-12)


def test_one_example_has_no_interval_and_constant_data_a_point() -> None:
    single = bootstrap_mean([0.3])
    assert (single.value, single.low, single.high, single.n) == (0.3, None, None, 1)
    assert bootstrap_mean([1.0, 2.0], groups=["x", "x"]).low is None
    constant = bootstrap_mean([0.1] * 7)
    assert constant.low == constant.high == constant.value


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")], [1.0, float("inf")]])
def test_bad_samples_raise(bad: list[float]) -> None:
    with pytest.raises(InputError):
        bootstrap_mean(bad)


def test_bad_groups_and_levels_raise() -> None:
    with pytest.raises(InputError, match="group keys"):
        bootstrap_mean([1.0, 2.0], groups=["a"])
    with pytest.raises(InputError, match="level"):
        bootstrap_mean([1.0, 2.0], level=1.0)


def test_a_mean_over_400_rows_takes_under_50_ms() -> None:
    values = np.random.default_rng(7).normal(size=400)
    best = min(_seconds(values) for _ in range(5))
    assert best < 0.05


def _seconds(values: np.ndarray) -> float:
    start = time.process_time()
    bootstrap_mean(values)
    return time.process_time() - start


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (1, 400)])
def test_clopper_pearson_inverts_the_binomial_tails(successes: int, trials: int) -> None:
    estimate = clopper_pearson(successes, trials)
    assert estimate.value == successes / trials
    if successes:
        assert stats.binom.sf(successes - 1, trials, estimate.low) == pytest.approx(0.025, abs=1e-9)
    else:
        assert estimate.low == 0
    if successes < trials:
        assert stats.binom.cdf(successes, trials, estimate.high) == pytest.approx(0.025, abs=1e-9)
    else:
        assert estimate.high == 1


def test_clopper_pearson_refuses_impossible_counts() -> None:
    with pytest.raises(InputError):
        clopper_pearson(3, 2)
    with pytest.raises(InputError):
        clopper_pearson(0, 0)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]).tolist() == []
    with pytest.raises(InputError):
        holm([0.2, 1.2])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(deadline=None)
def test_holm_equals_a_loop(p: list[float]) -> None:
    order = sorted(range(len(p)), key=lambda i: p[i])
    expected, highest = [0.0] * len(p), 0.0
    for step, i in enumerate(order):
        highest = max(highest, (len(p) - step) * p[i])
        expected[i] = min(1.0, highest)
    assert holm(p) == pytest.approx(expected)
