"""Findings on persons: NoMUS where the request is about identities (arXiv 2311.02240; `audit.metrics.identity`).

The forget set holds all rows of some persons, the holdout set persons that no model has seen. The score is shown with its
halves and never judged by itself: a model that learnt nothing has half of it. Where the test set (`evaluate.test`) is another
one than the unseen persons of the attack (`holdout`), it judges the task.
"""

from __future__ import annotations

from collections.abc import Callable

from efface.audit.evidence import Evidence, compare
from efface.audit.finding import Estimate, Finding, not_measured
from efface.audit.metrics.identity import NoMUS, badly_trained, nomus
from efface.errors import InputError

TITLE = "Forgetting persons and keeping the task (NoMUS)"
MEANING = "Half the accuracy on the task, half how little a loss attack tells forgotten persons from unseen ones."


def scores(evidence: Evidence) -> tuple[dict[str, NoMUS], str]:
    """NoMUS of every model, and why it is missing where it is."""
    found: dict[str, NoMUS] = {}
    for role in ("unlearned", "original", "retrained"):
        forget, unseen = evidence.prediction(role, "forget"), evidence.prediction(role, "holdout")
        if forget is None or unseen is None:
            if role == "unlearned":
                return {}, "needs rows of persons that no model has seen (--holdout)"
            continue
        if not forget.identities or not unseen.identities:
            return {}, "the sets do not say whose rows they are (a column 'identity')"
        try:
            found[role] = nomus(evidence.prediction(role, "test") or unseen, forget, unseen, seed=evidence.config.seed)
        except InputError as error:
            return {}, str(error)
    return found, ""


def findings(evidence: Evidence) -> list[Finding]:
    """The score, the task, and the attack by rows and by persons."""
    if evidence.predictor == "regression":
        return []
    found, reason = scores(evidence)
    if not found:
        return [not_measured("identity/nomus", TITLE, MEANING, "privacy", reason)]

    def of(figure: Callable[[NoMUS], Estimate | None]) -> Callable[[str], Estimate | None]:
        return lambda role: figure(found[role]) if role in found else None

    def grouped(own: NoMUS) -> Estimate | None:
        return None if own.grouped is None else own.grouped.accuracy

    own = found["unlearned"]
    parts = ", ".join(f"{name} {value:.3f}" for name, value in own.parts.items())
    notes = [f"halves: {parts}"]
    if own.useless:
        notes.append(
            f"the task is no better than the commonest label ({own.commonest:.2f}): the score is its forgetting half"
        )
    tables = [evidence.prediction(role, "retain") for role in ("original", "retrained")]
    if tables[0] is not None and tables[1] is not None:
        notes.append(badly_trained(tables[0], tables[1]))
    score = compare(evidence, "identity/nomus", TITLE, MEANING, "privacy", "none", of(lambda n: n.value))
    return [
        score.model_copy(update={"reason": "; ".join(note for note in notes if note)}),
        compare(evidence, "identity/attack", "Loss attack on the forgotten persons, by rows",
                "Accuracy of a logistic regression on the loss, forgotten against unseen persons: 0.5 is a coin; the retrained "
                "model's value is the aim.", "privacy", "retrained", of(lambda n: n.attack.accuracy)),
        compare(evidence, "identity/attack_by_person", "Loss attack on the forgotten persons, by persons",
                "The same, with no person in both the fitted and the tested part.", "privacy", "retrained", of(grouped),
                reason="too few persons"),
    ]  # fmt: skip


__all__ = ["findings", "scores"]
