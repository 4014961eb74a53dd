"""LiRA against plain loops, against its closed form, and against the slip of the published code."""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.audit.metrics import lira
from efface.audit.metrics.roc import auc
from efface.errors import InputError


def log_normal(x: float, centre: float, std: float) -> float:
    return -0.5 * ((x - centre) / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)


def pools(shadows: Any, keep: Any, example: int) -> tuple[list[float], list[float]]:
    column = list(zip(shadows[:, example].tolist(), keep[:, example].tolist(), strict=True))
    return [x for x, kept in column if kept], [x for x, kept in column if not kept]


def pooled_std(groups: list[list[float]]) -> float:
    squares = sum((x - statistics.fmean(group)) ** 2 for group in groups for x in group)
    return math.sqrt(squares / sum(len(group) - 1 for group in groups))


def world(seed: int = 0, models: int = 12, examples: int = 7, spread: float = 3.0) -> tuple[Any, Any, Any]:
    """OUT scores are `spread` times as wide as IN scores; every example has at least two models on each side."""
    rng = np.random.default_rng(seed)
    keep = np.zeros((models, examples), dtype=bool)
    for example in range(examples):
        keep[rng.permutation(models)[: models // 2], example] = True
    hard = rng.normal(0, 2, examples)
    noise = rng.normal(size=(models, examples))
    shadows = np.where(keep, hard + 2 + noise, hard + spread * noise)
    return hard + rng.normal(0, 2, examples), shadows, keep


@given(st.lists(st.lists(st.floats(-50, 50), min_size=3, max_size=3), min_size=1, max_size=5), st.integers(0, 2))
@settings(deadline=None)
def test_the_margin_is_the_log_odds(rows: list[list[float]], label: int) -> None:
    labels = np.full(len(rows), label)
    slow = []
    for row in rows:
        others = [value for index, value in enumerate(row) if index != label]
        top = max(others)
        slow.append(row[label] - top - math.log(sum(math.exp(value - top) for value in others)))
    assert lira.logit_margin(np.array(rows), labels) == pytest.approx(slow, abs=1e-9)


def test_the_margin_does_not_saturate() -> None:
    confident = np.array([[200.0, 0.0, 0.0], [400.0, 0.0, 0.0]], dtype=np.float32)
    found = lira.logit_margin(confident, np.array([0, 0]))
    assert found == pytest.approx([200 - math.log(2), 400 - math.log(2)])  # p = 1 in float32 for both
    suppressed = lira.logit_margin(np.array([[1.0, 2.0, -np.inf]]), np.array([0]))
    assert suppressed == pytest.approx([-1.0])
    stacked = lira.logit_margin(np.stack([confident, -confident]), np.array([0, 1]))
    assert stacked.shape == (2, 2)


def test_online_equals_plain_loops() -> None:
    phi, shadows, keep = world()
    slow = []
    for example, x in enumerate(phi.tolist()):
        inside, outside = pools(shadows, keep, example)
        slow.append(
            log_normal(x, statistics.fmean(inside), statistics.stdev(inside))
            - log_normal(x, statistics.fmean(outside), statistics.stdev(outside))
        )
    assert lira.online(phi, shadows, keep, fixed_variance=False) == pytest.approx(slow)


def test_fixed_variance_pools_each_side_by_itself() -> None:
    phi, shadows, keep = world()
    groups = [pools(shadows, keep, example) for example in range(len(phi))]
    std_in, std_out = pooled_std([g[0] for g in groups]), pooled_std([g[1] for g in groups])
    assert std_out > 2 * std_in  # else the test could not see the slip
    slow, slip = [], []
    for x, (inside, outside) in zip(phi.tolist(), groups, strict=True):
        a = log_normal(x, statistics.fmean(inside), std_in)
        slow.append(a - log_normal(x, statistics.fmean(outside), std_out))
        slip.append(a - log_normal(x, statistics.fmean(outside), std_in))  # the published code
    found = lira.online(phi, shadows, keep, fixed_variance=True)
    assert found == pytest.approx(slow)
    assert np.abs(found - slip).max() > 1
    assert np.argsort(found).tolist() != np.argsort(slip).tolist()


def test_fixed_variance_is_the_default_for_few_models_only() -> None:
    few, many = world(models=12), world(models=lira.FEW_SHADOWS)
    assert np.array_equal(lira.online(*few), lira.online(*few, fixed_variance=True))
    assert np.array_equal(lira.online(*many), lira.online(*many, fixed_variance=False))


def test_offline_is_one_sided() -> None:
    keep = np.array([[False], [False], [True]])
    shadows = np.array([[-1.0], [1.0], [99.0]])  # OUT: centre 0, std sqrt(2)

    def tail(x: float) -> float:
        return float(lira.offline([x], shadows, keep)[0])

    assert tail(0.0) == pytest.approx(0.5)
    assert tail(2.0) == pytest.approx(0.5 * (1 + math.erf(2.0 / 2)))  # z = 2 / sqrt 2, erf(z / sqrt 2)
    assert tail(-2.0) == pytest.approx(1 - tail(2.0))  # a two-sided density would give the value of +2
    assert tail(40.0) == tail(50.0) == 1.0
    odds = [float(lira.offline([x], shadows, keep, log_odds=True)[0]) for x in (-2.0, 2.0, 40.0, 50.0)]
    assert odds == sorted(odds)
    assert odds[2] < odds[3]
    assert odds[1] == pytest.approx(math.log(tail(2.0) / (1 - tail(2.0))))


def test_calibration_subtracts_the_median_of_the_out_models() -> None:
    phi, shadows, keep = world()
    slow = [x - statistics.median(pools(shadows, keep, i)[1]) for i, x in enumerate(phi.tolist())]
    assert lira.calibrated(phi, shadows, keep) == pytest.approx(slow)
    assert (lira.offline(phi, shadows, keep) >= 0.5).tolist() == [
        x >= statistics.fmean(pools(shadows, keep, i)[1]) for i, x in enumerate(phi.tolist())
    ]


def test_medians_as_centres() -> None:
    phi, shadows, keep = world()
    inside = [pools(shadows, keep, i)[0] for i in range(len(phi))]
    found = lira.side(shadows, keep, "in", False, "median")
    assert found.centre == pytest.approx([statistics.median(group) for group in inside])


def test_a_planted_member_scores_above_a_planted_stranger() -> None:
    """The sign convention, and the gain: examples differ more in hardness than membership moves them."""
    rng = np.random.default_rng(1)
    n, models = 400, 32
    keep = rng.random((models + 1, n)) < 0.5
    hard = rng.normal(0, 5, n)
    phi = hard + 2 * keep + rng.normal(size=(models + 1, n))
    target, member = phi[0], keep[0]
    attacks = {
        "loss": target, "online": lira.online(target, phi[1:], keep[1:]), "offline": lira.offline(target, phi[1:], keep[1:]),
        "calibrated": lira.calibrated(target, phi[1:], keep[1:]),
    }  # fmt: skip
    found = {name: auc(scores[member], scores[~member]) for name, scores in attacks.items()}
    assert found["loss"] < 0.7
    assert min(found["online"], found["offline"], found["calibrated"]) > 0.85


@pytest.mark.parametrize("side", ["in", "out"])
def test_an_example_needs_models_on_both_sides(side: str) -> None:
    phi, shadows, keep = world()
    keep[:, 3] = side == "out"
    with pytest.raises(InputError, match=rf"example 3 has 0 '{side}' model"):
        lira.online(phi, shadows, keep)
    if side == "out":
        for attack in (lira.offline, lira.calibrated):
            with pytest.raises(InputError, match="example 3 has 0 'out'"):
                attack(phi, shadows, keep)
    else:
        assert np.isfinite(lira.offline(phi, shadows, keep)).all()


def test_own_variance_needs_two_models_and_spread() -> None:
    phi, shadows, keep = world()
    keep[:, 2] = False
    keep[0, 2] = True
    with pytest.raises(InputError, match=r"example 2 has 1 'in' model\(s\); expected 2"):
        lira.online(phi, shadows, keep, fixed_variance=False)
    assert np.isfinite(lira.online(phi, shadows, keep, fixed_variance=True)).all()
    phi, shadows, keep = world()
    shadows[:, 4] = 1.0
    with pytest.raises(InputError, match="all give example 4 one score"):
        lira.online(phi, shadows, keep, fixed_variance=False)


def test_bad_input_is_refused() -> None:
    phi, shadows, keep = world()
    with pytest.raises(InputError, match="keep matrix of int"):
        lira.online(phi, shadows, keep.astype(int))
    with pytest.raises(InputError, match="shadows"):
        lira.online(phi, shadows[:, :-1], keep)
    shadows[0, 0] = np.nan
    with pytest.raises(InputError, match="NaN"):
        lira.online(phi, shadows, keep)
    logits = np.zeros((2, 3))
    for labels in ([0, 3], [0, -1], [0.0, 1.0]):
        with pytest.raises(InputError, match="not a class"):
            lira.logit_margin(logits, np.array(labels))
    with pytest.raises(InputError, match="labels"):
        lira.logit_margin(logits, np.array([0]))
    with pytest.raises(InputError, match="NaN or infinite"):
        lira.logit_margin(np.array([[np.inf, 0.0]]), np.array([0]))
    with pytest.raises(InputError, match="minus infinity"):
        lira.logit_margin(np.full((1, 3), -np.inf), np.array([0]))
