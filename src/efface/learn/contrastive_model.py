"""Both sides of a contrast in one module: embeddings, temperature, moving copy and queue, as the engine trains and saves it."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from efface.errors import ModelError
from efface.learn.memory.ema import EMA
from efface.learn.memory.queue import FeatureQueue
from efface.learn.objective import Embedded, Recipe
from efface.train.gather import gather_plain, gather_rows, rank
from efface.train.gradient_caching import cached, refuse_batch_norm

MAX_SCALE = 100.0
"""CLIP (arXiv 2103.00020, section 2.5): the learnt scale is kept at or below 100."""


class ContrastiveModel(nn.Module):
    """Two towers (or one, seen twice), an optional projector, and what the objective learns or remembers beside them.

    Args:
        subject: an encoder or dual encoder; its module is trained in place.
        recipe: the objective.
        config: its configuration.
    """

    subject: Any
    shadow: Any

    def __init__(self, subject: Any, recipe: Recipe, config: Any) -> None:
        super().__init__()
        self.recipe, self.chunk = recipe, config.chunk
        self.pairs = recipe.takes == "pairs"
        object.__setattr__(self, "subject", subject)  # not a submodule: its weights are `module`
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
            self.queue = FeatureQueue(config.queue_size, config.projector or subject.width)
            shadow = copy.copy(subject)
            shadow.model = self.ema.module[0]  # type: ignore[index]
            object.__setattr__(self, "shadow", shadow)
        if config.chunk is not None:
            refuse_batch_norm(subject.model)

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
        return cached(lambda part: self._unit(self.towers[side], self.projector, part), inputs, self.chunk)

    @staticmethod
    def _unit(tower: Any, head: nn.Module | None, inputs: dict[str, Tensor]) -> Tensor:
        features = tower.features(inputs)
        return nn.functional.normalize((head(features) if head is not None else features).float(), dim=-1)

    def forward(self, first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
        """Embeddings of both sides [b, D], the scale [], the bias []."""
        out = {"first": self.embed(0, first)}
        if self.ema is not None:
            with torch.no_grad():
                head = self.ema.module[1] if self.projector is not None else None  # type: ignore[index]
                out["second"] = self._unit(self.shadow, head, second)
        else:
            out["second"] = self.embed(1, second)
        log_scale = self.log_scale
        out["scale"] = log_scale.exp() if log_scale is not None else out["first"].new_tensor(self.fixed)
        if self.recipe.has_bias:
            out["bias"] = self.subject.logit_bias
        return out


def projector(width: int, out: int) -> nn.Module:
    """The two-layer head of SimCLR (arXiv 2002.05709, section 2.1): used while training, then left away."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, out))


def loss_of_step(recipe: Recipe, config: Any) -> Any:
    """The recipe's loss as the engine calls it: embed, gather with exact gradients, evaluate, remember the keys."""

    def loss(model: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        whole = getattr(model, "module", model) if not isinstance(model, ContrastiveModel) else model
        out = model(batch["first"], batch["second"])
        first, second = out["first"], out["second"]
        labels, ids, weights = batch.get("labels"), batch.get("ids"), batch.get("weights")
        queue: FeatureQueue | None = whole.queue
        kept = queue.filled() if queue is not None else None
        embedded = Embedded(
            first=first, second=second, first_all=gather_rows(first), second_all=gather_rows(second),
            scale=out["scale"].reshape(()), start=rank() * len(first),
            bias=out["bias"].reshape(()) if "bias" in out else None, labels=labels,
            labels_all=None if labels is None else gather_plain(labels), ids=ids,
            ids_all=None if ids is None else gather_plain(ids), weights=weights,
            weights_all=None if weights is None else gather_plain(weights),
            queue=None if kept is None else kept[0], queue_ids=None if kept is None or ids is None else kept[1],
        )  # fmt: skip
        value, numbers = recipe.loss(embedded, config)
        if queue is not None:
            assert embedded.ids_all is not None
            queue.enqueue(embedded.second_all.detach(), embedded.ids_all)
        return value, {"loss": float(value.detach()), "scale": float(out["scale"].detach()), **numbers}

    return loss


class AfterStep(TrainerCallback):  # type: ignore[misc]
    """After each optimiser step: the scale stays in its bounds, the moving copy follows."""

    def __init__(self, model: ContrastiveModel) -> None:
        self.model = model

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        log_scale = self.model.log_scale
        with torch.no_grad():
            if log_scale is not None:
                log_scale.clamp_(max=math.log(MAX_SCALE))
        if self.model.ema is not None:
            self.model.ema.update(self.model.online)


def finish(model: ContrastiveModel) -> None:
    """Leave the trained temperature with the subject, so that what is saved scores as it was trained."""
    if model.pairs and model.fixed is not None:
        with torch.no_grad():
            model.subject.log_scale.fill_(math.log(model.fixed))
