"""The influence bootstrap against plain resampling, and its coverage of the truth."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from efface.measure.estimate import Estimate, estimate, log_mean_estimate, mean_estimate, missing
from efface.numerics.sphere import uniformity, uniformity_rows, unit


def test_a_mean_equals_a_loop_over_the_same_draws() -> None:
    values = np.random.default_rng(1).normal(size=37)
    found = mean_estimate(values, rng=np.random.default_rng(5), resamples=200)
    index = np.random.default_rng(5).integers(0, 37, (200, 37))
    means = sorted(sum(values[i] for i in row) / 37 for row in index)
    assert found.value == pytest.approx(values.mean(), abs=1e-12)
    assert found.low == pytest.approx(np.quantile(means, 0.025), abs=1e-12)
    assert found.high == pytest.approx(np.quantile(means, 0.975), abs=1e-12)
    assert found.n == 37


def test_the_interval_of_uniformity_is_near_that_of_resampled_items() -> None:
    x = unit(torch.randn(150, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.7)
    rng = np.random.default_rng(0)
    found = log_mean_estimate(uniformity_rows(x).numpy(), rng=rng, resamples=2000)
    kernel = np.exp(4 * (x @ x.T).numpy() - 4)
    np.fill_diagonal(kernel, 0)
    draws = []
    for _ in range(2000):
        w = np.bincount(rng.integers(0, 150, 150), minlength=150)
        draws.append(math.log((w @ kernel @ w) / (w.sum() ** 2 - (w**2).sum())))  # pairs of different items only
    low, high = np.quantile(draws, [0.025, 0.975])
    width = high - low
    assert found.value == pytest.approx(float(uniformity(x)), abs=1e-12)
    assert found.low is not None
    assert found.high is not None
    assert abs(found.low - low) < 0.12 * width
    assert abs(found.high - high) < 0.12 * width


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    generator = torch.Generator().manual_seed(2)

    def draw(n: int) -> torch.Tensor:
        return unit(torch.randn(n, 3, generator=generator, dtype=torch.float64) + 0.8)

    truth = float(uniformity(draw(6000)))
    covered = 0
    for _ in range(300):
        found = log_mean_estimate(uniformity_rows(draw(80)).numpy(), rng=rng, resamples=300)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= truth <= found.high
    assert 0.90 <= covered / 300 <= 0.99


def test_what_is_not_finite_has_a_reason_and_fits_in_json() -> None:
    found = estimate(math.nan, [0.0, 1.0], rng=np.random.default_rng(0))
    assert found.value is None
    assert found.reason
    assert missing("no labels", 3).value is None
    assert Estimate(value=math.inf, n=1).value is None
    assert Estimate.model_validate(json.loads(json.dumps(found.model_dump(), allow_nan=False))) == found


def test_one_item_has_no_interval_and_the_seed_decides() -> None:
    single = mean_estimate([0.5], rng=np.random.default_rng(0))
    assert (single.value, single.low, single.high) == (0.5, None, None)
    values = np.random.default_rng(3).normal(size=50)
    first, again, other = (mean_estimate(values, rng=np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first == again
    assert first != other
