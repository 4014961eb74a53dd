"""Membership attacks on the forget set: does the model still treat it as training data?

Sources: LOSS (Yeom et al. 2018), Zlib (arXiv 2012.07805), Min-K % (2310.16789), Min-K %++ (2404.02936), reference
calibration (2111.08440), PrivLeak (2407.06460). Members are forget answers, non-members holdout answers; larger
score = member. The aim is the retrained model's value, not 0.5. All scores come from the score table.
"""

from __future__ import annotations

from collections.abc import Callable

from efface.audit.evidence import Evidence, compare
from efface.audit.finding import Estimate, Finding, Threshold, not_measured
from efface.audit.metrics import membership
from efface.audit.metrics.roc import auc_interval, tpr_at_fpr
from efface.audit.table import TokenScores
from efface.catalog import Card
from efface.errors import InputError

CARD = Card(
    name="membership-inference",
    system="membership-inference",
    title="Membership inference",
    summary="Five attacks that guess from the model's scores whether a text was in its training data.",
    paper="Yeom et al. 2018; arXiv 2012.07805, 2111.08440, 2310.16789, 2404.02936, 2407.06460",
    verb="audit",
    mechanism="attacks",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget", "holdout", "retrained"),
    defaults_source="k = 0.2 (Min-K % paper and both official codes)",
)

ATTACKS: dict[str, tuple[str, Callable[[TokenScores], membership.Floats]]] = {
    "loss": ("LOSS", membership.loss),
    "zlib": ("Zlib", membership.zlib),
    "min_k": ("Min-K %", membership.min_k),
    "min_k_plus_plus": ("Min-K %++", lambda scores: membership.min_k_plus_plus(scores).scores),
}


def _sides(evidence: Evidence, role: str) -> tuple[TokenScores, TokenScores] | None:
    inside, outside = evidence.table(role, "forget"), evidence.table(role, "holdout")
    return None if inside is None or outside is None else (inside.select("answer"), outside.select("answer"))


def _scores(evidence: Evidence, role: str, attack: str) -> tuple[membership.Floats, membership.Floats] | None:
    """Member and non-member scores of an attack; the reference attack calibrates by the retrained model."""
    sides = _sides(evidence, role)
    if sides is None:
        return None
    if attack != "reference":
        score = ATTACKS[attack][1]
        return score(sides[0]), score(sides[1])
    other = _sides(evidence, "retrained")
    if other is None or role == "retrained":
        return None
    return membership.reference_calibrated(sides[0], other[0]), membership.reference_calibrated(sides[1], other[1])


def findings(evidence: Evidence) -> list[Finding]:
    """AUC and TPR at 1 % FPR of every attack, PrivLeak, and the blind baseline."""
    if evidence.table("unlearned", "holdout") is None:
        return [not_measured(
            "membership/auc", "Membership attacks", "Whether the forget set can be told from data never seen.", "privacy",
            "no holdout set was given (--holdout): without non-members there is nothing to compare with",
        )]  # fmt: skip
    found = [_blind(evidence)]
    sides = _sides(evidence, "unlearned")
    outside = len(sides[1]) if sides else 0
    leaks = (evidence.attack("blind", "texts") or {}).get("leaks", False)
    seed = evidence.config.seed
    gap = Threshold(quantity="gap", relation="<=", bound=evidence.config.thresholds.membership_gap)
    titles = {**{name: title for name, (title, _) in ATTACKS.items()}, "reference": "Reference-calibrated"}
    for attack, title in titles.items():

        def auc(role: str, attack: str = attack) -> Estimate | None:
            sides = _scores(evidence, role, attack)
            return None if sides is None else auc_interval(*sides, seed=seed)

        def tpr(role: str, attack: str = attack) -> Estimate | None:
            sides = _scores(evidence, role, attack)
            return None if sides is None else tpr_at_fpr(*sides, 0.01).estimate

        reason = "calibration needs a retrained model (--against)" if attack == "reference" else ""
        few = f"a false positive rate of 1 % needs 100 non-members, there are {outside}"
        judged = None if attack == "reference" or leaks else gap
        found.append(compare(
            evidence, f"membership/{attack}/auc", f"{title}: AUC",
            "Chance that a forget answer looks more like training data than an unseen one: 0.5 is a coin, 1 is certainty; "
            "the retrained model's value is the aim, and below it the forget set stands out the other way.",
            "privacy", "retrained", auc, threshold=judged, reason=reason,
        ))  # fmt: skip
        found.append(compare(
            evidence, f"membership/{attack}/tpr_at_1_fpr", f"{title}: TPR at 1 % FPR",
            "Share of the forget set that is recognised when only one unseen text in a hundred is accused wrongly.",
            "privacy", "retrained", tpr, reason=few if _scores(evidence, "unlearned", attack) is not None else reason,
        ))  # fmt: skip
    found.append(_priv_leak(evidence))
    return found


def _blind(evidence: Evidence) -> Finding:
    title = "Blind baseline: AUC without the model"
    meaning = (
        "A classifier that sees only the texts. From 0.6 on, forget and holdout differ in kind, and no attack on them "
        "measures membership."
    )
    stored = evidence.attack("blind", "texts")
    if stored is None:
        return not_measured("membership/blind", title, meaning, "privacy", "too few texts for cross-validation", "none")
    own = Estimate.model_validate(stored["auc"])
    reason = "the two sets differ in kind: the attacks below are shown but not judged" if stored["leaks"] else ""
    return Finding(
        metric="membership/blind", title=title, meaning=meaning, group="privacy", direction="none", unlearned=own,
        verdict="informative", reason=reason,
    )  # fmt: skip


def _priv_leak(evidence: Evidence) -> Finding:
    title, meaning = (
        "PrivLeak",
        (
            "Relative change of the Min-40 % AUC against the retrained model, in percent: 0 is ideal, near -100 the forget "
            "set still looks like training data, above 0 it stands out the other way (MUSE)."
        ),
    )
    own, other = _sides(evidence, "unlearned"), _sides(evidence, "retrained")
    if own is None or other is None:
        return not_measured("membership/privleak", title, meaning, "privacy", "needs a retrained model (--against)")

    def leak(role: str) -> Estimate | None:
        sides = _sides(evidence, role)
        if sides is None:
            return None
        scores = [membership.min_k(side, 0.4) for side in (*sides, *other)]
        try:
            return membership.priv_leak(*scores, seed=evidence.config.seed)
        except InputError:  # the retrained model's share is 0: the ratio is not defined
            return None

    return compare(
        evidence, "membership/privleak", title, meaning, "privacy", "none", leak, unit="%",
        reason="the retrained model never ranks holdout above forget: the ratio is not defined",
    )  # fmt: skip
