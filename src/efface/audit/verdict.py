"""From evidence to findings to one word: not forgotten, damaged, suppressed, or removal-consistent.

The word is computed, never declared by a method, and never says 'removed': tests that passed show that these tests
passed. Rules (unlearning-taxonomy, after arXiv 2506.09227): *not forgotten* if the plain score lies above the midpoint of
original and retrained; else *damaged* if utility fell by more than a tenth; else *suppressed* if a test for hidden
knowledge fires; else *removal-consistent*. Without a retrained model the first rule and two tests have no reference:
what can be judged is judged, and the rest is said to be open.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from efface.audit.attacks import membership
from efface.audit.benchmarks import (
    accuracy,
    classifier_attacks,
    identity,
    in_context,
    memorisation,
    representation,
    robustness,
    tofu,
)
from efface.audit.evidence import OWN_SUITES, Evidence
from efface.audit.finding import Finding, not_measured
from efface.audit.suite import asked

FIRING = ("robustness/relearning_speed", "robustness/relearning_transfer", "robustness/quantisation_8bit",
          "robustness/quantisation_4bit", "representation/untouched", "representation/probe",
          "representation/neighbours")  # fmt: skip
"""Findings that speak for hidden knowledge where they do not hold."""

PLAIN = {
    None: ("tofu/forget_probability", "tofu/model_utility", "forgotten answers still have probability"),
    "classification": ("classifier/forget_confidence", "classifier/ta", "forgotten labels still have probability"),
    "regression": ("regressor/forget_fit", "regressor/fit/holdout", "forgotten targets are still met with a fit of"),
}
"""By task: the plain score of what was to be forgotten, the utility, and how the first is said."""

SUITE_FINDINGS = {
    "tofu": tofu.findings,
    "membership": membership.findings,
    "memorisation": memorisation.findings,
    "relearning": robustness.relearning_findings,
    "quantisation": robustness.quantisation_findings,
    "in-context": in_context.findings,
}

PREDICTOR_FINDINGS = {
    "accuracy": accuracy.findings,
    "membership": classifier_attacks.findings,
    "shadows": classifier_attacks.shadow_findings,
    "representation": representation.findings,
    "identity": identity.findings,
    "relearning": robustness.predictor_relearning_findings,
    "quantisation": robustness.quantisation_findings,
}
"""For classifiers and regressors."""

UNTESTED_PREDICTOR = (
    "other copies of the model or the data: backups, checkpoints, embeddings, downstream models",
    "reconstruction of inputs from the weights, and attackers with more steps or data than the attacks here",
)

UNTESTED = (
    "prompts in other languages, paraphrased questions and adversarial suffixes",
    "probes on hidden states and early exits of each layer",
    "other copies of the model or the data: backups, checkpoints, embeddings, downstream models",
    "attackers with more training steps or data than the relearning attack had",
)
"""What this audit never does; suites that were left out are added to it."""


class Outcome(BaseModel):
    """The conclusion in words."""

    model_config = ConfigDict(extra="forbid")

    word: str = Field(description="not forgotten | damaged | suppressed | removal-consistent | not judged")
    sentence: str
    fired: list[str] = Field(default_factory=list, description="tests that speak for suppression")
    reference: bool = Field(True, description="a retrained model was there to compare with")


class Conclusion(BaseModel):
    """findings.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome: Outcome
    findings: list[Finding]
    not_tested: list[str]


def _value(findings: dict[str, Finding], name: str, role: str) -> float | None:
    finding = findings.get(name)
    estimate = None if finding is None else getattr(finding, role)
    return None if estimate is None else float(estimate.value)


def outcome(findings: list[Finding], evidence: Evidence) -> Outcome:
    """The word, from the findings."""
    by_name = {finding.metric: finding for finding in findings}
    score, utility, said = PLAIN[evidence.predictor]
    plain = {role: _value(by_name, score, role) for role in ("unlearned", "original", "retrained")}
    use = {role: _value(by_name, utility, role) for role in ("unlearned", "original")}
    reference = plain["retrained"] is not None
    firing = [*FIRING, *(name for suite in asked(evidence.config.suite) for name in suite.firing)]
    fired = [name for name in firing if name in by_name and by_name[name].verdict == "does not hold"]
    own, full, clean = plain["unlearned"], plain["original"], plain["retrained"]
    if own is None or full is None:
        return Outcome(word="not judged", sentence="The forget set was not scored on both models.", reference=reference)
    if clean is not None and own > (full + clean) / 2:
        return Outcome(
            word="not forgotten", fired=fired, reference=True,
            sentence=f"The {said} {own:.2f}; the original gave {full:.2f}, a model that never saw them {clean:.2f}.",
        )  # fmt: skip
    before, after = use["original"], use["unlearned"]
    if before and after is not None and after < (1 - evidence.config.thresholds.damage) * before:
        return Outcome(
            word="damaged", fired=fired, reference=reference,
            sentence=f"The model's utility fell from {before:.3f} to {after:.3f}: what was to be kept was harmed too.",
        )  # fmt: skip
    if fired:
        titles = ", ".join(by_name[name].title.lower() for name in fired)
        return Outcome(
            word="suppressed", fired=fired, reference=reference,
            sentence=f"On the surface it is forgotten, but the knowledge is there: {titles}.",
        )  # fmt: skip
    if not reference:
        return Outcome(
            word="not judged", fired=fired, reference=False,
            sentence="Without a retrained model there is nothing to say how an honest deletion would look (--against).",
        )  # fmt: skip
    ran = [name for name in firing if name in by_name and by_name[name].verdict == "holds"]
    if not ran:
        return Outcome(
            word="not judged", reference=True,
            sentence="The answers are gone on the surface; no test for hidden knowledge could be judged.",
        )  # fmt: skip
    tests = sum(name in by_name for name in firing)
    return Outcome(
        word="removal-consistent", reference=True,
        sentence=f"The {said.replace(' still', '')} {own:.2f}, against {clean:.2f} in a model that never saw them, and "
        f"{len(ran)} of {tests} tests for hidden knowledge were run and found none." + _others(findings),
    )  # fmt: skip


def _others(findings: list[Finding]) -> str:
    """The checks outside the rules that do not hold; the word alone must not hide them."""
    missed = [finding.title for finding in findings if finding.verdict == "does not hold"]
    if not missed:
        return ""
    named = ", ".join(missed[:4]) + (f" and {len(missed) - 4} more" if len(missed) > 4 else "")
    return f" {len(missed)} other check{'s do' if len(missed) > 1 else ' does'} not hold: {named}."


def _persons(evidence: Evidence) -> bool:
    """Whether the forget set says whose rows they are."""
    own = evidence.prediction("unlearned", "forget")
    return own is not None and bool(own.identities)


def _unfit(name: str, evidence: Evidence) -> str:
    """Why a suite that came with another could not be run on some model; empty where it could."""
    return next((str(why) for why in evidence.attacks.get(f"{name}-unfit", {}).values()), "")


def _left_out(name: str, why: str) -> Finding:
    return not_measured(
        f"{name}/all", f"Suite {name}", f"The suite {name}, which runs with the others.", "robustness", why
    )


def conclude(evidence: Evidence) -> Conclusion:
    """Findings and verdict: a pure function of the evidence, the same on every machine."""
    known = PREDICTOR_FINDINGS if evidence.predictor else SUITE_FINDINGS
    findings = [row for name in evidence.config.suite if name in known for row in known[name](evidence)]
    own = asked(evidence.config.suite) if not evidence.predictor else []
    unfit = {suite.name: _unfit(suite.name, evidence) for suite in own}
    for suite in own:
        findings += [_left_out(suite.name, unfit[suite.name])] if unfit[suite.name] else suite.findings(evidence)
    left_out = [
        f"the {name} suite (left out by choice)"
        for name in known
        if name not in evidence.config.suite
        and (name not in OWN_SUITES or evidence.attack(name, "left_out"))
        and not (name == "identity" and not _persons(evidence))
    ]
    covered = {entry for suite in own for entry in suite.covers if not unfit[suite.name]}
    never = UNTESTED_PREDICTOR if evidence.predictor else [entry for entry in UNTESTED if entry not in covered]
    return Conclusion(outcome=outcome(findings, evidence), findings=findings, not_tested=[*never, *left_out])
