"""The evidence of an audit: settings fixed beforehand, score tables of up to three models, results of attacks.

Findings and verdict are a pure function of the evidence, so a stranger can derive them again from a run folder without
a model: `conclude(Evidence.load(folder))`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from efface.audit.attacks.predictor_relearning import RelearnTimeConfig
from efface.audit.attacks.relearning import RelearningConfig
from efface.audit.finding import Direction, Estimate, Finding, Threshold, judge, not_measured
from efface.audit.predictions import Predictions
from efface.audit.suite import suites, with_needs
from efface.audit.table import ScoreTable
from efface.errors import RunError
from efface.run.files import read_json, write_json
from efface.run.settings import Settings

Role = Literal["unlearned", "original", "retrained"]
ROLES: tuple[Role, ...] = ("unlearned", "original", "retrained")
Group = Literal["forgetting", "utility", "privacy", "robustness", "damage"]
SUITES = ("tofu", "membership", "memorisation", "relearning", "quantisation")
OWN_SUITES = ("in-context",)
"""Suites for runs of one method; they join the others by themselves where an edit brings what they need."""
PREDICTOR_SUITES = ("accuracy", "membership", "representation", "identity", "relearning", "quantisation")
"""Suites for classifiers and regressors; `identity` joins where the forget set says whose rows they are."""
ASKED_SUITES = ("shadows",)
"""Suites for classifiers and regressors that train models of their own, and so run only when they are named."""


class Thresholds(Settings):
    """What must hold. Fixed before any model is scored, stored with the run, and never moved to fit."""

    forget_quality_p: float = Field(
        0.05, gt=0, lt=1, description="KS p-value from which two models count as alike (TOFU)"
    )
    utility_share: float = Field(0.95, gt=0, le=1, description="share of the original's utility that must be left")
    membership_gap: float = Field(0.1, gt=0, le=1, description="largest distance to the retrained model's AUC")
    memorisation_gap: float = Field(
        0.1, gt=0, le=1, description="largest distance to the retrained model's memorisation"
    )
    relearning_speed: float = Field(0.5, gt=0, description="steps to relearn / steps of the retrained model, at least")
    relearning_transfer: float = Field(
        0.1, ge=0, description="gain on unseen facts above the retrained model's, at most"
    )
    quantisation_recovery: float = Field(
        0.2, ge=0, description="share of the original's score that rounding brings back, at most"
    )
    accuracy_gap: float = Field(
        0.1, gt=0, le=1, description="classifiers: largest distance to the retrained model's error on the forget set"
    )
    error_ratio: float = Field(
        1.15, gt=1, description="regressors: largest ratio of the error on what is kept to the original's"
    )
    probe_excess: float = Field(
        0.1,
        gt=0,
        le=1,
        description="accuracy of a probe or of neighbours on forgotten features above the retrained model's",
    )
    untouched_features: float = Field(
        0.99, gt=0, le=1, description="CKA of the forget features to the original's from which they count as untouched"
    )
    damage: float = Field(0.1, gt=0, lt=1, description="relative loss of utility that counts as damage")


class ShadowConfig(Settings):
    """Shadow models for LiRA and RMIA. How they are trained must be how the audited model was trained."""

    models: int = Field(16, ge=2, description="an even number; LiRA: 64 and more, fewer pool the variance")
    seed: int = Field(0, ge=0, description="of the halves and the starting weights")
    training: dict[str, Any] = Field(
        {}, description="learning_rate, epochs, optimizer, ...; default: what learn.json beside the model says"
    )


class AuditConfig(Settings):
    """How a run is audited."""

    suite: tuple[str, ...] = Field(
        SUITES,
        description="parts to run: " + ", ".join((*SUITES, *OWN_SUITES)) + "; for classifiers and regressors: "
        + ", ".join((*PREDICTOR_SUITES, *ASKED_SUITES)) + "; default: all that fit the model, without shadows",
    )  # fmt: skip
    max_new_tokens: int = Field(200, ge=1, description="limit of a generated answer (open-unlearning: 200)")
    keep_texts: bool = Field(
        False, description="store generated texts and show examples; they may hold what is to be forgotten"
    )
    seed: int = Field(0, ge=0, description="of the bootstrap")
    tagged_rows: int = Field(400, ge=1, description="suite in-context: most rows of a set, evenly spaced")
    thresholds: Thresholds = Field(default_factory=Thresholds, description="fixed before the run")
    shadows: ShadowConfig = Field(
        default_factory=lambda: ShadowConfig(), description="suite shadows: how many models, and how they are trained"
    )
    relearning: RelearningConfig = Field(default_factory=RelearningConfig, description="the attacker's budget")
    relearn_time: RelearnTimeConfig = Field(
        default_factory=lambda: RelearnTimeConfig(),
        description="classifiers and regressors: the attacker that has all rows",
    )
    options: dict[str, dict[str, Any]] = Field(
        {}, description="settings of suites, by suite; written as NAME.key=value"
    )
    joined: tuple[str, ...] = Field(
        (),
        description="suites that came with another: where one does not fit the model or the rows, its findings say so",
    )

    @classmethod
    def parse(cls, values: dict[str, Any], *, owner: str = "") -> AuditConfig:
        """As every configuration; `NAME: {...}` of a suite goes into `options`, and those of asked suites are resolved."""
        known = suites()
        given = {**values.get("options", {}), **{name: values[name] for name in known if name in values}}
        names = values.get("suite", ())
        chosen = with_needs(tuple(names)) if isinstance(names, (list, tuple)) else ()
        for name in [*chosen, *given]:
            if name in known:
                given[name] = (
                    known[name].config.parse(given.get(name, {}), owner=f"suite {name}").model_dump(mode="json")
                )
        rest = {key: value for key, value in values.items() if key not in known and key != "options"}
        if chosen:
            rest["suite"] = chosen
            rest["joined"] = tuple(dict.fromkeys((*values.get("joined", ()), *(n for n in chosen if n not in names))))
        return super().parse({**rest, **({"options": given} if given else {})}, owner=owner)

    def of_suite(self, name: str) -> Any:
        """The settings of one suite."""
        return suites()[name].config.parse(self.options.get(name, {}), owner=f"suite {name}")


@dataclass
class Evidence:
    """What was observed.

    Attributes:
        tables: role -> data set -> score table, of language models.
        predictions: role -> data set -> predictions, of classifiers and regressors.
        attacks: attack -> role (or `texts`) -> result.
    """

    config: AuditConfig
    tables: dict[str, dict[str, ScoreTable]] = field(default_factory=dict)
    predictions: dict[str, dict[str, Predictions]] = field(default_factory=dict)
    attacks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def table(self, role: str, name: str) -> ScoreTable | None:
        """One table, or None where that model or set was not there; of a predictor, made of its predictions."""
        own = self.prediction(role, name)
        if own is not None and name not in self.tables.setdefault(role, {}):
            self.tables[role][name] = own.scores()
        return self.tables.get(role, {}).get(name)

    def prediction(self, role: str, name: str) -> Predictions | None:
        """What a classifier or regressor said about a set, or None."""
        return self.predictions.get(role, {}).get(name)

    def test_part(self, role: str, *, forgotten: bool = False) -> Predictions | None:
        """Unseen rows of the classes that are kept (or of those that are not): a class without a retain row is forgotten.

        A model that no longer says a class is not to lose accuracy on the test set for it. Rows of `evaluate.forget_test`
        count as unseen rows of forgotten classes.
        """
        own, kept = self.prediction(role, "holdout"), self.prediction(role, "retain")
        given = self.prediction(role, "forget_test")
        if forgotten and given is not None:
            return given
        if own is None or kept is None or own.task == "regression":
            return None if forgotten else own
        inside = np.isin(own.labels, np.unique(kept.labels))
        part = own.part(~inside if forgotten else inside)
        return part if len(part) else None

    @property
    def predictor(self) -> str | None:
        """`classification` or `regression`, or None for a language model."""
        for sets in self.predictions.values():
            for own in sets.values():
                return own.task
        return None

    def sets(self) -> list[str]:
        """Names of the scored sets, forget first, the others by name: intervals must not hang on an order of insertion."""
        known = self.predictions or self.tables
        own = [name for name in known.get("unlearned", {}) if "." not in name]  # a suite's own rows are SUITE.PART
        return sorted(own, key=lambda name: (name != "forget", name))

    def attack(self, name: str, role: str) -> Any:
        """One attack's result, or None."""
        return self.attacks.get(name, {}).get(role)

    def save(self, folder: Path) -> None:
        """Write audit.json, tables/ROLE/SET.arrow (or SET.predictions.arrow) and attacks/NAME.json."""
        write_json(folder / "audit.json", self.config.model_dump(mode="json"))
        for role, tables in self.tables.items() if not self.predictions else ():
            for name, table in tables.items():
                table.save(folder / "tables" / role, name)
        for role, own in self.predictions.items():
            for name, predictions in own.items():
                predictions.save(folder / "tables" / role, name)
        for name, results in self.attacks.items():
            write_json(folder / "attacks" / f"{name}.json", results)

    @classmethod
    def load(cls, folder: Path) -> Evidence:
        """Read what `save` wrote.

        Raises:
            RunError: no audit there.
        """
        if not (folder / "audit.json").exists():
            raise RunError(f"{folder} holds no audit", "an audited run", "run 'efface audit' on it first")
        evidence = cls(AuditConfig.parse(read_json(folder / "audit.json"), owner="audit.json"))
        for role in ROLES:
            place = folder / "tables" / role
            names = sorted(
                p.name.removesuffix(".arrow") for p in place.glob("*.arrow")
                if ".generations." not in p.name and ".predictions." not in p.name
            )  # fmt: skip
            names.sort(key=lambda name: (name != "forget", name))
            if names:
                evidence.tables[role] = {name: ScoreTable.load(place, name) for name in names}
            said = sorted(p.name.removesuffix(".predictions.arrow") for p in place.glob("*.predictions.arrow"))
            if said:
                evidence.predictions[role] = {name: Predictions.load(place, name) for name in said}
        for path in sorted((folder / "attacks").glob("*.json")):
            evidence.attacks[path.stem] = read_json(path)
        return evidence


def compare(
    evidence: Evidence, metric: str, title: str, meaning: str, group: Group, direction: Direction,
    estimate: Callable[[str], Estimate | None], *, threshold: Threshold | None = None, reason: str = "", unit: str = "",
) -> Finding:  # fmt: skip
    """One finding from a function of the role.

    Args:
        estimate: role -> its value, or None where it cannot be measured for that model.
        reason: why not, where the unlearned model has no value.
    """
    values = {role: estimate(role) for role in ROLES}
    if values["unlearned"] is None:
        return not_measured(metric, title, meaning, group, reason or "the data for it is missing", direction)
    return judge(
        Finding(
            metric=metric, title=title, meaning=meaning, group=group, direction=direction, threshold=threshold,
            verdict="informative", unit=unit, **values,
        )
    )  # fmt: skip
