"""Figures of regressors: against plain loops, in units of the data, and W1 never without the paired difference."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance
from sklearn.metrics import roc_auc_score

from efface.audit.metrics import regression
from efface.audit.metrics.regression import absolute_errors, distance, loss_attack, loss_auc, mae, mse, report
from efface.audit.predictions import Predictions
from efface.errors import InputError


def table(values: Any, targets: Any = None, ids: Any = None, task: str = "regression") -> Predictions:
    said = np.asarray(values, dtype=np.float64)
    said = said[:, None] if said.ndim == 1 else said
    aims = np.zeros(len(said)) if targets is None else np.asarray(targets, dtype=np.float64)
    return Predictions(ids or [f"r{i}" for i in range(len(said))], aims, said, np.zeros((len(said), 2)), task=task)


def errors(size: float, n: int, seed: int) -> Predictions:
    """Predictions that miss their targets by about `size`."""
    rng = np.random.default_rng(seed)
    targets = rng.normal(0, 3, n)
    return table(targets + size * rng.normal(0, 1, n), targets, [f"{seed}-{i}" for i in range(n)])


def test_errors_by_a_loop_and_in_units_of_the_data() -> None:
    said, aims = [1.0, -2.0, 0.5, 4.0], [0.5, -1.0, 0.5, 1.0]
    found = table(said, aims)
    plain = [abs(a - b) for a, b in zip(said, aims, strict=True)]
    assert mae(found).value == pytest.approx(sum(plain) / 4)
    assert mse(found).value == pytest.approx(sum(x * x for x in plain) / 4)
    assert mae(found, scale=77.0).value == pytest.approx(77 * mae(found).value)
    assert mse(found, scale=77.0).value == pytest.approx(77**2 * mse(found).value)
    estimate = mae(found, scale=77.0)
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low <= estimate.value <= estimate.high


def test_w1_is_blind_to_the_rows_and_the_paired_difference_is_not() -> None:
    """The right numbers about the wrong rows: W1 says nothing is wrong."""
    values = np.random.default_rng(0).normal(0, 1, 40)
    own, other = table(values[::-1].copy()), table(values)
    found = distance(own, other, scale=10.0)
    assert found.wasserstein == pytest.approx(0, abs=1e-9)
    assert found.paired.value == pytest.approx(10 * np.abs(values[::-1] - values).mean())
    assert found.paired.value > 5
    same = distance(other, other)
    assert (same.wasserstein, same.paired.value) == (0.0, 0.0)


def test_w1_of_equal_sizes_is_that_of_the_sorted_samples() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, 50), rng.normal(1, 2, 50)
    found = distance(table(a), table(b), scale=3.0)
    assert found.wasserstein == pytest.approx(3 * np.abs(np.sort(a) - np.sort(b)).mean())
    assert found.wasserstein == pytest.approx(wasserstein_distance(3 * a, 3 * b))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=1, max_size=30))
def test_w1_is_at_most_the_paired_difference(pairs: list[tuple[float, float]]) -> None:
    found = distance(table([a for a, _ in pairs]), table([b for _, b in pairs]))
    assert found.wasserstein <= found.paired.value + 1e-9


def test_tables_of_other_rows_are_refused() -> None:
    own, other = table([1.0, 2.0]), table([1.0, 2.0], ids=["r1", "r0"])
    with pytest.raises(InputError, match="other ids; expected the same rows in the same order"):
        distance(own, other)


def test_the_attack_tells_members_by_their_errors_and_says_how_well() -> None:
    retain, test = errors(0.05, 200, 0), errors(2.0, 150, 1)
    found = loss_attack(retain, test, errors(0.05, 60, 2))
    assert found.member.value > 0.9
    assert found.own_auc.value > 0.9
    assert loss_attack(retain, test, errors(8.0, 60, 3)).member.value < 0.2
    useless = loss_attack(errors(1.0, 200, 4), errors(1.0, 200, 5), errors(1.0, 60, 6))
    assert abs(useless.own_auc.value - 0.5) < 0.15, "the verdict of a useless attack is worth nothing"
    again = loss_attack(retain, test, errors(0.05, 60, 2))
    assert again == found, "same seed, same verdict"


def test_the_attack_does_not_depend_on_the_unit() -> None:
    def scaled(own: Predictions, by: float) -> Predictions:
        return table(own.outputs[:, 0] * by, own.targets * by, own.ids)

    sets = [errors(0.3, 120, 0), errors(1.0, 120, 1), errors(0.5, 80, 2)]
    assert loss_attack(*sets).member == loss_attack(*(scaled(own, 64.0) for own in sets)).member


def test_rows_that_the_attack_is_judged_on_are_not_those_it_learnt_from(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt: list[Any] = []
    plain = regression.make_pipeline

    def spy(*steps: Any) -> Any:
        made = plain(*steps)
        fit = made.fit
        monkeypatch.setattr(made, "fit", lambda x, y: (learnt.append(x[:, 0]), fit(x, y))[1], raising=False)
        return made

    monkeypatch.setattr(regression, "make_pipeline", spy)
    retain, test = errors(0.3, 41, 0), errors(1.0, 60, 1)
    found = loss_attack(retain, test, errors(0.5, 20, 2))
    (values,) = learnt
    assert len(values) == 40, "half of 41 on each side"
    assert found.own_auc.n == 2 * 21
    assert np.isin(values[:20], absolute_errors(retain)).all()
    assert np.isin(values[20:], absolute_errors(test)).all()


def test_errors_that_all_are_equal_tell_nothing() -> None:
    flat = table(np.ones(20))
    found = loss_attack(flat, flat, flat)
    assert (found.member.value, found.own_auc.value) == (0.0, 0.5)


def test_the_auc_without_fitting() -> None:
    inside, outside = errors(0.5, 80, 0), errors(1.0, 70, 1)
    scores = np.concatenate([-absolute_errors(inside), -absolute_errors(outside)])
    expected = roc_auc_score(np.repeat([1, 0], [80, 70]), scores)
    assert loss_auc(inside, outside).value == pytest.approx(expected)
    assert loss_auc(inside, outside).value > 0.5, "a larger score speaks for membership"


def test_the_report_has_all_of_them_or_says_what_is_missing() -> None:
    forget, retain, test = errors(0.5, 30, 0), errors(0.1, 90, 1), errors(1.0, 50, 2)
    found = report(forget, retain, test, retrained=table(forget.targets, forget.targets, forget.ids), scale=2.0)
    assert found.forget == mae(forget, scale=2.0)
    assert found.to_retrained is not None
    assert found.to_retrained.paired.value == pytest.approx(found.forget.value)
    assert found.attack == loss_attack(retain, test, forget)
    few = report(forget, retain, test.part(range(5)))
    assert few.attack is None
    assert few.to_retrained is None


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="predictions of a classifier"):
        mae(table([[0.1, 0.9]], [1], task="classification"))
    with pytest.raises(InputError, match="keep the median's column"):
        mae(table(np.zeros((3, 5))))
    with pytest.raises(InputError, match="a scale of 0"):
        mae(table([1.0]), scale=0.0)
    with pytest.raises(InputError, match=re.escape("targets [2, 1] for 2 predictions")):
        mae(table([1.0, 2.0], [[1.0], [2.0]]))
    with pytest.raises(InputError, match="90 retain, 9 test and 30 forget rows; expected 10 or more"):
        loss_attack(errors(0.1, 90, 1), errors(1.0, 9, 2), errors(0.5, 30, 0))
