"""What a forgetting method is: a card, a typed configuration, and `fit(subject, request, config) -> Edit`."""

from __future__ import annotations

import contextlib
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from efface.catalog import Card, entries, find
from efface.data.request import Request
from efface.errors import ConfigError, RequestError
from efface.forget.edit import AdapterEdit, Edit, WeightEdit
from efface.run.cost import Cost, measure_cost
from efface.run.files import make_folder, write_json
from efface.subjects.learner import Learner
from efface.train.config import TrainConfig
from efface.train.engine import LossFunction, TrainLog, train
from efface.train.mask_guard import guarding
from efface.train.mask_selectors import MaskRows, mask_of
from efface.train.scopes import ScopeConfig, resting_norms, scoped
from efface.train.snapshot import Snapshot
from efface.train.streams import Schedule, collator_of
from efface.train.weight_mask import WeightMask

MASK_FILES = ("mask.safetensors", "mask.json")
"""Stored beside the edit of a run with `scope=mask`."""


class FitConfig(TrainConfig, ScopeConfig):
    """Optimisation and scope, shared by every method that trains. Defaults: NPO's TOFU runs (arXiv 2404.05868)."""

    epochs: float = Field(10, gt=0, description="passes over the forget set (NPO code: 10)")
    warmup_ratio: float = Field(0.1, ge=0, le=1, description="NPO code: one epoch of ten")


@dataclass
class Fitted:
    """What `fit` gives back: the edit, what it cost, and the training log."""

    edit: Edit
    costs: list[Cost]
    log: list[dict[str, float]] = field(default_factory=list)


class Method(ABC):
    """A forgetting method. `fit` changes nothing: the subject comes back bit for bit.

    Attributes:
        card: what it is.
        config_class: its typed configuration.
    """

    card: Card
    config_class: type[FitConfig]

    def configure(self, values: dict[str, Any] | None = None) -> FitConfig:
        """The resolved configuration; unknown keys raise `ConfigError` with the nearest known key."""
        return self.config_class.parse(values or {}, owner=self.card.name)

    def check(self, request: Request, config: FitConfig) -> None:
        """Refuse a request that lacks what the card says the method needs.

        Raises:
            RequestError: naming the missing set.
        """
        if "retain" in self.card.needs and request.retain is None:
            raise RequestError(f"{self.card.name} without a retain set", "rows to keep", "give them with --retain")

    def check_subject(self, subject: Learner) -> None:
        """Refuse a model of a kind that the card does not name.

        Raises:
            ConfigError: which methods there are for this kind.
        """
        if subject.kind not in self.card.subjects and "any" not in self.card.subjects:
            others = [name for name, entry in entries().items() if entry.card.verb == "forget"
                      and {subject.kind, "any"} & set(entry.card.subjects)]  # fmt: skip
            raise ConfigError(
                f"{self.card.name} on a {subject.kind}", f"a {' or '.join(self.card.subjects)}",
                f"methods for a {subject.kind}: {', '.join(others)}",
            )  # fmt: skip

    @abstractmethod
    def fit(self, subject: Any, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """Fit the edit.

        Args:
            subject: the trained model; unchanged on return.
            work: folder for checkpoints; a killed fit goes on from there, and it is removed when done.
            out: folder of the edit.
        """


def train_edit(
    method: Method, subject: Learner, schedule: Schedule, loss: LossFunction, config: FitConfig, *, work: Path, out: Path,
    restart: Callable[[], None] | None = None, callbacks: tuple[Any, ...] = (), mask_rows: MaskRows | None = None,
    guarantee: Sequence[str] = (), claim: str | None = None,
) -> Fitted:  # fmt: skip
    """Train within the scope, harvest the edit, restore the subject. One model in memory throughout.

    Args:
        restart: puts other starting weights into the subject, after the present ones are safe.
        callbacks: of the engine; `efface.train.stopping` has one that ends the run early.
        mask_rows: for `scope=mask`, what the weights are attributed to; default: the schedule's own forget and retain
            rows. The mask is stored beside the edit.
        guarantee: what an exact or certified claim rests on.
        claim: a lower one than the card's, where this run does not reach it.
    """
    base = subject.digest
    make_folder(work)
    facts: dict[str, Any] = {
        "base_digest": base, "method": method.card.name, "claim": claim or method.card.claims, "config": config.model_dump(),
    }  # fmt: skip
    with (
        measure_cost(f"fit {method.card.name}") as cost,
        contextlib.nullcontext(_chosen(subject, config, mask_rows or _rows_of(schedule), work)) as mask,
        scoped(subject.model, config, mask) as model, guarding(model, mask) as guards,
        resting_norms(subject.model, config) as statistics,
    ):  # fmt: skip
        movable = {name: p for name, p in subject.weights().items() if p.requires_grad}
        if not movable:
            raise ConfigError(f"scope={config.scope} leaves no parameter to train", "at least one", "widen the scope")
        movable |= statistics

        def run() -> TrainLog:
            return train(
                model, schedule, loss, config, folder=work / "checkpoints", collator=collator_of(subject),
                label=f"fit {method.card.name}", callbacks=(*guards, *callbacks),
            )  # fmt: skip

        edit: Edit
        if config.scope == "lora":
            log = run()
            model.eval()
            edit = AdapterEdit.harvest(subject, model, out, **facts)
        else:
            with Snapshot(movable, work / "base.safetensors") as snapshot:
                if restart is not None:
                    restart()
                log = run()
                model.eval()
                beside = [work / name for name in MASK_FILES if mask is not None]
                edit = WeightEdit.harvest(subject, snapshot, out, beside=beside, guarantee=guarantee, **facts)
        cost.items, cost.tokens = len(schedule) * len(schedule.streams), schedule.total_tokens
    subject.changed()
    shutil.rmtree(work, ignore_errors=True)
    return Fitted(edit, [cost], log.values)


def _chosen(subject: Learner, config: FitConfig, rows: MaskRows, work: Path) -> WeightMask | None:
    """The mask of `scope=mask`, written with what it selects by kind of module and which of WAGLE's terms dominates."""
    if config.scope != "mask":
        return None
    mask = mask_of(subject, config, rows, config.seed)
    shares = {kind: {"selected": part, "of": whole} for kind, (part, whole) in mask.counts().items()}
    mask.save(work / MASK_FILES[0])
    write_json(work / MASK_FILES[1], {**mask.facts.model_dump(), "selected_share": mask.density, "modules": shares})
    return mask


def _rows_of(schedule: Schedule) -> MaskRows:
    """The plain forget and retain streams of a schedule."""
    found: dict[str, list[Any]] = {}
    for name in ("forget", "retain"):
        rows = schedule.streams[name].rows if name in schedule.streams else ()
        found[name] = [row for row in rows if not isinstance(row, list)]
    return MaskRows(**found)


def find_method(name: str) -> Method:
    """A method by its card's name.

    Raises:
        ConfigError: unknown; suggests the nearest.
    """
    method: Method = find(name, "forget").module.METHOD
    return method
