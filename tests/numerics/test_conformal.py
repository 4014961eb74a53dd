"""Conformal thresholds: the order statistic by hand, the promise by simulation, and too few rows."""

from __future__ import annotations

import numpy as np
import pytest

from efface.errors import InputError
from efface.numerics.conformal import class_quantiles, prediction_sets, upper_quantile


def test_the_order_statistic_by_hand() -> None:
    scores = [5.0, 1.0, 4.0, 2.0, 3.0, 9.0, 7.0, 8.0, 6.0]  # n = 9
    assert upper_quantile(scores, 0.1) == 9  # ceil(10 x 0.9) = 9th
    assert upper_quantile(scores, 0.2) == 8
    assert upper_quantile(scores, 0.5) == 5


def test_the_promise_holds_on_average() -> None:
    rng = np.random.default_rng(0)
    rates = [np.mean(rng.exponential(size=200) > upper_quantile(rng.exponential(size=99), 0.05)) for _ in range(2000)]
    assert np.mean(rates) == pytest.approx(0.05, abs=0.003)


def test_too_few_rows_are_refused() -> None:
    assert upper_quantile(range(99), 0.01) == 98
    with pytest.raises(InputError, match="at least 99"):
        upper_quantile(range(98), 0.01)
    with pytest.raises(InputError, match="between 0 and 1"):
        upper_quantile([1.0], 1.0)
    with pytest.raises(InputError, match="finite"):
        upper_quantile([1.0, float("nan")], 0.5)


def test_sets_cover_each_class() -> None:
    rng = np.random.default_rng(1)
    labels = (rng.random(4000) < 0.1).astype(int)  # unbalanced
    logits = rng.normal(size=4000) + 1.5 * labels - 3
    p1 = 1 / (1 + np.exp(-logits))
    p = np.stack([1 - p1, p1], 1)
    fit, new = slice(0, 2000), slice(2000, 4000)
    sets = prediction_sets(p[new], class_quantiles(p[fit], labels[fit], 0.1))
    for k in (0, 1):
        assert sets[labels[new] == k, k].mean() == pytest.approx(0.9, abs=0.05)
    plain = class_quantiles(p[fit], labels[fit], 0.1, by_class=False)
    assert plain[0] == plain[1]
    assert prediction_sets(p[new], plain)[labels[new] == 1, 1].mean() < 0.8  # the rare class is not covered
