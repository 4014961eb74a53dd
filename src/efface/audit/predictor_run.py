"""Audit of a classifier or a regressor: one pass a model and set, then attacks, then the conclusion.

What a language model's audit does, over predictions instead of token scores; see `efface.audit.run`. Sets whose names begin
with `downstream` have labels of their own and are read for their features only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from efface.audit.attacks.classifier_membership import blind_rows
from efface.audit.attacks.predictor_relearning import aim, relearn_time
from efface.audit.attacks.quantisation import quantise
from efface.audit.attacks.relearning import relearn
from efface.audit.attacks.shadow_attacks import AuditedRows, shadow_attacks
from efface.audit.benchmarks.classifier_attacks import unseen
from efface.audit.evidence import ASKED_SUITES, PREDICTOR_SUITES, ROLES, AuditConfig, Evidence
from efface.audit.predictions import Predictions, observe_predictions
from efface.audit.run import Audited, Loader
from efface.audit.verdict import conclude
from efface.data.request import Request
from efface.errors import ConfigError, InputError, RunError, nearest
from efface.run.cost import Cost, measure_cost
from efface.run.files import read_json
from efface.subjects.predictor import Predictor
from efface.train.config import TrainConfig
from efface.train.shadow_models import request_rows, shadow_models


def check_predictor_suites(config: AuditConfig) -> None:
    """Refuse unknown suites before any work."""
    known = (*PREDICTOR_SUITES, *ASKED_SUITES)
    if not config.suite:
        raise ConfigError("no suite", "one or more", f"choose from {', '.join(known)}")
    for name in config.suite:
        if name not in known:
            raise ConfigError(f"suite '{name}' for a classifier or regressor", None, nearest(name, known))


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
    bound: float | None = None
    for role in ("original", "unlearned", "retrained"):
        if role not in models:
            continue
        with models[role]() as subject:
            if first is None:
                first = subject
            elif role == "retrained":
                check_same_classes(first, subject)
            tables, attacks = _observe(subject, role, sets, config, costs)
            if role == "original" and _can_time(request, models, config):
                bound = aim(subject, request, config.relearn_time)
            if bound is not None:
                with measure_cost(f"relearn time, {role}") as cost:
                    attacks["relearn_time"] = relearn_time(subject, request, bound, config.relearn_time, cost=cost)
                costs.append(cost)
        evidence.predictions[role] = tables
        for name, result in attacks.items():
            evidence.attacks.setdefault(name, {})[role] = result
    evidence.predictions = {role: evidence.predictions[role] for role in ROLES if role in evidence.predictions}
    if "membership" in config.suite or "shadows" in config.suite:
        evidence.attacks["blind"] = {"rows": _blind(request, evidence)}
    if "shadows" in config.suite and first is not None:
        with measure_cost("shadow models") as cost:
            evidence.attacks["shadows"] = _shadows(first, request, evidence, cost)
        costs.append(cost)
    with measure_cost("metrics and intervals") as cost:
        conclusion = conclude(evidence)
    costs.append(cost)
    return Audited(evidence, conclusion, costs)


def _can_time(request: Request, models: Mapping[str, Loader], config: AuditConfig) -> bool:
    """Whether there is something to aim at, something to compare with, and what the attacker trains on."""
    there = "original" in models and "retrained" in models
    rows = request.retain is not None or config.relearn_time.train_on == "forget"
    return "relearning" in config.suite and there and rows


def _blind(request: Request, evidence: Evidence) -> dict[str, Any] | None:
    """The baseline that sees the rows alone, on the sides that the attacks compare."""
    chosen = unseen(evidence, "unlearned")
    if chosen is None:
        return None
    sets = [data for name, data in request.evaluation_sets().items() if name in ("holdout", "forget_test")]
    wanted = set(chosen.ids)
    parts = [data.select([i for i, name in enumerate(data["id"]) if name in wanted]) for data in sets]
    best = max(parts, key=len, default=None)
    try:
        found = None if best is None or not len(best) else blind_rows(request.forget, best, seed=evidence.config.seed)
    except InputError:  # too few rows for cross-validation: a finding says so
        found = None
    return None if found is None else {"auc": found.auc.model_dump(), "leaks": found.leaks}


def recipe_of(subject: Predictor, given: dict[str, Any]) -> TrainConfig | None:
    """How a model was trained: as given, else as learn.json beside it says; None where nothing says."""
    path = Path(subject.source) / "learn.json"
    stored = read_json(path).get("config", {}) if path.is_file() else {}
    values = {**{key: stored[key] for key in TrainConfig.model_fields if key in stored}, **given}
    return TrainConfig.parse(values, owner="shadows.training") if values else None


def _shadows(subject: Predictor, request: Request, evidence: Evidence, cost: Cost) -> dict[str, Any]:
    """LiRA and RMIA on every model, beside kept shadow models; a reason where they cannot be."""
    own = evidence.config.shadows
    recipe = recipe_of(subject, own.training)
    if recipe is None or request.holdout is None:
        return {"reason": "no holdout set (--holdout)" if request.holdout is None else
                "nothing says how the model was trained: set shadows.training.learning_rate and the like"}  # fmt: skip
    kept = shadow_models(subject, request_rows(subject, request), recipe, models=own.models, seed=own.seed, cost=cost)
    rows = AuditedRows.of(subject, request, kept)
    found: dict[str, Any] = {}
    for role, tables in evidence.predictions.items():
        made = shadow_attacks(rows, tables, kept, seed=evidence.config.seed)
        for attack in made["attacks"].values():
            attack.pop("scores")  # derived from single rows; what follows from them stays
        found[role] = made
    return found


__all__ = ["check_predictor_suites", "check_same_classes", "run_predictor_audit"]
