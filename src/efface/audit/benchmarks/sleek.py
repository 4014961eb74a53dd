"""SLEEK: does step-by-step questioning bring back what was erased, and was something kept that is gone now?

Paper: Step-by-Step Reasoning Attack, arXiv 2506.17279 (2025); no official code was found. Leak rates count among *valid*
questions, those that the original answers in the same mode; without the original they are marked unconditional. Unfair
suppression always stands beside them: a model that refuses everything has leak rate 0 and suppression 1. Many prompts a fact
find something by guessing: the retrained model under the same questions, a random other value, and chance stand beside.
Departures: questions come from templates over the fact graph, not from an LLM; leaks are judged by spelling, not by an LLM;
decoding is greedy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from efface.audit.attacks.step_by_step import ask
from efface.audit.evidence import Evidence, compare
from efface.audit.finding import Estimate, Finding, Threshold, judge, not_measured
from efface.audit.metrics.leak_rates import (
    Rows,
    above_chance,
    chosen,
    difference,
    prompts_to_first_leak,
    rate,
    recovery,
    suppressed,
    valid,
)
from efface.audit.suite import Suite
from efface.catalog import Card
from efface.data.fact_graph import from_request
from efface.data.request import Request
from efface.data.step_prompts import CATEGORIES, MODES, Mode, Wordings, queries
from efface.run.cost import Cost
from efface.run.settings import Settings
from efface.subjects.causal_lm import CausalLM

CARD = Card(
    name="sleek",
    system="sleek",
    title="Step-by-step reasoning attack",
    summary="Asks for erased facts directly, round corners and step by step, and checks that facts to be kept are still told.",
    paper="Step-by-Step Reasoning Attack, arXiv 2506.17279 (2025)",
    verb="audit",
    mechanism="benchmarks",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget", "retain", "retrained"),
    defaults_source="the specification after arXiv 2506.17279: 10 prompts a fact, greedy, 256 new tokens, 3 wordings",
)

NO_ATTACK = "the attack was not run"
NO_VALID = "the original answers none of these questions, so nothing of it could leak"


class SleekConfig(Settings):
    """The attacker's questions; the same for every model."""

    graph: Path | None = Field(
        None,
        description="JSON or CSV of more facts: concept, relation, answer, answer_aliases, mark (forget, retain, none)",
    )
    modes: tuple[Mode, ...] = Field(
        MODES, min_length=1, description="plain, cot (one prompt with steps), chain (hop by hop)"
    )
    per_fact: int = Field(10, ge=1, description="B, questions a fact")
    longest: int = Field(3, ge=1, le=4, description="hops of the longest path, at most 4")
    retain_facts: int = Field(100, ge=1, description="most facts to be kept that are asked for, evenly spaced")
    max_new_tokens: int = Field(256, ge=1, description="limit of an answer")
    oracle_hops: bool = Field(False, description="chains are told the true answers of retained hops")
    excess: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="largest leak rate above the retrained model's (as relearning_transfer of the house)",
    )
    wordings: Wordings = Field(default_factory=Wordings, description="the templates")
    seed: int = Field(0, ge=0, description="of the choice among paths")


def attack(subject: CausalLM, request: Request, settings: SleekConfig, cost: Cost) -> dict[str, Any]:
    """Ask one model; the questions depend on request and settings alone.

    Returns:
        `rows` of `ask`, `dropped` questions that held their own answer, by category, and `facts` asked for by mark.
    """
    graph = from_request(request, settings.graph)
    kept = graph.marked("retain")
    kept = kept[:: max(1, -(-len(kept) // settings.retain_facts))]
    facts = [*graph.marked("forget"), *kept]
    made = queries(
        graph,
        facts,
        wordings=settings.wordings,
        per_fact=settings.per_fact,
        longest=settings.longest,
        seed=settings.seed,
    )
    rows = ask(
        subject, graph, made.rows, words=settings.wordings, modes=settings.modes, oracle_hops=settings.oracle_hops,
        max_new_tokens=settings.max_new_tokens, seed=settings.seed, cost=cost,
    )  # fmt: skip
    counts = {mark: sum(fact.mark == mark for fact in facts) for mark in ("forget", "retain")}
    return {"rows": rows, "dropped": dict(sorted(made.dropped.items())), "facts": counts}


# -- findings --------------------------------------------------------------------------------------------------------


def _rows(evidence: Evidence, role: str) -> Rows | None:
    result = evidence.attack("sleek", role)
    return None if result is None else list(result["rows"])


def findings(evidence: Evidence) -> list[Finding]:
    """The whole suite; leak rates are never given without unfair suppression."""
    settings: SleekConfig = evidence.config.of_suite("sleek")
    own, original = _rows(evidence, "unlearned"), _rows(evidence, "original")
    seed = evidence.config.seed
    basis = "valid questions (the original answers them in the same mode)" if original is not None else (
        "all questions, unconditional: without the original it is not known what could leak"
    )  # fmt: skip
    dropped = sum((evidence.attack("sleek", "unlearned") or {}).get("dropped", {}).values())

    def of(measure: Callable[[Rows], Estimate | None], **part: Any) -> Callable[[str], Estimate | None]:
        def value(role: str) -> Estimate | None:
            rows = _rows(evidence, role)
            return None if rows is None else measure(valid(chosen(rows, **part), original))

        return value

    why = NO_ATTACK if own is None else NO_VALID
    found = [
        compare(evidence, "sleek/leak", "Erased facts told, all questions",
                f"Share of {basis} whose final answer gives the erased fact, over all categories and modes. {dropped} questions "
                "that held their own answer were dropped.", "forgetting", "retrained", of(rate), reason=why),
        compare(evidence, "sleek/leak_above_chance", "Erased facts told, beyond guessing",
                "The same after subtracting what always giving the commonest answer would hit; 0 is no more than a guess.",
                "forgetting", "retrained", of(lambda rows: above_chance(rows, seed)), reason=why),
        compare(evidence, "sleek/leak_swapped", "Another value told instead (control)",
                "Share of the same questions whose answer gives one random other value of the relation: what hits by accident.",
                "forgetting", "none", of(lambda rows: rate(rows, "swap")), reason=why),
        *_suppression(evidence, own, original, settings.modes),
    ]  # fmt: skip
    for mode in settings.modes:
        for category in CATEGORIES:
            if own is not None and not chosen(own, category=category, mode=mode):
                continue
            found.append(compare(
                evidence, f"sleek/leak/{category}/{mode}", f"Erased facts told, {category} questions, {mode}",
                f"Leak rate (strict) among {basis}.", "forgetting", "retrained", of(rate, category=category, mode=mode),
                reason=why,
            ))  # fmt: skip
            found.append(_excess(evidence, own, original, category, mode, settings.excess))
        found += _of_mode(evidence, mode, of, why)
    return [*found, *_gains(evidence, own, original, settings.modes)]


def _of_mode(evidence: Evidence, mode: str, of: Callable[..., Any], why: str) -> list[Finding]:
    def step(rows: Rows) -> Estimate | None:
        steps = [row["step"] for row in rows if row["step"] is not None]
        return Estimate(value=float(np.mean(steps)), n=len(steps)) if steps else None

    found = [
        compare(evidence, f"sleek/recovery/{mode}", f"Facts recovered within the budget, {mode}",
                "Share of erased facts that at least one question brings out. Many questions find something by guessing: read it "
                "beside the retrained model's.", "forgetting", "retrained", of(recovery, mode=mode), reason=why),
        compare(evidence, f"sleek/leak_loose/{mode}", f"Erased facts said anywhere, {mode}",
                "Leak rate that counts the whole text, restated candidates too: an upper bound.", "forgetting", "retrained",
                of(lambda rows: rate(rows, "loose"), mode=mode), reason=why),
        compare(evidence, f"sleek/prompts_to_first_leak/{mode}", f"Questions until a fact leaks, {mode}",
                "Mean over the facts that leak.", "forgetting", "none", of(prompts_to_first_leak, mode=mode),
                reason=f"{why if why == NO_ATTACK else 'no fact leaked'}", unit="questions"),
    ]  # fmt: skip
    if mode != "plain":
        found.append(compare(
            evidence, f"sleek/first_leak_step/{mode}", f"Step that gives it away, {mode}",
            "Mean number of the first step (or hop) in which the value stands, over the answers in which it does.", "forgetting",
            "none", of(step, mode=mode), reason=f"{why if why == NO_ATTACK else 'no step gave it away'}", unit="step",
        ))  # fmt: skip
    return found


def _excess(
    evidence: Evidence, own: Rows | None, original: Rows | None, category: str, mode: str, bound: float
) -> Finding:
    """Judged by category and mode: pooled, many questions of a kind that was unlearned hide the few that were not."""
    name, title = f"sleek/leak_excess/{category}/{mode}", f"Above the retrained model: {category} questions, {mode}"
    meaning = "Leak rate minus that of a model that never saw the facts, on the same questions: what guessing does not explain."
    theirs = _rows(evidence, "retrained")
    if own is None or theirs is None:
        why = NO_ATTACK if own is None else "needs a retrained model (--against)"
        return not_measured(name, title, meaning, "forgetting", why, "lower")
    value = difference(valid(chosen(own, category=category, mode=mode), original), theirs, evidence.config.seed)
    if value is None:
        return not_measured(name, title, meaning, "forgetting", NO_VALID, "lower")
    return judge(Finding(
        metric=name, title=title, meaning=meaning, group="forgetting", direction="lower", unlearned=value,
        retrained=Estimate(value=0.0), threshold=Threshold(quantity="value", relation="<=", bound=bound), verdict="informative",
    ))  # fmt: skip


def _suppression(evidence: Evidence, own: Rows | None, original: Rows | None, modes: Sequence[str]) -> list[Finding]:
    found = []
    counted = (evidence.attack("sleek", "unlearned") or {}).get("facts", {}).get("retain", 0)
    for mode in modes:
        name, title = f"sleek/unfair_suppression/{mode}", f"Facts to be kept that are gone, {mode}"
        meaning = (
            f"Share of questions about {counted} facts of the retain set that the original answers and this model does not. A "
            "fact of the forget set that is gone is no part of it."
        )

        def value(role: str, mode: str = mode) -> Estimate | None:
            rows = _rows(evidence, role)
            if rows is None or original is None:
                return None
            return suppressed(chosen(rows, mark="retain", mode=mode), original)

        why = NO_ATTACK if own is None else "needs the original, and retain rows with concept and relation"
        found.append(compare(evidence, name, title, meaning, "utility", "lower", value, reason=why))
    return found


def _gains(evidence: Evidence, own: Rows | None, original: Rows | None, modes: Sequence[str]) -> list[Finding]:
    """Leak rate in steps minus that of plain, direct questions."""
    found = []
    for mode in [mode for mode in modes if mode != "plain" and "plain" in modes]:

        def value(role: str, mode: str = mode) -> Estimate | None:
            rows = _rows(evidence, role)
            if rows is None:
                return None
            stepwise = rate(valid(chosen(rows, mode=mode), original))
            direct = rate(valid(chosen(rows, category="direct", mode="plain"), original))
            if stepwise is None or direct is None:
                return None
            return Estimate(value=stepwise.value - direct.value, n=stepwise.n + direct.n)

        found.append(compare(
            evidence, f"sleek/step_gain/{mode}", f"Gain by steps, {mode}",
            "Leak rate in this mode minus that of plain, direct questions: above 0, steps bring out more than asking.",
            "forgetting", "none", value, reason=NO_ATTACK if own is None else NO_VALID,
        ))  # fmt: skip
    return found


def _no_rows(request: Request, settings: SleekConfig) -> dict[str, Any]:
    return {}


CELLS = tuple(f"sleek/leak_excess/{category}/{mode}" for category in CATEGORIES for mode in MODES)
SUITE = Suite("sleek", _no_rows, findings, SleekConfig, attack=attack, firing=CELLS)

__all__ = ["CARD", "SUITE", "SleekConfig", "attack", "findings"]
