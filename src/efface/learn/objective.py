"""What a contrastive objective is: an equation over unit embeddings, its settings, and what it wants to be fed.

An objective's file holds a card, a configuration, the equation as pure functions of tensors, and
`RECIPE = Recipe(CARD, Config, loss, takes=...)`. Everything else (models, views, batches, caching, processes) is the
runner's (`learn/contrastive.py`) and the engine's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from efface.catalog import Card
from efface.learn.starts import StartConfig
from efface.learn.views.images import ViewConfig
from efface.learn.views.texts import TextViewConfig
from efface.train.config import TrainConfig

Takes = Literal["views", "pairs", "labelled"]
"""`views`: two views of each item. `pairs`: an item of each side (image and text). `labelled`: two views and a label."""


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
        labels, labels_all: [b], [B] int64, or None.
        ids, ids_all: [b], [B] int64: rows of one id are never each other's negatives; or None.
        weights, weights_all: [b], [B] importance of each row, or None.
        queue: [K, D] earlier keys without gradient, or None; `queue_ids` [K] beside it.
    """

    first: Tensor
    second: Tensor
    first_all: Tensor
    second_all: Tensor
    scale: Tensor
    start: int = 0
    bias: Tensor | None = None
    labels: Tensor | None = None
    labels_all: Tensor | None = None
    ids: Tensor | None = None
    ids_all: Tensor | None = None
    weights: Tensor | None = None
    weights_all: Tensor | None = None
    queue: Tensor | None = None
    queue_ids: Tensor | None = None

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
        loss: see `LossOfStep`.
        takes: what a batch is made of.
        momentum: the second view comes from a slowly moving copy, and earlier keys wait in a queue; the configuration then
            has `momentum` and `queue_size`.
        learns_scale: the temperature is a parameter.
        has_bias: a learnt bias stands beside the scale.
        weights: (data, configuration) -> [N] importance of each row, computed once before training.
    """

    card: Card
    config: type[ContrastiveConfig]
    loss: LossOfStep
    takes: Takes
    momentum: bool = False
    learns_scale: bool = False
    has_bias: bool = False
    weights: Callable[[Any, Any], Tensor] | None = None
