"""Both sides of a contrast in one module: embeddings, temperature, moving copy and queue, as the engine trains and saves it."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from efface.errors import ModelError
from efface.learn.memory.ema import EMA
from efface.learn.memory.queue import FeatureQueue
from efface.learn.module import Batch, LearnModule, Lesson
from efface.learn.objective import Embedded, Recipe
from efface.train.gather import gather_plain, gather_rows, rank
from efface.train.gradient_caching import cached, refuse_batch_norm

MAX_SCALE = 100.0
"""CLIP (arXiv 2103.00020, section 2.5): the learnt scale is kept at or below 100."""


class ContrastiveModel(LearnModule):
    """Two towers (or one, seen twice), an optional projector, and what the objective learns or remembers beside them.

    Args:
        subject: an encoder or dual encoder; its module is trained in place.
        recipe: the objective.
        config: its configuration.
        lesson: what the run is about; without it every step is of epoch 0.
    """

    shadow: Any

    def __init__(self, subject: Any, recipe: Recipe, config: Any, lesson: Lesson | None = None) -> None:
        super().__init__(subject)
        self.lesson = lesson
        self.recipe, self.settings, self.chunk = recipe, config, config.chunk
        self.pairs = recipe.takes == "pairs"
        self.towers = (subject.image, subject.text) if self.pairs else (subject, subject)
        head = not self.pairs and config.projector
        self.online = nn.ModuleList([subject.model, *([projector(subject.width, config.projector)] if head else [])])
        self._temperature(subject, config)
        self.ema: EMA | None = None
        self.queue: FeatureQueue | None = None
        if recipe.momentum:
            if self.pairs:
                raise ModelError(f"{recipe.card.name} on a dual encoder", "an encoder", "give a model with one tower")
            self.ema = EMA(self.online, momentum=config.momentum)
            self.queue = FeatureQueue(
                config.queue_size, config.projector or subject.width, labels=recipe.labels_in(config)
            )
            shadow = copy.copy(subject)
            shadow.model = self.ema.module[0]  # type: ignore[index]
            object.__setattr__(self, "shadow", shadow)
        if config.chunk is not None:
            refuse_batch_norm(self.online, training=True)

    @property
    def projector(self) -> nn.Module | None:
        """The head that is used while training only."""
        return self.online[1] if len(self.online) > 1 else None

    def _temperature(self, subject: Any, config: Any) -> None:
        """A learnt scale is the model's own where it has one; a fixed one is a number."""
        self.own_scale: nn.Parameter | None = None
        self.fixed: float | None = None
        given = getattr(config, "temperature", None)
        if not self.recipe.learns_scale:
            self.fixed = 1.0 / (given or 1.0)
            if self.pairs:
                subject.log_scale.requires_grad_(False)
            return
        if self.pairs:
            if given is not None:
                with torch.no_grad():
                    subject.log_scale.fill_(-math.log(given))
        else:
            self.own_scale = nn.Parameter(torch.tensor(-math.log(given or 0.07)))
        if self.recipe.has_bias and subject.logit_bias is None:
            raise ModelError(
                f"recipe '{self.recipe.card.name}' on '{subject.source}', which has no bias to keep what is learnt",
                "a SigLIP model", "give one, or leave --model out to train a small one from scratch",
            )  # fmt: skip

    @property
    def log_scale(self) -> nn.Parameter | None:
        """The learnt parameter, wherever it lives."""
        if self.fixed is not None:
            return None
        if self.own_scale is not None:
            return self.own_scale
        parameter: nn.Parameter = self.subject.log_scale
        return parameter

    def embed(self, side: int, inputs: dict[str, Tensor]) -> Tensor:
        """[b, D] unit rows of one side."""
        tower = self.towers[side if self.pairs else 0]
        return cached(lambda part: self._unit(tower, self.projector, part), inputs, self.chunk)

    @staticmethod
    def _unit(tower: Any, head: nn.Module | None, inputs: dict[str, Tensor]) -> Tensor:
        features = tower.features(inputs)
        return nn.functional.normalize((head(features) if head is not None else features).float(), dim=-1)

    def _keys(self, inputs: dict[str, Tensor]) -> Tensor:
        """[b, D] unit rows of the moving copy."""
        assert self.ema is not None
        head = self.ema.module[1] if self.projector is not None else None  # type: ignore[index]
        with torch.no_grad():
            return self._unit(self.shadow, head, inputs)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Embed every view, gather with exact gradients, evaluate the objective, remember the keys."""
        assert self.recipe.loss is not None
        views = tuple(
            self.embed(side, inputs) if self.ema is None or side == 0 else self._keys(inputs)
            for side, inputs in enumerate(batch["views"])
        )
        log_scale = self.log_scale
        scale = log_scale.exp() if log_scale is not None else views[0].new_tensor(self.fixed)
        everybody = tuple(gather_rows(view) for view in views)
        marks = {name: batch.get(name) for name in ("labels", "targets", "ids", "weights")}
        marks |= {f"{name}_all": None if mark is None else gather_plain(mark) for name, mark in marks.items()}
        kept = self.queue.filled() if self.queue is not None else None
        value, numbers = self.recipe.loss(
            Embedded(
                first=views[0], second=views[1], first_all=everybody[0], second_all=everybody[1], views=views,
                views_all=everybody, scale=scale.reshape(()), start=rank() * len(views[0]),
                bias=self.subject.logit_bias.reshape(()) if self.recipe.has_bias else None,
                queue=None if kept is None else kept[0],
                queue_ids=None if kept is None or marks["ids"] is None else kept[1],
                queue_labels=None if kept is None else kept[2], step=int(self.done),
                epoch=0.0 if self.lesson is None else int(self.done) / self.lesson.steps_per_epoch, **marks,
            ),
            self.settings,
        )  # fmt: skip
        if self.queue is not None:
            assert marks["ids_all"] is not None
            self.queue.enqueue(
                everybody[1].detach(), marks["ids_all"], None if self.queue.labels is None else marks["labels_all"]
            )
        return value, {"scale": float(scale.detach()), **numbers}

    def after_step(self) -> None:
        """The scale stays in its bounds, the moving copy follows."""
        with torch.no_grad():
            if self.log_scale is not None:
                self.log_scale.clamp_(max=math.log(MAX_SCALE))
        if self.ema is not None:
            self.ema.update(self.online)

    def finish(self) -> None:
        """Leave the trained temperature with the subject, so that what is saved scores as it was trained."""
        if self.pairs and self.fixed is not None:
            with torch.no_grad():
                self.subject.log_scale.fill_(math.log(self.fixed))


def projector(width: int, out: int) -> nn.Module:
    """The two-layer head of SimCLR (arXiv 2002.05709, section 2.1): used while training, then left away."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out))
