"""A finding: one metric's value with its interval, its comparison, its threshold and its verdict.

A metric that could not be computed is a finding too, with the reason. Thresholds are fixed before the run (they
are stored in the run's configuration before any model is scored) and never by the data.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Direction = Literal["higher", "lower", "retrained", "none"]
"""Which way is better: higher, lower, closer to the retrained model, or neither (descriptive)."""

Verdict = Literal["holds", "does not hold", "informative", "not measured"]


class Estimate(BaseModel):
    """A value with its 95 % interval and the number of examples behind it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0


class Threshold(BaseModel):
    """What must hold, fixed before the run: `quantity` `relation` `bound`.

    `quantity` is `value` (the unlearned model's), `ratio` (unlearned / original), or `gap`
    (|unlearned - retrained|).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantity: Literal["value", "ratio", "gap"]
    relation: Literal[">=", "<=", ">"]
    bound: float

    def words(self) -> str:
        """The threshold as a person would say it."""
        what = {"value": "value", "ratio": "share of the original", "gap": "distance to retrained"}[self.quantity]
        return f"{what} {self.relation} {self.bound:g}"


class Finding(BaseModel):
    """One row of the evidence.

    `unlearned`, `original` and `retrained` hold the same metric for the three models, where they were measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str = Field(description="machine name, unique in a run: suite/metric[/set]")
    title: str = Field(description="what a person calls it")
    meaning: str = Field(description="one sentence: what the number says and against which reference")
    group: Literal["forgetting", "utility", "privacy", "robustness", "damage"]
    direction: Direction
    unlearned: Estimate | None = None
    original: Estimate | None = None
    retrained: Estimate | None = None
    threshold: Threshold | None = None
    verdict: Verdict
    reason: str = Field("", description="why not measured, or what the verdict rests on")
    unit: str = ""


def not_measured(
    metric: str, title: str, meaning: str, group: Literal["forgetting", "utility", "privacy", "robustness", "damage"],
    reason: str, direction: Direction = "none",
) -> Finding:  # fmt: skip
    """A metric that could not be computed, with its reason; never a zero."""
    return Finding(
        metric=metric, title=title, meaning=meaning, group=group, direction=direction,
        verdict="not measured", reason=reason,
    )  # fmt: skip


def judge(finding: Finding) -> Finding:
    """Fill the verdict of a finding that has a threshold.

    The interval is not used to excuse a miss: the point value must satisfy the threshold. A quantity that needs
    a model which was not measured is not judged and says so: it never passes.
    """
    if finding.threshold is None or finding.unlearned is None:
        return finding
    value = finding.unlearned.value
    if finding.threshold.quantity == "ratio":
        if finding.original is None or finding.original.value == 0:
            missing = "the original's value is 0" if finding.original else "the original was not measured"
            return finding.model_copy(update={"reason": f"no share of the original: {missing}"})
        value = value / finding.original.value
    elif finding.threshold.quantity == "gap":
        if finding.retrained is None:
            return finding.model_copy(update={"reason": "not judged: needs a retrained model (--against)"})
        value = abs(value - finding.retrained.value)
    bound = finding.threshold.bound
    holds = {">=": value >= bound, "<=": value <= bound, ">": value > bound}[finding.threshold.relation]
    return finding.model_copy(
        update={
            "verdict": "holds" if holds else "does not hold",
            "reason": f"{finding.threshold.words()}: {value:.4g}",
        }
    )
