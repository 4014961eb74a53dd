"""The verdict: computed from evidence alone, and the four words where they belong."""

from __future__ import annotations

from typing import Any

import pytest

from efface.audit.evidence import AuditConfig, Evidence
from efface.audit.finding import Estimate, Finding, Threshold, judge
from efface.audit.verdict import outcome


def finding(metric: str, *, verdict: Any = "informative", **values: float) -> Finding:
    """A finding with values by role."""
    return Finding(
        metric=metric, title=metric, meaning="", group="forgetting", direction="none", verdict=verdict,
        **{role: Estimate(value=value) for role, value in values.items()},
    )  # fmt: skip


def word(own: float, utility: float = 0.5, *, retrained: bool = True, fired: bool = False, ran: bool = True) -> str:
    """The outcome's word for a plain score and a utility; the original has 0.9 and 0.5, the retrained model 0.1."""
    roles = {"unlearned": own, "original": 0.9, **({"retrained": 0.1} if retrained else {})}
    rows = [finding("tofu/forget_probability", **roles), finding("tofu/model_utility", unlearned=utility, original=0.5)]
    if ran:
        rows.append(finding("robustness/relearning_speed", verdict="does not hold" if fired else "holds"))
    return outcome(rows, Evidence(AuditConfig())).word


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"own": 0.6}, "not forgotten"),
        ({"own": 0.6, "utility": 0.1}, "not forgotten"),
        ({"own": 0.1, "utility": 0.44}, "damaged"),
        ({"own": 0.1, "utility": 0.46}, "removal-consistent"),
        ({"own": 0.1, "fired": True}, "suppressed"),
        ({"own": 0.1, "ran": False}, "not judged"),
        ({"own": 0.1, "retrained": False}, "not judged"),
        ({"own": 0.1, "retrained": False, "fired": True}, "suppressed"),
        ({"own": 0.1, "retrained": False, "utility": 0.1}, "damaged"),
    ],
)
def test_the_words(arguments: dict[str, Any], expected: str) -> None:
    assert word(**arguments) == expected


def test_nothing_is_ever_called_removed() -> None:
    words = {word(own, utility, fired=f) for own in (0.0, 0.1, 0.6) for utility in (0.1, 0.5) for f in (True, False)}
    assert words <= {"not forgotten", "damaged", "suppressed", "removal-consistent", "not judged"}


@pytest.mark.parametrize(
    ("threshold", "own", "expected"),
    [
        (Threshold(quantity="value", relation=">=", bound=0.5), 0.5, "holds"),
        (Threshold(quantity="value", relation=">=", bound=0.5), 0.49, "does not hold"),
        (Threshold(quantity="ratio", relation=">=", bound=0.95), 0.96, "holds"),
        (Threshold(quantity="ratio", relation=">=", bound=0.95), 0.9, "does not hold"),
        (Threshold(quantity="gap", relation="<=", bound=0.1), 0.55, "holds"),
        (Threshold(quantity="gap", relation="<=", bound=0.1), 0.7, "does not hold"),
    ],
)
def test_thresholds(threshold: Threshold, own: float, expected: str) -> None:
    row = finding("x", unlearned=own, original=1.0, retrained=0.5).model_copy(update={"threshold": threshold})
    assert judge(row).verdict == expected


def test_a_missing_reference_never_passes() -> None:
    gap = Threshold(quantity="gap", relation="<=", bound=10)
    judged = judge(finding("x", unlearned=0.5).model_copy(update={"threshold": gap}))
    assert judged.verdict == "informative"
    assert "--against" in judged.reason
    ratio = Threshold(quantity="ratio", relation=">=", bound=0)
    assert "0" in judge(finding("x", unlearned=0.5, original=0.0).model_copy(update={"threshold": ratio})).reason
