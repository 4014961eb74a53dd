"""Relearn time of classifiers and regressors: optimiser steps until the forget error is back near the original model's.

Papers: Chundawat et al., Zero-shot machine unlearning, arXiv 2201.05629 (the anamnesis index); Tarun et al., arXiv 2210.08196.
With r(M) the steps that model M needs until its error on the watched rows is within a margin alpha of the original's,

    AIN = r(unlearned) / r(retrained)

1 is ideal; near 0 the knowledge is still there; well above 1 the model stands out by refusing it (the Streisand effect).
Within the margin: an error or a loss of at most (1 + alpha) of the original's; an accuracy of at least (1 - alpha) of it.

Departures from the official code: it trains the retrained model in place, so that its later ratios compare with a model that
has relearnt already; here every model gets its bits back. It returns the cap where the error was never reached; here there are
no steps then, and no ratio. Steps stand beside every ratio.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from pydantic import Field
from torch import Tensor
from transformers import TrainerCallback

from efface.data.request import Request, data_digest
from efface.errors import InputError, RequestError
from efface.run.cost import Cost
from efface.run.digests import digest_value
from efface.run.files import read_json, write_json
from efface.run.settings import Settings
from efface.subjects.answers import sample_answers
from efface.subjects.predictor import Predictor
from efface.subjects.samples import Sample
from efface.train.config import TrainConfig
from efface.train.engine import train
from efface.train.reference import cache_folder
from efface.train.scopes import ScopeConfig, scoped
from efface.train.snapshot import Snapshot
from efface.train.streams import collator_of
from efface.train.supervised import answer_loss, supervised_schedule


class RelearnTimeConfig(Settings):
    """The attacker's budget and aim; fixed before the run and the same for every model."""

    watch: Literal["error", "loss"] = Field(
        "error", description="mean absolute error, or share of wrong classes; loss: mean negative log-probability"
    )
    margin: float = Field(0.05, ge=0, lt=1, description="alpha: how near the original counts as back; paper: 5 %")
    train_on: Literal["all", "forget"] = Field("all", description="rows that the attacker has; paper: all")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adam", description="official code: Adam")
    learning_rate: float = Field(1e-3, gt=0, description="constant; official code: 0.001 to 0.01")
    batch_size: int = Field(256, ge=1, description="rows in a step; official code: 256")
    epochs: float = Field(10, gt=0, description="give up after so many passes; official code: 10")
    every: int = Field(1, ge=1, description="look at the watched rows every so many steps; official code: each")
    seed: int = Field(0, ge=0, description="order of the rows")


def figure(outputs: Tensor, targets: Tensor, watch: str) -> float:
    """What is watched of outputs [N, K] and targets [N] (int64 for classes); lower is nearer to the knowledge."""
    if watch == "loss":
        return -float(sample_answers(outputs, targets).logp_sum.double().mean())
    if targets.is_floating_point():
        return float((outputs.squeeze(1).double() - targets.double()).abs().mean())
    return float((outputs.argmax(1) != targets).double().mean())


def bound_of(original: float, margin: float, *, share: bool) -> float:
    """The largest figure that counts as back.

    Args:
        original: the original model's figure.
        share: it is a share of wrong classes, whose accuracy has to come within the margin.
    """
    return 1 - (1 - margin) * (1 - original) if share else (1 + margin) * original


def look_at(subject: Predictor, rows: list[Sample], watch: str) -> float:
    """The figure of a model on rows, in evaluation mode."""
    _, outputs = subject.read(rows)
    return figure(outputs, torch.tensor([row.target for row in rows]), watch)


class _Until(TrainerCallback):  # type: ignore[misc]
    """Look every few steps; stop where the figure is back."""

    def __init__(self, subject: Predictor, watched: list[Sample], bound: float, config: RelearnTimeConfig) -> None:
        self.subject, self.watched, self.bound, self.config = subject, watched, bound, config
        self.steps = [0]
        self.values = [look_at(subject, watched, config.watch)]

    @property
    def reached(self) -> bool:
        return self.values[-1] <= self.bound

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.config.every == 0 or state.global_step == state.max_steps:
            self.steps.append(int(state.global_step))
            self.values.append(look_at(self.subject, self.watched, self.config.watch))
            if self.reached:
                control.should_training_stop = True


def watched_rows(request: Request) -> Dataset:
    """Rows like those to forget that the attacker does not have: `forget_test` of the evaluation sets, else the forget set."""
    return request.evaluate.get("forget_test", request.forget)


def aim(original: Predictor, request: Request, config: RelearnTimeConfig, *, watched: Dataset | None = None) -> float:
    """The figure from which on the knowledge counts as back, from the original model; see `bound_of`.

    Args:
        watched: default `watched_rows` of the request.
    """
    rows = original.encode_rows(watched_rows(request) if watched is None else watched, name="watched")
    share = config.watch == "error" and original.kind == "classifier"
    return bound_of(look_at(original, rows, config.watch), config.margin, share=share)


def relearn_time(
    subject: Predictor, request: Request, bound: float, config: RelearnTimeConfig, *, watched: Dataset | None = None,
    cost: Cost | None = None, cache: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train a model until its figure on the watched rows is at most `bound`; it comes back bit for bit.

    Args:
        bound: see `aim`; the same for every model.
        watched: default `watched_rows` of the request.
        cache: folder of results; default the cache folder.

    Returns:
        `reached`; `steps`, None where it was not reached; `bound`; `budget`, the steps after which it was given up; `curve`
        with `steps` and `values`, the first before any step.

    Raises:
        RequestError: no retain set, of which all rows are a part.
    """
    data, chosen = _attackers(request, config), watched_rows(request) if watched is None else watched
    key = digest_value({
        "attack": "relearn time", "model": subject.digest, "data": [data_digest(part) for part in data],
        "watched": data_digest(chosen), "bound": bound, "config": config.model_dump(mode="json"),
    })  # fmt: skip
    path = (cache or cache_folder() / "attacks") / f"{key.removeprefix('sha256:')}.json"
    if path.exists():
        stored: dict[str, Any] = read_json(path)
        return stored
    before, mode = subject.digest, subject.model.training
    rows = [row for part in data for row in subject.encode_rows(part, name="relearning")]
    settings = TrainConfig(
        learning_rate=config.learning_rate, optimizer=config.optimizer, weight_decay=0.0, schedule="constant", seed=config.seed,
        batch_size=min(config.batch_size, len(rows)), epochs=config.epochs, max_grad_norm=1e9, checkpoint_seconds=1e9,
    )  # fmt: skip
    schedule = supervised_schedule(rows, settings)
    until = _Until(subject, subject.encode_rows(chosen, name="watched"), bound, config)
    if not until.reached:
        with tempfile.TemporaryDirectory(prefix="efface-relearn-") as place:
            folder = Path(place)
            try:
                with scoped(subject.model, ScopeConfig()), Snapshot(subject.weights(), folder / "base.safetensors"):
                    train(
                        subject.model, schedule, answer_loss, settings, folder=folder / "work", collator=collator_of(subject),
                        label="relearn", callbacks=(until,),
                    )  # fmt: skip
            finally:
                subject.model.train(mode)
        subject.changed()
        assert subject.digest == before, "the attack must leave the model as it was"
    if cost is not None:
        cost.items += until.steps[-1] * schedule.batch_size + len(until.steps) * len(until.watched)
    found = {
        "reached": until.reached, "steps": until.steps[-1] if until.reached else None, "bound": bound, "budget": schedule.steps,
        "curve": {"steps": until.steps, "values": until.values},
    }  # fmt: skip
    write_json(path, found)
    return found


def _attackers(request: Request, config: RelearnTimeConfig) -> list[Dataset]:
    """The sets that the attacker trains on."""
    if config.train_on == "forget":
        return [request.forget]
    if request.retain is None:
        raise RequestError("relearning on all rows without a retain set", "the retain set", "set train_on=forget")
    return [request.retain, request.forget]


def anamnesis(unlearned: dict[str, Any], retrained: dict[str, Any]) -> dict[str, Any]:
    """The anamnesis index of two results of `relearn_time`.

    Returns:
        `ain`, None where either model did not get there, or where the retrained one needs no step; `words`, the steps of both.

    Raises:
        InputError: the two had another aim or budget.
    """
    if any(unlearned[name] != retrained[name] for name in ("bound", "budget")):
        raise InputError(
            f"relearn times with the bounds {unlearned['bound']:g} and {retrained['bound']:g} in {unlearned['budget']} and "
            f"{retrained['budget']} steps", "one aim and one budget", "use one `aim` and one configuration for both",
        )  # fmt: skip
    said = [
        f"{name} in {run['steps']} steps" if run["reached"] else f"{name} not reached in {run['budget']} steps"
        for name, run in (("unlearned", unlearned), ("retrained", retrained))
    ]
    ratio = None
    if unlearned["reached"] and retrained["reached"]:
        if retrained["steps"]:
            ratio = unlearned["steps"] / retrained["steps"]
        else:
            said.append("no ratio: the retrained model is within the margin without training")
    return {"ain": ratio, "words": "; ".join(said)}


__all__ = ["RelearnTimeConfig", "aim", "anamnesis", "bound_of", "figure", "look_at", "relearn_time", "watched_rows"]
