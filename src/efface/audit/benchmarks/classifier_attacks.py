"""Findings of membership attacks on classifiers and regressors: from the model's own outputs, and beside shadow models.

Members are rows of the forget set. Non-members are unseen rows of the same classes: of a class that is wholly forgotten its
unseen rows, else the test set. The aim is the retrained model's value, not 0.5. A baseline that sees only the rows says
whether the two sets differ in kind; from 0.6 on the attacks are shown and not judged. With the suite `shadows` LiRA and RMIA
compare with models that were trained with and without each row, kept for later requests (`efface.train.shadow_models`).
"""

from __future__ import annotations

from typing import Any

from efface.audit.attacks.classifier_membership import ATTACKS, FOR_NUMBERS
from efface.audit.evidence import Evidence, compare
from efface.audit.finding import Estimate, Finding, Threshold, not_measured
from efface.audit.metrics.classification import LEAST
from efface.audit.metrics.roc import auc_interval, tpr_at_fpr
from efface.audit.predictions import Predictions

NAMES = {
    "loss": "LOSS", "entropy": "Entropy", "modified_entropy": "Modified entropy", "margin": "Margin",
    "correctness": "Correctness",
}  # fmt: skip
SHADOWS = {
    "lira_online": "LiRA", "lira_offline": "LiRA, offline", "rmia_online": "RMIA", "rmia_offline": "RMIA, offline",
}  # fmt: skip
MEANING = (
    "Chance that a row to be forgotten looks more like training data than an unseen one: 0.5 is a coin; the retrained model's "
    "value is the aim, and below it the forget set stands out the other way."
)
NEEDS = "no rows that the model has never seen were given (--holdout)"


def sides(evidence: Evidence, role: str) -> tuple[Predictions, Predictions] | None:
    """Members and non-members of one model."""
    inside, outside = evidence.prediction(role, "forget"), unseen(evidence, role)
    return None if inside is None or outside is None else (inside, outside)


def unseen(evidence: Evidence, role: str) -> Predictions | None:
    """Unseen rows of the forgotten classes where there are enough, else of the test set."""
    own, kept = evidence.test_part(role, forgotten=True), evidence.prediction(role, "retain")
    forget = evidence.prediction(role, "forget")
    whole = forget is not None and kept is not None and not set(forget.labels) & set(kept.labels)
    if whole and forget is not None and forget.task == "classification" and own is not None and len(own) >= LEAST:
        return own
    return evidence.test_part(role)


def findings(evidence: Evidence) -> list[Finding]:
    """AUC of every attack, TPR at 1 % FPR of the first, and the blind baseline."""
    pair = sides(evidence, "unlearned")
    if pair is None:
        return [not_measured("membership/loss/auc", "Membership attacks", MEANING, "privacy", NEEDS)]
    seed = evidence.config.seed
    blind = evidence.attack("blind", "rows")
    found = [_blind(blind)]
    judged = blind is not None and not blind["leaks"]
    gap = Threshold(quantity="gap", relation="<=", bound=evidence.config.thresholds.membership_gap) if judged else None
    for name, score in ATTACKS.items():
        if pair[0].task == "regression" and name not in FOR_NUMBERS:
            continue

        def auc(role: str, score: Any = score) -> Estimate | None:
            own = sides(evidence, role)
            return None if own is None else auc_interval(score(own[0]), score(own[1]), seed=seed)

        found.append(compare(
            evidence, f"membership/{name}/auc", f"{NAMES[name]}: AUC", MEANING, "privacy", "retrained", auc, threshold=gap,
        ))  # fmt: skip

    def tpr(role: str) -> Estimate | None:
        own = sides(evidence, role)
        return None if own is None else tpr_at_fpr(ATTACKS["loss"](own[0]), ATTACKS["loss"](own[1]), 0.01).estimate

    found.append(compare(
        evidence, "membership/loss/tpr_at_1_fpr", "LOSS: TPR at 1 % FPR",
        "Share of the forget set that is recognised when only one unseen row in a hundred is accused wrongly.", "privacy",
        "retrained", tpr, reason=f"a false positive rate of 1 % needs 100 non-members, there are {len(pair[1])}",
    ))  # fmt: skip
    return found


def _blind(stored: Any) -> Finding:
    title, meaning = (
        "Blind baseline: AUC without the model",
        "A classifier that sees only the rows. From 0.6 on, forget and unseen rows differ in kind, and no attack on them "
        "measures membership.",
    )
    if stored is None:
        return not_measured("membership/blind", title, meaning, "privacy", "too few rows for cross-validation", "none")
    reason = "the two sets differ in kind: the attacks below are shown but not judged" if stored["leaks"] else ""
    return Finding(
        metric="membership/blind", title=title, meaning=meaning, group="privacy", direction="none", verdict="informative",
        unlearned=Estimate.model_validate(stored["auc"]), reason=reason,
    )  # fmt: skip


def shadow_findings(evidence: Evidence) -> list[Finding]:
    """LiRA and RMIA, online and offline: AUC, and TPR at 1 % FPR."""
    own = evidence.attack("shadows", "unlearned")
    if own is None:
        reason = evidence.attack("shadows", "reason") or "no shadow models were trained"
        return [not_measured("membership/lira_online/auc", "LiRA: AUC", MEANING, "privacy", reason)]
    blind = evidence.attack("blind", "rows")
    judged = blind is not None and not blind["leaks"]
    gap = Threshold(quantity="gap", relation="<=", bound=evidence.config.thresholds.membership_gap) if judged else None
    found = []
    for name, title in SHADOWS.items():

        def figure(role: str, key: str, name: str = name) -> Estimate | None:
            record = evidence.attack("shadows", role)
            if record is None:
                return None
            value = (
                record["attacks"][name]["auc"] if key == "auc" else record["attacks"][name]["tpr"]["0.01"]["estimate"]
            )
            return None if value is None else Estimate.model_validate(value)

        found.append(compare(
            evidence, f"membership/{name}/auc", f"{title}: AUC", f"{MEANING} Beside {own['models']} shadow models.", "privacy",
            "retrained", lambda role, figure=figure: figure(role, "auc"), threshold=gap,  # type: ignore[misc]
        ))  # fmt: skip
        found.append(compare(
            evidence, f"membership/{name}/tpr_at_1_fpr", f"{title}: TPR at 1 % FPR",
            "Share of the forget set that is recognised when only one unseen row in a hundred is accused wrongly.", "privacy",
            "retrained", lambda role, figure=figure: figure(role, "tpr"),  # type: ignore[misc]
            reason=own["attacks"][name]["tpr"]["0.01"]["reason"],
        ))  # fmt: skip
    return found


__all__ = ["findings", "shadow_findings", "sides", "unseen"]
