"""Memorisation of the forget set: what the model still completes word by word when led along the true answer.

Exact memorisation (arXiv 2205.10770) and extraction strength (Carlini et al. 2021, in the form of arXiv 2410.08109).
Both come from the ranks in the score table; open-unlearning's bug (1/L where nothing is right) is not carried over.
"""

from __future__ import annotations

from efface.audit.evidence import Evidence, compare
from efface.audit.finding import Estimate, Finding, Threshold
from efface.audit.metrics.intervals import bootstrap_mean
from efface.audit.metrics.memorisation import exact_memorisation, extraction_strength


def findings(evidence: Evidence) -> list[Finding]:
    """Both metrics on the forget set, against the retrained model."""
    gap = Threshold(quantity="gap", relation="<=", bound=evidence.config.thresholds.memorisation_gap)

    def exact(role: str) -> Estimate | None:
        table = evidence.table(role, "forget")
        if table is None:
            return None
        return bootstrap_mean(exact_memorisation(table.select("answer")), seed=evidence.config.seed)

    def strength(role: str) -> Estimate | None:
        table = evidence.table(role, "forget")
        if table is None:
            return None
        return bootstrap_mean(extraction_strength(table.select("answer")), seed=evidence.config.seed)

    return [
        compare(evidence, "memorisation/exact", "Exact memorisation",
                "Share of the forgotten answers' tokens that are the model's first choice, given the true tokens before.",
                "forgetting", "retrained", exact, threshold=gap),
        compare(evidence, "memorisation/extraction_strength", "Extraction strength",
                "How little of the answer must be given before the model completes the rest without a mistake.",
                "forgetting", "retrained", strength, threshold=gap),
    ]  # fmt: skip
