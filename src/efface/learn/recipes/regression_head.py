"""A linear head on an encoder for one number: the second stage after a contrastive one, frozen or fine-tuned, or from scratch.

SupReMix (Wu et al., arXiv 2309.16633) trains the head with the absolute error; squared and Huber losses are its options. The
number is standardised by the training rows' mean and deviation inside; what the head says is in the number's own unit. One
view an item, by default the item as it is. The head is written beside the encoder and read by `load_head`.

    pred = mean + deviation (w . f(x) + b),   L = mean |pred - y| / deviation
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import huber_loss, l1_loss, mse_loss

from efface.catalog import Card
from efface.errors import InputError, ModelError
from efface.learn.module import Batch, LearnModule, Lesson
from efface.learn.objective import ContrastiveConfig, Recipe
from efface.learn.views.features import FeatureViewConfig
from efface.learn.views.images import ViewConfig
from efface.numerics.label_distance import labels_of
from efface.numerics.ordinality import ordinality
from efface.run.files import make_folder, read_json, storage, write_json
from efface.run.progress import track
from efface.train.gather import processes
from efface.train.gradient_caching import cached, refuse_batch_norm

CARD = Card(
    name="regression-head",
    system="supremix",
    title="Regression head",
    summary="A linear head for one number on an encoder, frozen or fine-tuned with the absolute error.",
    paper="Wu et al., Mixup your own pairs, arXiv 2309.16633 (2023), second stage",
    verb="learn",
    mechanism="recipes",
    modalities=("any",),
    subjects=("encoder",),
    needs=("labels",),
    defaults_source="SupReMix's script: L1; the optimisation is the other recipes'",
)

HEAD = "head"
WEIGHTS, FACTS = "model.safetensors", "head.json"
LOSSES: dict[str, Callable[..., Tensor]] = {"l1": l1_loss, "mse": mse_loss, "huber": huber_loss}


class RegressionHeadConfig(ContrastiveConfig):
    """The loss, and whether the encoder moves."""

    loss: Literal["l1", "mse", "huber"] = Field("l1", description="SupReMix, second stage: L1")
    freeze: bool = Field(False, description="train the head only, on features of the encoder as it is")
    views: ViewConfig = Field(ViewConfig.none(), description="how the view of a picture is drawn; default: not at all")
    feature_views: FeatureViewConfig = Field(
        FeatureViewConfig(corrupt=0.0), description="how the view of an array is drawn; default: not at all"
    )


class Head(nn.Module):
    """[b, D] features to [b] numbers.

    Args:
        width: D.
        mean, deviation: of the training rows' numbers.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, width: int, mean: float = 0.0, deviation: float = 1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("deviation", torch.tensor(deviation))

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.mean + self.deviation * self.linear(features)[:, 0]
        return found


class RegressionModule(LearnModule):
    """An encoder with its head.

    Args:
        subject: an encoder; its module is trained in place, or not at all with `freeze`.
        config: a `RegressionHeadConfig`.
        lesson: the run; gives the numbers' mean and deviation.
    """

    def __init__(self, subject: Any, config: RegressionHeadConfig, lesson: Lesson) -> None:
        super().__init__(subject)
        labels_of(lesson.targets, None)  # refuses what cannot be learnt from
        assert lesson.targets is not None
        values = lesson.targets.double()
        self.backbone, self.settings = subject.model, config
        self.head = Head(subject.width, float(values.mean()), float(values.std(correction=0)))
        if config.chunk is not None and not config.freeze:
            refuse_batch_norm(subject.model, training=True)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The loss in units of the numbers' deviation; logs the mean absolute error in their own unit."""
        targets = batch["targets"].to(self.head.mean.device)
        said = self.head(self._features(batch["views"][0]))
        every = LOSSES[self.settings.loss](said / self.head.deviation, targets / self.head.deviation, reduction="sum")
        return every / (len(targets) * processes()), {"mae": float((said - targets).abs().mean().detach())}

    def _features(self, inputs: dict[str, Tensor]) -> Tensor:
        if not self.settings.freeze:
            return cached(lambda part: self.subject.features(part).float(), inputs, self.settings.chunk)
        self.backbone.eval()  # its statistics do not move either
        with torch.no_grad():
            found: Tensor = self.subject.features(inputs).float()
        return found

    def save_beside(self, folder: Path) -> None:
        """The head, in a folder of its own."""
        save_head(self.head, folder / HEAD)


def save_head(head: Head, folder: Path) -> None:
    """Weights and width of a head."""
    make_folder(folder)
    write_json(folder / FACTS, {"width": head.linear.in_features})
    with storage(folder):
        save_file({name: t.detach().cpu().contiguous() for name, t in head.state_dict().items()}, folder / WEIGHTS)


def load_head(folder: str | Path) -> Head:
    """The head that a run left beside its encoder.

    Args:
        folder: of the encoder.

    Raises:
        ModelError: there is none.
    """
    place = Path(folder) / HEAD
    if not (place / WEIGHTS).exists():
        raise ModelError(f"no regression head in '{folder}'", f"a folder '{HEAD}'", "train one with regression-head")
    head = Head(int(read_json(place / FACTS)["width"]))
    head.load_state_dict(load_file(place / WEIGHTS))
    return head.eval()


def predict(encoder: Any, head: Head, items: Sequence[Any], batch_size: int = 256) -> Tensor:
    """[N] numbers, float32 on the CPU, in the unit that the head was trained in."""
    mode, found = encoder.model.training, []
    encoder.model.eval()
    try:
        with torch.no_grad(), track("predict", len(items)) as advance:
            for start in range(0, len(items), batch_size):
                part = list(items[start : start + batch_size])
                found.append(head(encoder.features(encoder.prepare(part)).float().cpu()))
                advance(len(part))
    finally:
        encoder.model.train(mode)
    return torch.cat(found)


@dataclass(frozen=True)
class Regressed:
    """How well a number is told.

    Attributes:
        mae: mean absolute error in the number's unit; `low` and `high` its 95 % interval (normal, over rows).
        ordinality: Spearman correlation of distance in the representation and in the number.
    """

    mae: float
    low: float
    high: float
    ordinality: float


def regressed(said: Tensor, truth: Tensor, rows: Tensor) -> Regressed:
    """Figures of predictions [N] about numbers [N] from representations [N, D].

    Raises:
        InputError: shapes that differ, or fewer than three rows.
    """
    if said.shape != truth.shape or said.ndim != 1:
        raise InputError(f"predictions {list(said.shape)} of numbers {list(truth.shape)}", "[N] and [N]")
    order = ordinality(rows, truth)
    errors = (said.double() - truth.double()).abs()
    mean, room = float(errors.mean()), 1.96 * float(errors.std()) / math.sqrt(len(errors))
    return Regressed(mean, mean - room, mean + room, order)


CONFIG = RegressionHeadConfig
RECIPE = Recipe(CARD, CONFIG, None, takes="targets", build=RegressionModule, draws=lambda config: [config.views])
