"""What the attacks' results come to: steps, censoring, gains, recovery."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from efface.audit.benchmarks.robustness import (
    curves,
    predictor_relearning_findings,
    quantisation_findings,
    relearn_time_findings,
    relearning_findings,
)
from efface.audit.evidence import AuditConfig, Evidence
from efface.audit.table import ScoreTable, build_scores

STEPS = [0, 5, 10, 15, 20]


def table(probability: float, n: int = 12) -> ScoreTable:
    """A forget table whose answers have that probability."""
    logp = [float(np.log(probability))]
    rows = [
        {
            "id": str(i),
            "form": "answer",
            "variant": 0,
            "n_bytes": 1,
            "zlib_bytes": 9,
            "logp": logp,
            "rank": [0],
            "mean": [-1.0],
            "var": [1.0],
        }
        for i in range(n)
    ]
    return ScoreTable(build_scores(rows), None)


def attack(means: list[float], transfer: tuple[float, float] = (0.1, 0.1), n: int = 12) -> dict[str, Any]:
    """Curves with these means."""
    return {
        "speed": {"steps": STEPS, "rows": [[mean] * n for mean in means]},
        "transfer": {"steps": [0, 20], "rows": [[transfer[0]] * n, [transfer[1]] * n]},
    }


def evidence(unlearned: dict[str, Any], retrained: dict[str, Any] | None) -> Evidence:
    """Three models: the original at 1.0, so that 0.9 counts as back."""
    found = Evidence(AuditConfig())
    found.tables = {
        "unlearned": {"forget": table(0.1)},
        "original": {"forget": table(1.0)},
        "retrained": {"forget": table(0.05)},
    }
    results = {"unlearned": unlearned, **({} if retrained is None else {"retrained": retrained})}
    found.attacks = {"relearning": results}
    return found


FAST, SLOW, NEVER = [0.1, 0.95, 1.0, 1.0, 1.0], [0.1, 0.2, 0.4, 0.8, 0.95], [0.1, 0.2, 0.3, 0.4, 0.5]


@pytest.mark.parametrize(
    ("ours", "theirs", "value", "verdict"),
    [
        (FAST, SLOW, 0.25, "does not hold"),
        (SLOW, SLOW, 1.0, "holds"),
        (SLOW, FAST, 4.0, "holds"),
        (FAST, NEVER, 0.25, "does not hold"),
        (SLOW, NEVER, 1.0, "informative"),
        (NEVER, FAST, 4.0, "holds"),
    ],
)
def test_speed(ours: list[float], theirs: list[float], value: float, verdict: str) -> None:
    speed = relearning_findings(evidence(attack(ours), attack(theirs)))[0]
    assert speed.unlearned is not None
    assert speed.unlearned.value == pytest.approx(value)
    assert speed.verdict == verdict
    if verdict == "informative":
        assert "at most" in speed.reason, "a ratio to a model that was not back yet can only speak against"


def test_neither_back_is_not_measured() -> None:
    speed = relearning_findings(evidence(attack(NEVER), attack(NEVER)))[0]
    assert speed.verdict == "not measured"
    assert "max_steps" in speed.reason


def test_transfer_is_the_gain_above_the_retrained_models() -> None:
    found = relearning_findings(evidence(attack(SLOW, (0.1, 0.6)), attack(SLOW, (0.1, 0.3))))[1]
    assert found.unlearned is not None
    assert found.unlearned.value == pytest.approx(0.3)
    assert found.verdict == "does not hold"
    assert relearning_findings(evidence(attack(SLOW), None))[1].verdict == "not measured"


def test_recovery_by_rounding() -> None:
    own = evidence(attack(SLOW), attack(SLOW))
    own.attacks["quantisation"] = {"unlearned": {"widths": {"8": {"forget": [0.1] * 12}, "4": {"forget": [0.55] * 12}}}}
    eight, four = quantisation_findings(own)
    assert eight.unlearned is not None
    assert four.unlearned is not None
    assert (eight.unlearned.value, four.unlearned.value) == (pytest.approx(0.0, abs=1e-6), pytest.approx(0.5, abs=1e-6))
    assert (eight.verdict, four.verdict) == ("holds", "does not hold")
    own.tables["unlearned"]["forget"] = table(0.97)
    assert quantisation_findings(own)[0].verdict == "not measured", "nothing was forgotten that could come back"


def test_curves_say_when_it_was_back() -> None:
    found = {curve.role: curve for curve in curves(evidence(attack(FAST), attack(NEVER)))}
    assert found["unlearned"].reached == 5
    assert found["retrained"].reached is None


def timed(steps: int | None, budget: int = 50) -> dict[str, Any]:
    return {"reached": steps is not None, "steps": steps, "bound": 0.1, "budget": budget, "curve": {}}


@pytest.mark.parametrize(
    ("ours", "theirs", "value", "verdict", "said"),
    [
        (2, 20, 0.1, "does not hold", "unlearned in 2 steps; retrained in 20 steps"),
        (10, 20, 0.5, "holds", "value >= 0.5"),
        (60, 20, 3.0, "holds", "unlearned in 60 steps"),
        (0, 20, 0.0, "does not hold", "unlearned in 0 steps"),
        (None, 20, None, "not measured", "unlearned not reached in 50 steps; retrained in 20 steps"),
        (10, None, None, "not measured", "retrained not reached in 50 steps"),
        (10, 0, None, "not measured", "within the margin without training"),
    ],
)
def test_relearn_time(ours: int | None, theirs: int | None, value: float | None, verdict: str, said: str) -> None:
    """No cap is passed off as steps: where one model did not get there, there is no ratio, and the reason says both."""
    found = Evidence(AuditConfig())
    found.attacks = {"relearn_time": {"unlearned": timed(ours), "retrained": timed(theirs), "original": timed(0)}}
    steps, ain = relearn_time_findings(found)
    assert ain.verdict == verdict
    assert said in ain.reason
    assert (None if ain.unlearned is None else ain.unlearned.value) == value
    if ours is None:
        assert steps.verdict == "not measured"
    else:
        assert steps.unlearned is not None
        assert (steps.unlearned.value, steps.unit) == (ours, "steps")
        assert (steps.retrained is None) == (theirs is None)


def test_relearn_time_without_the_attack_and_for_predictors_only() -> None:
    plain = evidence(attack(FAST), attack(SLOW))
    assert [row.verdict for row in relearn_time_findings(plain)] == ["not measured", "not measured"]
    assert all("--against" in row.reason for row in relearn_time_findings(plain))
    own = [row.metric for row in relearning_findings(plain)]
    assert [row.metric for row in predictor_relearning_findings(plain)] == [
        *own,
        "robustness/relearn_steps",
        "robustness/anamnesis",
    ]
