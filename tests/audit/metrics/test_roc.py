"""AUC, ROC and low false positive rates against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.audit.metrics.roc import auc, auc_interval, roc_curve, tpr_at_fpr
from efface.errors import InputError

scores = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=25)


@given(scores, scores)
@settings(deadline=None)
def test_auc_counts_pairs_with_ties_as_half(members: list[float], nonmembers: list[float]) -> None:
    pairs = [1.0 if m > n else 0.5 if m == n else 0.0 for m in members for n in nonmembers]
    assert auc(members, nonmembers) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


@given(scores, scores)
@settings(deadline=None)
def test_the_curve_counts_scores_at_or_above_each_threshold(members: list[float], others: list[float]) -> None:
    curve = roc_curve(members, others)
    for threshold, fpr, tpr in zip(curve.threshold, curve.fpr, curve.tpr, strict=True):
        assert tpr == pytest.approx(sum(s >= threshold for s in members) / len(members))
        assert fpr == pytest.approx(sum(s >= threshold for s in others) / len(others))
    assert (curve.fpr[0], curve.tpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 0, 1, 1)
    area = (np.diff(curve.fpr) * (curve.tpr[1:] + curve.tpr[:-1]) / 2).sum()
    assert area == pytest.approx(auc(members, others), abs=1e-12)


@given(
    scores,
    st.lists(st.integers(-4, 4).map(float), min_size=10, max_size=40),
    st.sampled_from([0.1, 0.2, 0.5]),
)
@settings(deadline=None)
def test_tpr_at_fpr_is_the_best_admissible_threshold(members: list[float], others: list[float], target: float) -> None:
    best = 0.0
    for threshold in [*members, *others]:
        if sum(s >= threshold for s in others) <= target * len(others) + 1e-9:
            best = max(best, sum(s >= threshold for s in members) / len(members))
    result = tpr_at_fpr(members, others, target)
    assert result.estimate is not None
    assert result.estimate.value == pytest.approx(best)
    assert result.estimate.n == len(members)
    if result.threshold is not None:
        assert sum(s >= result.threshold for s in others) <= target * len(others) + 1e-9


@pytest.mark.parametrize(("target", "needed"), [(0.01, 100), (0.001, 1000)])
def test_too_few_nonmembers_are_not_measurable(target: float, needed: int) -> None:
    short = tpr_at_fpr([1.0] * 5, np.zeros(needed - 1), target)
    assert short.estimate is None
    assert str(needed) in short.reason
    enough = tpr_at_fpr([1.0] * 5, np.zeros(needed), target)
    assert enough.estimate is not None
    assert enough.estimate.value == 1.0
    assert enough.estimate.low == pytest.approx(0.025 ** (1 / 5))


def test_one_false_positive_is_allowed_at_its_own_rate() -> None:
    others = np.concatenate([[2.0], np.zeros(99)])
    assert tpr_at_fpr([1.0, 3.0], others, 0.01).estimate.value == 1.0
    assert tpr_at_fpr([1.0, 3.0], np.concatenate([[2.0, 2.0], np.zeros(98)]), 0.01).estimate.value == 0.5


def test_no_member_above_the_threshold_says_so() -> None:
    result = tpr_at_fpr([0.0], np.ones(100), 0.01)
    assert result.estimate.value == 0
    assert result.threshold is None
    assert result.reason


def test_larger_means_member() -> None:
    rng = np.random.default_rng(0)
    assert auc(rng.normal(1, 1, 300), rng.normal(0, 1, 300)) > 0.7
    assert auc([1.0], [0.0]) == 1.0


def test_the_interval_covers_the_value_and_equals_a_loop() -> None:
    rng = np.random.default_rng(1)
    members, others = rng.normal(0.5, 1, 40).round(1), rng.normal(0, 1, 50).round(1)
    estimate = auc_interval(members, others, seed=3, resamples=120)
    draw = np.random.default_rng(3)
    first, second = draw.integers(0, 40, (120, 40)), draw.integers(0, 50, (120, 50))
    values = [auc(members[i], others[j]) for i, j in zip(first, second, strict=True)]
    assert estimate.value == pytest.approx(auc(members, others))
    assert estimate.low == pytest.approx(np.quantile(values, 0.025), abs=1e-12)
    assert estimate.high == pytest.approx(np.quantile(values, 0.975), abs=1e-12)


def test_all_equal_is_one_half_and_infinite_scores_rank() -> None:
    estimate = auc_interval(np.zeros(5), np.zeros(6))
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.5, 0.5)
    assert auc([0.0, np.inf], [-np.inf]) == 1.0


@pytest.mark.parametrize("bad", [[], [float("nan")]])
def test_bad_scores_raise(bad: list[float]) -> None:
    with pytest.raises(InputError):
        auc(bad, [1.0])
    with pytest.raises(InputError):
        tpr_at_fpr([1.0], bad)


def test_a_target_outside_zero_and_one_raises() -> None:
    with pytest.raises(InputError):
        tpr_at_fpr([1.0], [0.0], 0.0)
