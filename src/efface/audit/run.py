"""Audit: load each model once, take every table and attack from it, conclude.

At most one scoring and one generation pass a model and data set, whatever the suites; what an earlier, killed audit
finished is read back from the cache. Only one model is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from efface.audit.attacks.quantisation import quantise
from efface.audit.attacks.relearning import relearn
from efface.audit.benchmarks.in_context import measure
from efface.audit.evidence import OWN_SUITES, ROLES, SUITES, AuditConfig, Evidence
from efface.audit.metrics.membership import blind_baseline
from efface.audit.observe import observe
from efface.audit.suite import asked, suites
from efface.audit.table import ScoreTable
from efface.audit.verdict import Conclusion, conclude
from efface.data.request import Request
from efface.data.tagged import TagProtocol
from efface.errors import ConfigError, InputError, RunError, nearest
from efface.run.cost import Cost, measure_cost
from efface.run.record import Example
from efface.subjects.causal_lm import CausalLM
from efface.subjects.guarded import bare
from efface.subjects.prompts import PromptFormat

Loader = Callable[[], AbstractContextManager[Any]]
"""Opens a model for as long as it is needed."""


@dataclass
class Audited:
    """An audit's results."""

    evidence: Evidence
    conclusion: Conclusion
    costs: list[Cost] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)


def check_suites(config: AuditConfig) -> None:
    """Refuse unknown suites before any work."""
    if not config.suite:
        raise ConfigError("no suite", "one or more", f"choose from {', '.join((*SUITES, *OWN_SUITES, *suites()))}")
    known = (*SUITES, *OWN_SUITES, *suites())
    for name in config.suite:
        if name not in known:
            raise ConfigError(f"unknown suite '{name}'", None, nearest(name, known))


def check_same_tokens(first: CausalLM, other: CausalLM) -> None:
    """Refuse a retrained model that splits text differently: none of its token scores could be compared.

    Raises:
        RunError: other vocabularies.
    """
    if first.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        raise RunError(
            f"the retrained model '{other.source}' has another tokenizer", "the tokenizer of the audited model",
            "give a model that was trained like the original, without the forget set",
        )  # fmt: skip


def _observe_model(
    subject: CausalLM, role: str, sets: Mapping[str, Dataset], config: AuditConfig, costs: list[Cost]
) -> tuple[dict[str, ScoreTable], dict[str, Any]]:
    tables = {}
    with measure_cost(f"score and generate, {role}") as cost:
        for name, data in sets.items():
            tables[name] = observe(
                subject, data, name=f"{name} ({role})", generations=name != "holdout", max_new_tokens=config.max_new_tokens,
                keep_texts=config.keep_texts, answers_only=name == "holdout", cost=cost,
            )  # fmt: skip
    costs.append(cost)
    attacks: dict[str, Any] = {}
    if "relearning" in config.suite and len(sets["forget"]) >= 4:
        with measure_cost(f"relearning attack, {role}") as cost, bare(subject):
            attacks["relearning"] = relearn(subject, sets["forget"], config.relearning, cost=cost)
        costs.append(cost)
    if "quantisation" in config.suite:
        with measure_cost(f"quantisation attack, {role}") as cost, bare(subject):
            chosen = {name: sets[name] for name in ("forget", "retain") if name in sets}
            attacks["quantisation"] = quantise(subject, chosen, cost=cost)
        costs.append(cost)
    return tables, attacks


@contextmanager
def asked_as(subject: CausalLM, prompt: PromptFormat | None) -> Iterator[None]:
    """The subject with another prompt format for a while; None leaves its own."""
    own = subject.prompt
    subject.prompt = prompt or own
    try:
        yield
    finally:
        subject.prompt = own


def _observe_suites(
    subject: CausalLM, role: str, request: Request, config: AuditConfig, costs: list[Cost]
) -> tuple[dict[str, ScoreTable], dict[str, Any]]:
    """The rows and attacks of every asked suite on one model."""
    tables: dict[str, ScoreTable] = {}
    attacks: dict[str, Any] = {}
    for suite in asked(config.suite):
        settings = config.of_suite(suite.name)
        with measure_cost(f"suite {suite.name}, {role}") as cost, _fitting(suite.name, config, attacks):
            for part, rows in suite.sets(request, settings).items():
                data = rows.data if rows.fitted is None else rows.fitted(subject, rows.data)
                with asked_as(subject, rows.prompt):
                    tables[suite.table(part)] = observe(
                        subject, data, name=f"{suite.table(part)} ({role})", generations=rows.generations,
                        max_new_tokens=rows.max_new_tokens or config.max_new_tokens, keep_texts=config.keep_texts,
                        answers_only=rows.answers_only, stop=rows.stop, cost=cost,
                    )  # fmt: skip
            if suite.attack is not None:
                attacks[suite.name] = suite.attack(subject, request, settings, cost)
        costs.append(cost)
    return tables, attacks


@contextmanager
def _fitting(name: str, config: AuditConfig, attacks: dict[str, Any]) -> Iterator[None]:
    """Bad input is an error for a suite that was asked for, and a reason for one that came with another."""
    try:
        yield
    except InputError as error:
        if name not in config.joined:
            raise
        attacks[f"{name}-unfit"] = str(error)


def _observe_stages(
    stages: Sequence[Loader], sets: Mapping[str, Dataset], config: AuditConfig, costs: list[Cost]
) -> dict[str, ScoreTable]:
    """Every set but the holdout on the model after each request, as the tables `sequence.STEP-SET`."""
    tables: dict[str, ScoreTable] = {}
    for number, open_stage in enumerate(stages, 1):
        with measure_cost(f"suite sequence, after request {number}") as cost, open_stage() as subject:
            for name, data in sets.items():
                if name != "holdout":
                    tables[f"sequence.{number}-{name}"] = observe(
                        subject, data, name=f"{name} (after request {number})", max_new_tokens=config.max_new_tokens,
                        keep_texts=config.keep_texts, cost=cost,
                    )  # fmt: skip
        costs.append(cost)
    return tables


def _tagged(
    subject: CausalLM, role: str, request: Request, protocol: TagProtocol, config: AuditConfig, costs: list[Cost]
) -> dict[str, Any]:
    """Every set but the holdout, asked with and without tags."""
    sets = {name: data for name, data in request.evaluation_sets().items() if name != "holdout"}
    with measure_cost(f"tagged prompts and layers, {role}") as cost:
        found = measure(subject, sets, protocol, seed=config.seed, rows=config.tagged_rows, cost=cost)
    costs.append(cost)
    return found


def run_audit(
    request: Request, models: Mapping[str, Loader], config: AuditConfig, *, protocol: TagProtocol | None = None,
    stages: Sequence[Loader] = (),
) -> Audited:  # fmt: skip
    """Audit an unlearned model.

    Args:
        request: the data; `evaluation_sets` are scored.
        models: `unlearned` and, where they exist, `original` and `retrained`: each opened once, in that order of use.
        config: suites, limits and thresholds; fixed before the first model is opened.
        protocol: how a prompt names what is to be forgotten, where the method works by prompts (suite in-context).
        stages: the model after each of several requests (suite sequence).
    """
    if protocol is None and "in-context" in config.suite:  # no tags to try: what a prompt can do is tell the fact again
        names = tuple("reintroduction" if name == "in-context" else name for name in config.suite)
        config = AuditConfig.parse({**config.model_dump(), "suite": names}, owner="audit")
    check_suites(config)
    sets = request.evaluation_sets()
    evidence = Evidence(config)
    costs: list[Cost] = []
    first: CausalLM | None = None
    for role in ("original", "unlearned", "retrained"):
        if role not in models:
            continue
        with models[role]() as subject:
            if first is None:
                first = subject
            elif role == "retrained":
                check_same_tokens(first, subject)
            tables, attacks = _observe_model(subject, role, sets, config, costs)
            more, others = _observe_suites(subject, role, request, config, costs)
            tables, attacks = {**tables, **more}, {**attacks, **others}
            if "in-context" in config.suite and protocol is not None:
                attacks["in-context"] = _tagged(subject, role, request, protocol, config, costs)
        evidence.tables[role] = tables
        for name, result in attacks.items():
            evidence.attacks.setdefault(name, {})[role] = result
    if "sequence" in config.suite:
        evidence.tables.setdefault("unlearned", {}).update(_observe_stages(stages, sets, config, costs))
    if protocol is not None and "in-context" not in config.suite:
        evidence.attacks["in-context"] = {"left_out": True}  # a prompt protocol that nobody tried must be said
    evidence.tables = {role: evidence.tables[role] for role in ROLES if role in evidence.tables}
    if "membership" in config.suite and request.holdout is not None:
        evidence.attacks["blind"] = {"texts": _blind(request, config)}
    with measure_cost("metrics and intervals") as cost:
        conclusion = conclude(evidence)
    costs.append(cost)
    return Audited(evidence, conclusion, costs, examples(evidence, sets) if config.keep_texts else [])


def _blind(request: Request, config: AuditConfig) -> dict[str, Any] | None:
    assert request.holdout is not None
    texts = [[f"{row['question']} {row['answer']}" for row in data] for data in (request.forget, request.holdout)]
    try:
        blind = blind_baseline(*texts, seed=config.seed)
    except InputError:  # too few texts for cross-validation: a finding says so
        return None
    return {"auc": blind.auc.model_dump(), "leaks": blind.leaks}


def examples(evidence: Evidence, sets: Mapping[str, Dataset], *, count: int = 3) -> list[Example]:
    """The first rows of each generated set, evenly spread, with every model's answer."""
    found = []
    for name, data in sets.items():
        table = evidence.table("unlearned", name)
        if table is None or table.generations is None:
            continue
        texts = {
            role: dict(zip(own.generated("id"), own.generated("text"), strict=True))
            for role in ROLES if (own := evidence.table(role, name)) is not None and own.generations is not None
        }  # fmt: skip
        for index in sorted({round(i * (len(data) - 1) / max(1, count - 1)) for i in range(min(count, len(data)))}):
            row = data[index]
            found.append(Example(
                set=name, id=row["id"], question=row["question"], reference=row["answer"],
                **{role: answers.get(row["id"]) for role, answers in texts.items()},
            ))  # fmt: skip
    return found


def opened(subject: Any) -> Loader:
    """A loader for a subject that is in memory already."""
    return lambda: nullcontext(subject)
