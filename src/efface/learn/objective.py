"""What a contrastive objective is: an equation over unit embeddings, its settings, and what it wants to be fed.

An objective's file holds a card, a configuration, the equation as pure functions of tensors, and
`RECIPE = Recipe(CARD, Config, loss, takes=...)`. A system that trains more than an encoder and a head (prototypes, a
decoder, a second encoder, a map of pixels) lives in `learn/recipes` and gives `build=...` in place of the loss. Everything
else (models, views, batches, caching, processes, evaluation) is the runner's (`learn/contrastive.py`) and the engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from torch import Tensor

from efface.catalog import Card
from efface.learn.starts import StartConfig
from efface.learn.views.features import FeatureViewConfig
from efface.learn.views.images import ViewConfig
from efface.learn.views.texts import TextViewConfig
from efface.train.config import TrainConfig

if TYPE_CHECKING:
    from efface.learn.module import LearnModule, Lesson

Takes = Literal["views", "pairs", "labelled", "targets"]
"""`views`: two or more views of each item. `pairs`: an item of each side (image and text). `labelled`: views and a label.
`targets`: views and a number."""


@dataclass(frozen=True)
class Embedded:
    """The unit embeddings of one optimiser step.

    The local rows are this process's anchors; `*_all` are the rows of all processes with exact gradients (with one
    process they are the same tensors). Row i of the local ones is row `start + i` of all.

    Attributes:
        first, second: [b, D] the two views, or the two sides of the pairs.
        first_all, second_all: [B, D].
        start: the place of the first local row.
        scale: [] one over the temperature, with gradient where it is learnt.
        bias: [] or None, for sigmoid losses.
        views, views_all: V times [b, D] and [B, D]; the first two are `first` and `second`.
        labels, labels_all: [b], [B] int64, or None.
        targets, targets_all: [b], [B] float32, or None.
        ids, ids_all: [b], [B] int64: rows of one id are never each other's negatives; or None.
        weights, weights_all: [b], [B] importance of each row, or None.
        queue: [K, D] earlier keys without gradient, or None; `queue_ids` [K] and, where kept, `queue_labels` [K] beside it.
        step: optimiser steps before this one.
        epoch: passes over the data before this step.
    """

    first: Tensor
    second: Tensor
    first_all: Tensor
    second_all: Tensor
    scale: Tensor
    start: int = 0
    bias: Tensor | None = None
    views: tuple[Tensor, ...] = ()
    views_all: tuple[Tensor, ...] = ()
    labels: Tensor | None = None
    labels_all: Tensor | None = None
    targets: Tensor | None = None
    targets_all: Tensor | None = None
    ids: Tensor | None = None
    ids_all: Tensor | None = None
    weights: Tensor | None = None
    weights_all: Tensor | None = None
    queue: Tensor | None = None
    queue_ids: Tensor | None = None
    queue_labels: Tensor | None = None
    step: int = 0
    epoch: float = 0.0

    @property
    def total(self) -> int:
        """Rows of all processes, B."""
        return int(self.first_all.shape[0])


class ContrastiveConfig(TrainConfig):
    """Settings that every contrastive recipe shares."""

    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.05, ge=0, description="AdamW weight decay; never on scale and bias")
    batch_size: int = Field(128, ge=2, description="items in one optimiser step, all processes together")
    epochs: float = Field(10, gt=0, description="passes over the data")
    warmup_ratio: float = Field(0.1, ge=0, le=1, description="share of the steps with linear warm-up")
    schedule: Literal["linear", "cosine", "constant"] = Field("cosine", description="learning rate after the warm-up")
    chunk: int | None = Field(
        None, ge=1, description="gradient caching: items in one encoder pass; default: the whole batch at once"
    )
    tile: int | None = Field(None, ge=1, description="side of a tile of the similarity matrix; default: chosen by size")
    unique_ids: bool = Field(
        False, description="equal items are not each other's negatives; the papers do not mask them"
    )
    projector: int = Field(
        0, ge=0, description="one tower: width of a two-layer head used while training only (SimCLR: 128); 0 for none"
    )
    views: ViewConfig = Field(ViewConfig(), description="how two views of a picture are drawn")
    text_views: TextViewConfig = Field(TextViewConfig(), description="how two views of a text are drawn")
    feature_views: FeatureViewConfig = Field(FeatureViewConfig(), description="how two views of an array are drawn")
    evaluations: int = Field(5, ge=0, description="times that the embedding is looked at while training; 0: never")
    evaluation_rows: int = Field(1000, ge=20, description="rows that are embedded for it, at most")
    start: StartConfig = Field(StartConfig(), description="size of a model that is trained from scratch")
    unique_batches: bool = Field(False, description="no two equal items in one batch, where the data allow it")


LossOfStep = Callable[[Embedded, Any], tuple[Tensor, dict[str, float]]]
"""(embeddings, configuration) -> (sum over the local anchors divided by the number of all anchors, numbers to log)."""


@dataclass(frozen=True)
class Recipe:
    """A contrastive system as the runner takes it.

    Args:
        card: what it is.
        config: the configuration's class.
        loss: see `LossOfStep`; None where `build` is given.
        takes: what a batch is made of.
        momentum: all views but the first come from a slowly moving copy, and earlier keys wait in a queue; the
            configuration then has `momentum` and `queue_size`.
        learns_scale: the temperature is a parameter.
        has_bias: a learnt bias stands beside the scale.
        weights: (data, configuration) -> [N] importance of each row, computed once before training.
        draws: configuration -> how each view of an item is drawn, one entry a view; default: two of `config.views`. For
            texts and arrays only their number counts.
        build: (subject, configuration, lesson) -> the module that is trained, with its own loss; see `LearnModule`.
        keeps_labels: configuration -> whether the batches, and the queue's keys, carry labels though the recipe takes views.
        groups: (data, configuration) -> [N] group of each row; a batch then holds the same number of rows of each.
    """

    card: Card
    config: type[ContrastiveConfig]
    loss: LossOfStep | None
    takes: Takes
    momentum: bool = False
    learns_scale: bool = False
    has_bias: bool = False
    weights: Callable[[Any, Any], Tensor] | None = None
    draws: Callable[[Any], Sequence[ViewConfig]] | None = None
    build: Callable[[Any, Any, Lesson], LearnModule] | None = None
    groups: Callable[[Any, Any], Tensor] | None = None
    keeps_labels: Callable[[Any], bool] | None = None

    def labels_in(self, config: Any) -> bool:
        """Whether batches carry labels."""
        return self.takes == "labelled" or (self.keeps_labels is not None and self.keeps_labels(config))

    def views_of(self, config: Any) -> tuple[ViewConfig, ...]:
        """How each view of an item is drawn."""
        return (config.views, config.views) if self.draws is None else tuple(self.draws(config))
