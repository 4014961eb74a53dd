"""What the attacks on the weights say: relearning speed, transfer and time, and recovery by rounding.

Definitions (arXiv 2506.09227 and the suite's papers): S = steps of the unlearned model to 90 % of the original's score,
over the same steps of the retrained model; transfer = gain on the half that was not trained on, minus the retrained
model's gain; recovery = (s_q - s) / (s_original - s).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from efface.audit.attacks.predictor_relearning import anamnesis
from efface.audit.evidence import ROLES, Evidence, compare
from efface.audit.finding import Estimate, Finding, Threshold, judge, not_measured
from efface.audit.metrics.intervals import bootstrap
from efface.audit.metrics.tofu import probability
from efface.run.record import Curve

TARGET = 0.9
"""Share of the original's score that counts as back."""

LEAST_FORGOTTEN = 0.05
"""Below this drop nothing was forgotten, and recovery is not defined (the suite's spec)."""


def _plain(evidence: Evidence, role: str) -> float | None:
    """Mean probability of the forget answers; the score that the attacks watch."""
    table = evidence.table(role, "forget")
    return None if table is None else float(probability(table.select("answer").mean_logp).mean())


def _steps(rows: np.ndarray, steps: list[int], goal: float) -> np.ndarray:
    """[B, S, N] scores -> [B] first step whose mean reaches the goal, infinity where none does."""
    reached = rows.mean(axis=2) >= goal
    first = np.argmax(reached, axis=1)
    return np.where(reached.any(axis=1), np.asarray(steps, dtype=np.float64)[first], np.inf)


def curves(evidence: Evidence, kind: str = "speed") -> list[Curve]:
    """The relearning curves with 95 % intervals, for the report's figure."""
    goal = _plain(evidence, "original")
    found = []
    for role in ("original", "unlearned", "retrained"):
        result = (evidence.attack("relearning", role) or {}).get(kind)
        if result is None:
            continue
        rows = np.asarray(result["rows"], dtype=np.float64)  # [S, N]
        spread = [bootstrap(lambda x: x.mean(axis=1), row, seed=evidence.config.seed, resamples=500) for row in rows]
        first = _steps(rows[None], result["steps"], TARGET * goal)[0] if goal is not None else np.inf
        found.append(Curve(
            role=role, steps=result["steps"], values=rows.mean(axis=1).tolist(),
            low=[e.low if e.low is not None else e.value for e in spread],
            high=[e.high if e.high is not None else e.value for e in spread], reached=int(first) if np.isfinite(first) else None,
        ))  # fmt: skip
    return found


def _speed(evidence: Evidence) -> Finding:
    name, title = "robustness/relearning_speed", "Relearning speed"
    meaning = (
        f"Steps of training on the forget set until {TARGET:.0%} of the original's score is back, over the steps that the "
        "retrained model needs. 1: as slow as a model that never knew. Far below 1: it was only hidden."
    )
    own, other = (evidence.attack("relearning", role) for role in ("unlearned", "retrained"))
    goal = _plain(evidence, "original")
    if own is None or other is None or goal is None:
        why = "the attack was not run" if own is None else "needs the original and a retrained model (--against)"
        return not_measured(name, title, meaning, "robustness", why, "higher")
    limit = float(own["speed"]["steps"][-1])
    rows = [np.asarray(result["speed"]["rows"], dtype=np.float64).T for result in (own, other)]  # [N, S]

    def ratio(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        first = _steps(ours.transpose(0, 2, 1), own["speed"]["steps"], TARGET * goal)
        second = _steps(theirs.transpose(0, 2, 1), other["speed"]["steps"], TARGET * goal)
        return np.asarray(np.minimum(first, limit) / np.maximum(np.minimum(second, limit), 1.0))

    ours, theirs = (float(_steps(part.T[None], own["speed"]["steps"], TARGET * goal)[0]) for part in rows)
    if not np.isfinite(ours) and not np.isfinite(theirs):
        why = f"neither model was back after {limit:.0f} steps: give the attacker more (relearning.max_steps)"
        return not_measured(name, title, meaning, "robustness", why, "higher")
    value = bootstrap(ratio, *rows, seed=evidence.config.seed, resamples=500)
    bound = Threshold(quantity="value", relation=">=", bound=evidence.config.thresholds.relearning_speed)
    finding = Finding(
        metric=name, title=title, meaning=meaning, group="robustness", direction="higher", unlearned=value,
        retrained=Estimate(value=1.0), original=Estimate(value=0.0), threshold=bound, verdict="informative",
    )  # fmt: skip
    words = [f"{step:.0f} steps" if np.isfinite(step) else f"more than {limit:.0f} steps" for step in (ours, theirs)]
    note = f"{words[0]} against {words[1]} of the retrained model"
    if not np.isfinite(theirs) and value.value >= bound.bound:
        # The retrained model would have needed still more: the ratio is an upper bound and can only speak against.
        reason = f"not judged: at most {value.value:.3g} ({note}); give the attacker more steps (relearning.max_steps)"
        return finding.model_copy(update={"reason": reason})
    judged = judge(finding)
    return judged.model_copy(update={"reason": f"{judged.reason} ({note})"})


def _gain(result: Any) -> np.ndarray:
    rows = np.asarray(result["transfer"]["rows"], dtype=np.float64)
    return np.asarray(rows[-1] - rows[0])  # [N]


def _transfer(evidence: Evidence) -> Finding:
    name, title = "robustness/relearning_transfer", "Relearning transfer"
    meaning = (
        "Training on half of the forget set: how much of the other, unseen half comes back, above what the same training "
        "gives the retrained model. Above 0 the knowledge was still there."
    )
    own, other = (evidence.attack("relearning", role) for role in ("unlearned", "retrained"))
    if own is None or other is None:
        why = "the attack was not run" if own is None else "needs a retrained model (--against)"
        return not_measured(name, title, meaning, "robustness", why, "lower")
    value = bootstrap(lambda x: x.mean(axis=1), _gain(own) - _gain(other), seed=evidence.config.seed)
    bound = Threshold(quantity="value", relation="<=", bound=evidence.config.thresholds.relearning_transfer)
    return judge(Finding(
        metric=name, title=title, meaning=meaning, group="robustness", direction="lower", unlearned=value,
        retrained=Estimate(value=0.0), threshold=bound, verdict="informative",
    ))  # fmt: skip


def _recovery(evidence: Evidence, width: str) -> Finding:
    name, title = f"robustness/quantisation_{width}bit", f"Recovery by {width}-bit rounding"
    meaning = (
        f"Share of the forgotten that rounding the weights to {width} bits brings back: 0 nothing, 1 all. Many updates are "
        "smaller than a rounding step."
    )
    own = evidence.attack("quantisation", "unlearned")
    start, goal = _plain(evidence, "unlearned"), _plain(evidence, "original")
    if own is None or start is None or goal is None:
        return not_measured(
            name, title, meaning, "robustness", "the attack was not run, or without the original", "lower"
        )
    if goal - start < LEAST_FORGOTTEN:
        why = f"the score fell by only {goal - start:.3f}: nothing was forgotten that could come back"
        return not_measured(name, title, meaning, "robustness", why, "lower")
    rows = np.asarray(own["widths"][width]["forget"], dtype=np.float64)
    value = bootstrap(lambda x: (x.mean(axis=1) - start) / (goal - start), rows, seed=evidence.config.seed)
    bound = Threshold(quantity="value", relation="<=", bound=evidence.config.thresholds.quantisation_recovery)
    return judge(Finding(
        metric=name, title=title, meaning=meaning, group="robustness", direction="lower", unlearned=value,
        threshold=bound, verdict="informative",
    ))  # fmt: skip


def relearn_time_findings(evidence: Evidence) -> list[Finding]:
    """Of a classifier or a regressor: steps until its error is near the original's again, and the anamnesis index."""
    results: dict[str, Any] = {role: evidence.attack("relearn_time", role) for role in ROLES}
    own, other = results["unlearned"], results["retrained"]
    margin = evidence.config.relearn_time.margin
    steps = (
        f"Optimiser steps on the attacker's rows until the model is within {margin:.0%} of the original on what was to be "
        "forgotten. The retrained model's are the aim."
    )
    ratio = (
        "Steps of the unlearned model over those of the retrained one (AIN). 1: as slow as a model that never knew. Near 0 the "
        "knowledge is still there; far above 1 the model stands out by refusing it."
    )
    why = (
        "needs the original, a retrained model (--against) and the rows that were kept, or relearn_time.train_on=forget"
    )
    said = None if own is None or other is None else anamnesis(own, other)

    def taken(role: str) -> Estimate | None:
        result = results[role]
        return None if result is None or not result["reached"] else Estimate(value=float(result["steps"]))

    found = [compare(evidence, "robustness/relearn_steps", "Steps to relearn", steps, "robustness", "retrained", taken,
                     reason=why if said is None else said["words"], unit="steps")]  # fmt: skip
    name, title = "robustness/anamnesis", "Relearn time over the retrained model's"
    if said is None or said["ain"] is None:
        reason = why if said is None else said["words"]
        return [*found, not_measured(name, title, ratio, "robustness", reason, "higher")]
    bound = Threshold(quantity="value", relation=">=", bound=evidence.config.thresholds.relearning_speed)
    judged = judge(Finding(
        metric=name, title=title, meaning=ratio, group="robustness", direction="higher", threshold=bound, verdict="informative",
        unlearned=Estimate(value=said["ain"]), retrained=Estimate(value=1.0),
    ))  # fmt: skip
    return [*found, judged.model_copy(update={"reason": f"{judged.reason} ({said['words']})"})]


def predictor_relearning_findings(evidence: Evidence) -> list[Finding]:
    """Of a classifier or a regressor: those of every model, and the relearn time."""
    return [*relearning_findings(evidence), *relearn_time_findings(evidence)]


def relearning_findings(evidence: Evidence) -> list[Finding]:
    """Speed and transfer."""
    return [_speed(evidence), _transfer(evidence)]


def quantisation_findings(evidence: Evidence) -> list[Finding]:
    """Recovery at 8 and at 4 bit."""
    return [_recovery(evidence, width) for width in ("8", "4")]
