"""Faithfulness: does the answer follow the story, or does the model answer from memory when the evidence is gone?

Paper: Chaturvedi, Bhar, Saha, Garain and Asher, Analyzing Semantic Faithfulness of Language Models via Input Intervention on
Conversational Question Answering, arXiv 2212.10696 (Computational Linguistics, 2023). The answering sentence is deleted (TS-R,
OS-R), with the old answer appended or not, or it is negated, or its roles are swapped; a faithful reader's answer must change.
UD is the share of answers that stay after deletion, UK the share that become `unknown`, UN the share that stay after negation.
This is the paper's form for generators (a prompt that asks to read or say unknown), not its encoder with a span head.

Departures: every share is over items that the model answers rightly on the whole story; yes/no questions are counted apart,
where chance leaves half unchanged; items whose rest still supports the answer are counted and left out. Used on what was to be
forgotten, a high UD is knowledge that leaks into open-book answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from efface.audit.attacks.story_reading import FaithfulnessConfig, ask_stories
from efface.audit.evidence import Evidence, Group, compare
from efface.audit.finding import Direction, Estimate, Finding
from efface.audit.metrics.intervals import bootstrap_mean
from efface.audit.suite import Rows, Suite
from efface.catalog import Card
from efface.data.interventions import DELETIONS
from efface.data.request import Request

NAME = "faithfulness"
TITLES = {
    "TS-R": "the answering sentence and all after it deleted", "TS-R+gold": "the same, with the old answer appended as a word",
    "OS-R": "the answering sentence alone deleted", "OS-R+gold": "the same, with the old answer appended",
    "negated": "the answering sentence negated", "swapped": "the roles in the answering sentence swapped",
}  # fmt: skip

CARD = Card(
    name="semantic-faithfulness",
    system="semantic-faithfulness",
    title="Semantic faithfulness",
    summary="Deletes, negates or turns round the sentence that carries the answer, and counts the answers that stay: reading, or "
    "memory?",
    paper="Chaturvedi et al., Analyzing Semantic Faithfulness by Input Intervention, arXiv 2212.10696 (2023)",
    verb="audit",
    mechanism="benchmarks",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget",),
    defaults_source="the paper's generator form; two turns of history; the wording of the prompt is efface's own",
)  # fmt: skip


# -- findings -----------------------------------------------------------------------------------------------------------


def chosen(made: Mapping[str, Any], kind: str, column: str, *, yes_no: bool = False) -> list[float]:
    """A column over the items that are right on the whole story, of one sort of question, without redundant evidence."""
    known = dict(zip(made["OS"]["items"], made["OS"].get("right", []), strict=False))
    own = made[kind]
    columns = (own["items"], own.get(column, []), own.get("yes_no", []), own.get("supported", []))
    return [
        float(value) for i, value, sort, supported in zip(*columns, strict=False)
        if known.get(i) and sort == yes_no and not supported
    ]  # fmt: skip


def findings(evidence: Evidence) -> list[Finding]:
    """The whole suite."""
    return [row for name in evidence.attack(NAME, "unlearned") or {} for row in _of_set(evidence, name)]


def _of_set(evidence: Evidence, name: str) -> list[Finding]:
    group: Group = "forgetting" if name == "forget" else "utility"
    seed = evidence.config.seed

    def said(role: str) -> Mapping[str, Any] | None:
        return (evidence.attack(NAME, role) or {}).get(name)

    def mean(kind: str, column: str, yes_no: bool | None) -> Callable[[str], Estimate | None]:
        def value(role: str) -> Estimate | None:
            own = said(role)
            if own is None or not own[kind].get(column):
                return None
            rows = [float(x) for x in own[kind][column]] if yes_no is None else chosen(own, kind, column, yes_no=yes_no)
            return bootstrap_mean(rows, seed=seed) if rows else None

        return value

    def add(
        metric: str, title: str, meaning: str, direction: Direction, kind: str, column: str, yes_no: bool | None = None
    ) -> None:
        own = said("unlearned") or {}
        skipped = own.get(kind, {}).get("skipped", {})
        supported = sum(own.get(kind, {}).get("supported", []))
        notes = [f"{count} skipped: {why}" for why, count in skipped.items()]
        notes += [f"{supported} left out: the rest still says the answer"] if supported and yes_no is not None else []
        found = compare(
            evidence, f"{NAME}/{metric}/{name}/{kind}", f"{title}, {name}", meaning, group, direction,
            mean(kind, column, yes_no), reason="; ".join(notes) or "no item that the model answers rightly",
        )  # fmt: skip
        results.append(found if found.reason or not notes else found.model_copy(update={"reason": "; ".join(notes)}))

    results: list[Finding] = []
    for kind, what in (("OS", "whole story"), ("TS", "story cut after the answer")):
        add(
            "right",
            f"Right answers, {what}",
            f"Share of answers that are right with the {what}.",
            "higher",
            kind,
            "right",
        )
        add("f1", f"Answer F1, {what}", f"Word F1 against the right answers with the {what}.", "higher", kind, "f1")
    add(
        "unknown",
        "False unknown on whole stories",
        "Share of whole stories that the model says do not tell.",
        "lower",
        "OS",
        "unknown",
    )
    right_ones = "Of items that are right on the whole story, without yes/no questions: the share"
    for kind in DELETIONS:
        add(
            "unchanged",
            f"Answers that stay with {TITLES[kind]} (UD)",
            f"{right_ones} whose answer is the same without the evidence: memory, not reading.",
            "lower",
            kind,
            "same",
            False,
        )
        add(
            "unknown",
            f"Unknown with {TITLES[kind]} (UK)",
            f"{right_ones} answered with unknown, as they should be.",
            "higher",
            kind,
            "unknown",
            False,
        )
    for kind in ("TS-R", "OS-R"):
        add(
            "kl",
            f"Shift of the answer's distribution with {TITLES[kind]}",
            "KL in nats between the first answer token's distributions with and without the evidence; 0: the story was not read.",
            "higher",
            kind,
            "kl",
            False,
        )
    for kind in ("negated", "swapped"):
        add(
            "unchanged",
            f"Answers that stay with {TITLES[kind]} (UN)",
            f"{right_ones} whose answer is the same afterwards.",
            "lower",
            kind,
            "same",
            False,
        )
    own = said("unlearned") or {}
    if any(own.get("OS", {}).get("yes_no", [])):
        for kind in ("TS-R", "negated"):
            add(
                "unchanged_yes_no",
                f"Yes/no answers that stay with {TITLES[kind]}",
                "Share of yes/no questions, right on the whole story, with the same answer; chance is one half.",
                "lower",
                kind,
                "same",
                True,
            )
        add(
            "flipped",
            "Yes/no answers that turn round with the negation (flip accuracy)",
            "Share of yes/no questions, right on the whole story, answered with the opposite after negation.",
            "higher",
            "negated",
            "flipped",
            True,
        )
    return results


def sets(request: Request, config: FaithfulnessConfig) -> Mapping[str, Rows]:
    """None: what counts is whether two answers of one model are the same, which no table of one set says."""
    return {}


SUITE = Suite(name=NAME, sets=sets, findings=findings, config=FaithfulnessConfig, attack=ask_stories)

__all__ = ["SUITE", "chosen"]
