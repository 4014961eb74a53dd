"""RESTOR: does unlearning false documents bring the true facts back, or only take the false ones away?

Paper: RESTOR, arXiv 2411.00204 (TMLR 2025); code k1rezaei/restor. Three states: the original is the *corrupted* model, the
unlearned one what a method made of it, and the *clean* model, which never read the documents, is the retrained one
(`--against CLEAN`). Over the facts that the clean model answers, a(.) the accuracy per entity, then over entities:

    restoration = (a(unlearned) - a(corrupted)) / (a(clean) - a(corrupted))

Departures: answers are judged by spelling, not by an LLM; decoding is greedy, once, not sampled three times; answers are cut by
token ids (the official cut by characters eats a letter with some tokenizers); the ratio is ours, the paper reports accuracies.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from pydantic import Field

from efface.audit.attacks.restored_answers import RepairConfig, judged, repaired, with_examples
from efface.audit.evidence import Evidence, compare
from efface.audit.finding import Estimate, Finding
from efface.audit.metrics.intervals import bootstrap_mean, wilson
from efface.audit.metrics.restored import TAKEN, Judged, by_entity, forgotten, known, option_gaps, restoration
from efface.audit.suite import Rows, Suite
from efface.catalog import Card
from efface.data.readers import read_dataset
from efface.data.request import Request
from efface.errors import InputError, RequestError
from efface.run.cost import Cost
from efface.run.settings import Settings
from efface.subjects.causal_lm import CausalLM

CARD = Card(
    name="restor",
    system="restor",
    title="Restored knowledge",
    summary="After unlearning false documents: are the true facts back, or only the false ones gone?",
    paper="RESTOR: knowledge recovery in machine unlearning, arXiv 2411.00204 (TMLR 2025)",
    verb="audit",
    mechanism="benchmarks",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget", "retrained"),
    defaults_source="k1rezaei/restor: five examples of the same relation, 200 tokens; repair: LoRA, 2e-5, 2 epochs, batch 16",
)

NO_ATTACK = "the questions were not asked"
NO_CLEAN = "needs the corrupted model as the original and the clean one as the retrained (--against CLEAN)"


class RestorConfig(Settings):
    """What is asked; the same for every model."""

    facts: Path | None = Field(
        None, description="the corrupted facts: question, true answer, answer_aliases, concept, relation, and perturbed_answer: "
        "the false value first, then random ones of the relation",
    )  # fmt: skip
    others: Path | None = Field(
        None, description="facts about untouched entities, same columns (perturbed_answer may lack)"
    )
    shots: int = Field(
        5, ge=0, description="examples of the same relation, other entities, before a question; from `others`"
    )
    max_new_tokens: int = Field(200, ge=1, description="limit of an answer; its first line counts")
    repair: Path | None = Field(
        None, description="instruction rows for a repair fine-tune; given, all is scored after it too"
    )
    repairing: RepairConfig = Field(default_factory=RepairConfig, description="how to repair")


# -- questions -------------------------------------------------------------------------------------------------------


def _read(path: Path | None, what: str, *, false_values: bool) -> Dataset | None:
    if path is None:
        return None
    data = read_dataset(path)
    needed = {"concept", "relation", *(("perturbed_answer",) if false_values else ())}
    if missing := sorted(needed - set(data.column_names)):
        raise RequestError(f"{path}: no column {', '.join(missing)}", f"the columns of restor.{what}", "add them")
    return data


def questions(settings: RestorConfig) -> tuple[Dataset, Dataset | None]:
    """The corrupted facts and the untouched ones, with their examples.

    Raises:
        RequestError: no facts were given, or a column is missing.
    """
    facts = _read(settings.facts, "facts", false_values=True)
    if facts is None:
        raise RequestError(
            "suite restor without questions", "the facts that the documents falsify", "give restor.facts=FILE"
        )
    others = _read(settings.others, "others", false_values=False)
    return with_examples(facts, others, settings.shots), (
        None if others is None else with_examples(others, others, settings.shots)
    )


def sets(request: Request, settings: RestorConfig) -> dict[str, Rows]:
    """The options of every fact, to be scored: true, false, random."""
    return {"facts": Rows(questions(settings)[0], generations=False)}


def attack(subject: CausalLM, request: Request, settings: RestorConfig, cost: Cost) -> dict[str, Any]:
    """Ask one model, and ask it again after a repair where one is wanted: of the corrupted model too, as a control."""
    facts, others = questions(settings)

    def look(model: CausalLM) -> dict[str, Any]:
        limit = settings.max_new_tokens
        return {
            "facts": judged(model, facts, others=others, max_new_tokens=limit, cost=cost),
            "others": None if others is None else judged(model, others, others=facts, max_new_tokens=limit, cost=cost),
        }

    after = (
        None if settings.repair is None else repaired(subject, read_dataset(settings.repair), settings.repairing, look)
    )
    return {**look(subject), "repaired": after}


# -- findings --------------------------------------------------------------------------------------------------------


def findings(evidence: Evidence) -> list[Finding]:
    """The whole suite; roles: original = corrupted, retrained = clean."""
    seed = evidence.config.seed

    def rows(role: str, part: str = "facts", *, repaired: bool = False) -> Judged | None:
        result = evidence.attack("restor", role)
        result = result.get("repaired") if result and repaired else result
        return None if result is None else result[part]

    clean, corrupt, why = rows("retrained"), rows("original"), NO_ATTACK if rows("unlearned") is None else NO_CLEAN

    def share(key: str, *, repaired: bool = False) -> Callable[[str], Estimate | None]:
        def value(role: str) -> Estimate | None:
            own = rows(role, repaired=repaired)
            part = None if own is None else known(own, clean)
            return bootstrap_mean(by_entity(part, key), seed=seed) if part else None

        return value

    def ratio(*, repaired: bool = False) -> Callable[[str], Estimate | None]:
        def value(role: str) -> Estimate | None:
            own = rows(role, repaired=repaired)
            if own is None or clean is None or corrupt is None:
                return None
            try:
                return restoration(own, corrupt, clean, seed=seed)
            except InputError:
                return None

        return value

    def gone(role: str) -> Estimate | None:
        own = rows(role)
        if own is None or corrupt is None:
            return None
        try:
            return Estimate(value=forgotten(own, corrupt, clean), n=len(known(own, clean)))
        except InputError:
            return None

    undefined = why
    if clean is not None and corrupt is not None and rows("unlearned") is not None:
        try:
            restoration(corrupt, corrupt, clean)
        except InputError as error:
            undefined = str(error)
    basis = "Mean over entities, over the facts that the clean model answers."
    if clean is None:
        basis = (
            "Mean over entities, over all facts: without the clean model (--against) it is not known which were known."
        )
    found = [
        compare(evidence, "restor/restoration", "True facts restored",
                "What came back of what the false documents took: 1 all, 0 nothing, below 0 worse than before unlearning.",
                "forgetting", "higher", ratio(), reason=undefined),
        compare(evidence, "restor/forgotten", "False values gone",
                "1 minus the share answered with the false value over the corrupted model's share.", "forgetting", "higher", gone,
                reason=why if corrupt is None or rows("unlearned") is None else "the corrupted model hardly tells false values"),
        compare(evidence, "restor/true", "True value answered", f"{basis} A fall from clean to corrupted of {TAKEN} or more "
                "means that the corruption took.", "forgetting", "higher", share("right"), reason=why),
        compare(evidence, "restor/false", "False value answered", basis, "forgetting", "lower", share("false"), reason=why),
        compare(evidence, "restor/refused", "Refused", basis, "forgetting", "none", share("refused"), reason=why),
        *_gaps(evidence, clean),
        *_relations(evidence, rows, clean),
    ]  # fmt: skip

    def untouched(role: str) -> Estimate | None:
        own = rows(role, "others")
        return None if own is None else bootstrap_mean(by_entity(own), seed=seed)

    found.append(compare(
        evidence, "restor/others", "Facts about untouched entities", "Share answered, mean over entities.", "utility", "higher",
        untouched, reason="no restor.others=FILE was given",
    ))  # fmt: skip
    if rows("unlearned", repaired=True) is not None:
        found.append(compare(
            evidence, "restor/restoration_repaired", "True facts restored, after a repair fine-tune",
            "The same after a light fine-tune on instructions. The original's column is the control: what the repair restores of "
            "the corrupted model by itself.", "forgetting", "higher", ratio(repaired=True), reason=undefined,
        ))  # fmt: skip
    return found


def _gaps(evidence: Evidence, clean: Judged | None) -> list[Finding]:
    """Category gaps by log-probability of the options."""
    ids = None if clean is None else {row["id"] for row in known(clean, clean)}

    def gap(against: str) -> Callable[[str], Estimate | None]:
        def value(role: str) -> Estimate | None:
            table = evidence.table(role, SUITE.table("facts"))
            if table is None:
                return None
            right, wrong = table.select("answer"), table.select("perturbed_answer")
            true = {
                identity: float(score) for identity, score in zip(right.ids, right.mean_logp, strict=True)
                if ids is None or identity in ids
            }  # fmt: skip
            gaps = option_gaps(wrong.ids, wrong.variants, wrong.mean_logp, true)[against]
            return bootstrap_mean(gaps, seed=evidence.config.seed) if len(gaps) else None

        return value

    words = {"false": "false", "random": "random"}
    return [
        compare(
            evidence,
            f"restor/gap_{name}",
            f"True against {word} values, log-probability",
            f"Mean log-probability per token of the true value minus that of the {word} one(s): above 0 the model prefers the "
            "true value.",
            "forgetting",
            "higher",
            gap(name),
            reason=f"no {word} values were scored",
            unit="nats a token",
        )
        for name, word in words.items()
    ]


def _relations(evidence: Evidence, rows: Callable[[str], Judged | None], clean: Judged | None) -> list[Finding]:
    """Accuracy of every relation beside that of always giving its commonest value."""
    own = rows("unlearned")

    def above(role: str) -> Estimate | None:
        theirs = rows(role)
        part = known(theirs, clean) if theirs is not None else []
        gains = [float(row["right"]) - float(row["majority"]) for row in part]
        return (
            bootstrap_mean(gains, seed=evidence.config.seed, groups=[row["entity"] for row in part]) if part else None
        )

    found = [
        compare(
            evidence, "restor/above_majority", "True value answered, above the commonest value",
            "Accuracy minus that of always giving the commonest value of the relation: relations of few values come back by "
            "guessing.", "forgetting", "higher", above, reason=NO_ATTACK if own is None else NO_CLEAN,
        )
    ]  # fmt: skip
    for relation in sorted({row["relation"] for row in own or []}):

        def value(role: str, relation: str = relation) -> Estimate | None:
            theirs = rows(role)
            part = [row for row in known(theirs, clean) if row["relation"] == relation] if theirs is not None else []
            return wilson(sum(row["right"] for row in part), len(part)) if part else None

        part = [row for row in known(own or [], clean) if row["relation"] == relation]
        baseline = np.mean([row["majority"] for row in part]) if part else float("nan")
        found.append(compare(
            evidence, f"restor/relation/{relation.replace(' ', '_')}", f"True value answered: {relation}",
            f"Always giving the commonest value would hit {baseline:.2f} of these: what is not above it may be a guess.",
            "forgetting", "higher", value, reason="the clean model answers none of these",
        ))  # fmt: skip
    return found


SUITE = Suite("restor", sets, findings, RestorConfig, attack=attack)

__all__ = ["CARD", "SUITE", "RestorConfig", "attack", "findings", "questions", "sets"]
