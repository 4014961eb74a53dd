"""Findings on the features: did the representation forget too, or only what follows it?

Accuracy is blind to an edit of the head alone. So the features of the forget set are compared with the original's (a model that
forgot at the logits and left them untouched has hidden the class, not lost it), and read out again by neighbours and by a
linear probe, always as excess over the retrained model, from which a class that it never saw can be read as well
(arXiv 2503.06991; figures in `audit.metrics.representation`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from efface.audit.evidence import Evidence
from efface.audit.finding import Estimate, Finding, Threshold, judge, not_measured
from efface.audit.metrics.representation import DOWNSTREAM, Measured, Representation, represent
from efface.audit.metrics.representation_scores import suppressed, unified
from efface.audit.predictions import Predictions
from efface.errors import InputError

NEEDS = "needs the original and a retrained model (--against) of the same rows"
SAID = {"forget": "forget set", "retain": "retain set", "retain_test": "test set", "forget_test": "forget test set"}


def tables_of(evidence: Evidence, role: str) -> dict[str, Predictions]:
    """The tables of one model under the names of the figures; sets of other names are left out."""
    own = evidence.predictions.get(role, {})
    found = {name: table for name, table in own.items() if name in ("forget", "retain") or name.startswith(DOWNSTREAM)}
    for name, gone in (("retain_test", False), ("forget_test", True)):
        part = evidence.test_part(role, forgotten=gone)
        if part is not None:
            found[name] = part
    return found


def findings(evidence: Evidence) -> list[Finding]:
    """Untouched features, neighbours and probes, the similarity to both models, and the unified score."""
    if evidence.predictor == "regression":
        return [_none("a regressor has no classes that could be read from its features")]
    roles = {role: tables_of(evidence, role) for role in ("unlearned", "original", "retrained")}
    if any("retain" not in tables for tables in roles.values()):
        return [_none(NEEDS)]
    try:
        seen = {role: represent(own, roles["original"], roles["retrained"]) for role, own in roles.items()}
    except InputError as error:
        return [_none(str(error))]
    limits = evidence.config.thresholds
    found = [_untouched(seen, limits.untouched_features)]
    for reader, title, what in (
        ("probe", "A linear probe", "logistic regression on the features"),
        ("knn", "Neighbours", "the five nearest training rows by the cosine of the features"),
    ):
        found += _read_out(seen, reader, title, what, limits.probe_excess)
    found += _similarities(seen)
    found.append(_score(seen))
    return found


def _none(reason: str) -> Finding:
    return not_measured(
        "representation/untouched",
        "Features of the forget set",
        "Whether the representation forgot too.",
        "robustness",
        reason,
    )


def _three(seen: dict[str, Representation], figure: Callable[[Representation], Measured]) -> dict[str, Estimate | None]:
    return {role: figure(own).estimate for role, own in seen.items()}


def _untouched(seen: dict[str, Representation], limit: float) -> Finding:
    """CKA to the original on the forget set; judged where the logits have forgotten."""
    title = "Features of the forget set as before"
    meaning = (
        "Similarity (linear CKA) of the forget set's features to the original's. A model that no longer says the class and has "
        "the original's features was changed behind them only: a new head brings everything back."
    )
    values = _three(seen, lambda own: own.cka_original["forget"])
    if values["unlearned"] is None:
        reason = seen["unlearned"].cka_original["forget"].reason
        return not_measured("representation/untouched", title, meaning, "robustness", reason)
    caught = suppressed(seen["unlearned"], seen["retrained"])
    finding = Finding(
        metric="representation/untouched", title=title, meaning=meaning, group="robustness", direction="retrained",
        verdict="informative", **values,
    )  # fmt: skip
    wrong, aim = (1 - seen[role].accuracy["forget"].value for role in ("unlearned", "retrained"))
    if wrong < aim - 0.01 and not caught:
        return finding.model_copy(update={"reason": "not judged: the forget set is not forgotten at the logits"})
    verdict = judge(finding.model_copy(update={"threshold": Threshold(quantity="value", relation="<=", bound=limit)}))
    if verdict.verdict == "does not hold" and not caught:  # a retrained model can be as near to the original
        return finding.model_copy(
            update={"reason": "not judged: the retrained model's features are as near to the original's"}
        )
    return verdict.model_copy(update={"reason": caught or verdict.reason})


def _read_out(seen: dict[str, Representation], reader: str, title: str, what: str, limit: float) -> list[Finding]:
    """One finding a set; on forgotten rows, more than the retrained model's by `limit` counts as still there."""
    found = []
    for name in getattr(seen["unlearned"], reader):
        gone = name.startswith("forget")
        key = "probe" if reader == "probe" else "neighbours"
        metric = f"representation/{key}" if gone else f"representation/{key}/{name}"
        said = SAID.get(name, name.replace("_", " "))
        values = _three(seen, lambda own, name=name: getattr(own, reader)[name])  # type: ignore[misc]
        meaning = f"Share of the {said} that {what} read{'s' if reader == 'probe' else ''} right."
        if values["unlearned"] is None or values["retrained"] is None:
            reason = getattr(seen["unlearned"], reader)[name].reason or NEEDS
            found.append(not_measured(metric, f"{title} on the {said}", meaning, "robustness", reason))
            continue
        excess = values["unlearned"].value - values["retrained"].value
        finding = Finding(
            metric=metric, title=f"{title} on the {said}", group="robustness" if gone else "utility",
            meaning=meaning + (" The retrained model's share is the aim: it reads unseen classes too." if gone else ""),
            direction="retrained" if gone else "higher", verdict="informative", **values,
        )  # fmt: skip
        if gone:
            bound = Threshold(quantity="value", relation="<=", bound=min(1.0, values["retrained"].value + limit))
            words = f"excess over the retrained model {excess:+.3f}, at most {limit:g}"
            finding = judge(finding.model_copy(update={"threshold": bound})).model_copy(update={"reason": words})
        found.append(finding)
    return found


def _similarities(seen: dict[str, Representation]) -> list[Finding]:
    found = []
    for name in seen["unlearned"].cka_retrained:
        said = SAID.get(name, name.replace("_", " "))
        values = _three(seen, lambda own, name=name: own.cka_retrained[name])  # type: ignore[misc]
        title = f"Similarity to the retrained features, {said}"
        meaning = f"Linear CKA of the {said}'s features to the retrained model's: 1 is equal up to rotation and scale."
        if values["unlearned"] is None:
            reason = seen["unlearned"].cka_retrained[name].reason
            found.append(not_measured(f"representation/cka/{name}", title, meaning, "forgetting", reason))
            continue
        found.append(Finding(
            metric=f"representation/cka/{name}", title=title, meaning=meaning, verdict="informative",
            group="utility" if "retain" in name or name.startswith(DOWNSTREAM) else "forgetting", direction="higher", **values,
        ))  # fmt: skip
    return found


def _score(seen: dict[str, Representation]) -> Finding:
    title, meaning = (
        "Logits and features together (H-LR)",
        (
            "Harmonic mean of how near logits (AGL) and representation (AGR) are to the retrained model's; 1 is the retrained "
            "model. efface's definition: the paper gives no formula."
        ),
    )

    @cache
    def scored(role: str) -> Estimate | None:
        value = unified(seen[role], seen["retrained"]).h_lr
        return None if value != value else Estimate(value=value, n=seen[role].accuracy["forget"].n)

    own = scored("unlearned")
    parts = unified(seen["unlearned"], seen["retrained"])
    if own is None:
        return not_measured("representation/h_lr", title, meaning, "forgetting", "; ".join(parts.reasons))
    return Finding(
        metric="representation/h_lr", title=title, meaning=meaning, group="forgetting", direction="higher", unlearned=own,
        original=scored("original"), retrained=scored("retrained"), verdict="informative",
        reason=f"AGL {parts.agl:.3f}, AGR {parts.agr:.3f}",
    )  # fmt: skip


__all__ = ["findings", "tables_of"]
