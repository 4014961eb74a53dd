"""Audit of a classifier or a regressor: one pass a model and set, then attacks, then the conclusion.

What a language model's audit does, over predictions instead of token scores; see `efface.audit.run`. Sets whose names begin
with `downstream` have labels of their own and are read for their features only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from efface.audit.attacks.quantisation import quantise
from efface.audit.attacks.relearning import relearn
from efface.audit.evidence import PREDICTOR_SUITES, ROLES, AuditConfig, Evidence
from efface.audit.predictions import Predictions, observe_predictions
from efface.audit.run import Audited, Loader
from efface.audit.verdict import conclude
from efface.data.request import Request
from efface.errors import ConfigError, RunError, nearest
from efface.run.cost import Cost, measure_cost
from efface.subjects.predictor import Predictor


def check_predictor_suites(config: AuditConfig) -> None:
    """Refuse unknown suites before any work."""
    if not config.suite:
        raise ConfigError("no suite", "one or more", f"choose from {', '.join(PREDICTOR_SUITES)}")
    for name in config.suite:
        if name not in PREDICTOR_SUITES:
            raise ConfigError(f"suite '{name}' for a classifier or regressor", None, nearest(name, PREDICTOR_SUITES))


def check_same_classes(first: Predictor, other: Predictor) -> None:
    """Refuse a retrained model of another task: none of its predictions could be compared.

    Raises:
        RunError: other classes, or another kind.
    """
    if (first.kind, first.labels) != (other.kind, other.labels):
        raise RunError(
            f"the retrained model '{other.source}' is a {other.kind} of {other.outputs} outputs",
            f"a {first.kind} with the classes of the audited model", "give a model that was trained like the original",
        )  # fmt: skip


def _observe(
    subject: Predictor, role: str, sets: Mapping[str, Dataset], config: AuditConfig, costs: list[Cost]
) -> tuple[dict[str, Predictions], dict[str, Any]]:
    tables = {}
    with measure_cost(f"score, {role}") as cost:
        for name, data in sets.items():
            foreign = name.startswith("downstream")
            tables[name] = observe_predictions(subject, data, name=f"{name} ({role})", foreign=foreign, cost=cost)
    costs.append(cost)
    attacks: dict[str, Any] = {}
    if "relearning" in config.suite and len(sets["forget"]) >= 4:
        with measure_cost(f"relearning attack, {role}") as cost:
            attacks["relearning"] = relearn(subject, sets["forget"], config.relearning, cost=cost)
        costs.append(cost)
    if "quantisation" in config.suite:
        with measure_cost(f"quantisation attack, {role}") as cost:
            chosen = {name: sets[name] for name in ("forget", "retain") if name in sets}
            attacks["quantisation"] = quantise(subject, chosen, cost=cost)
        costs.append(cost)
    return tables, attacks


def run_predictor_audit(request: Request, models: Mapping[str, Loader], config: AuditConfig) -> Audited:
    """Audit an unlearned classifier or regressor.

    Args:
        request: labelled rows; `evaluation_sets` are scored.
        models: `unlearned` and, where they exist, `original` and `retrained`: each opened once, in that order of use.
        config: suites, limits and thresholds; fixed before the first model is opened.
    """
    check_predictor_suites(config)
    sets = request.evaluation_sets()
    evidence = Evidence(config)
    costs: list[Cost] = []
    first: Predictor | None = None
    for role in ("original", "unlearned", "retrained"):
        if role not in models:
            continue
        with models[role]() as subject:
            if first is None:
                first = subject
            elif role == "retrained":
                check_same_classes(first, subject)
            tables, attacks = _observe(subject, role, sets, config, costs)
        evidence.predictions[role] = tables
        for name, result in attacks.items():
            evidence.attacks.setdefault(name, {})[role] = result
    evidence.predictions = {role: evidence.predictions[role] for role in ROLES if role in evidence.predictions}
    with measure_cost("metrics and intervals") as cost:
        conclusion = conclude(evidence)
    costs.append(cost)
    return Audited(evidence, conclusion, costs)


__all__ = ["check_predictor_suites", "check_same_classes", "run_predictor_audit"]
