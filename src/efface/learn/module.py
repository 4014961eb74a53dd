"""What the runner trains: a subject's module with all that learns or remembers beside it, and its loss of one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

Batch = dict[str, Any]
"""`views`: a list with the model inputs of each view (of pairs: of each side); `boxes` [V, b, 4] (pictures; what each view
shows, x0, y0, x1, y1 in shares of the sides, a flip swaps x0 and x1); `rows` [b] places in the data; and where the recipe
takes them `labels`, `targets`, `ids`, `weights`, `groups` [b]."""


@dataclass(frozen=True)
class Lesson:
    """What a run is about, known before its first step.

    Attributes:
        rows: N, of the data.
        steps: optimiser steps of the run.
        batch_size: B, rows of one step over all processes.
        classes: names of the classes, or None without labels.
        labels: [N] int64 or None.
        targets: [N] float32 or None.
        inputs: rows -> their model inputs as they are, without views.
    """

    rows: int
    steps: int
    batch_size: int
    inputs: Callable[[Sequence[int]], dict[str, Tensor]]
    classes: tuple[str, ...] | None = None
    labels: Tensor | None = None
    targets: Tensor | None = None

    @property
    def steps_per_epoch(self) -> float:
        """Optimiser steps of one pass over the data."""
        return self.rows / self.batch_size


class LearnModule(nn.Module):
    """The subject's weights and all that is trained or remembered with them; what is in the state_dict is resumed exactly.

    Args:
        subject: an encoder or dual encoder; its module is trained in place. A subclass puts what is to be trained of it
            into a submodule (`self.backbone = subject.model`); `subject` itself is no submodule. No attribute may be called
            `config`: the Trainer would take it for a model's.
    """

    subject: Any
    done: Tensor

    def __init__(self, subject: Any) -> None:
        super().__init__()
        object.__setattr__(self, "subject", subject)
        self.register_buffer("done", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """(this process's share of the loss, which divides by the rows of all processes; numbers to log).

        The shares of the processes add up to the loss of the whole batch.
        """
        raise NotImplementedError

    def before_step(self) -> None:
        """After the backward pass, before the optimiser moves anything."""

    def after_step(self) -> None:
        """After each optimiser step; `done` counts the steps before this one."""

    def finish(self) -> None:
        """After the last step: leave with the subject what it must keep."""

    def warnings(self) -> list[str]:
        """After the last step: what of the run deserves a second look, for the record and the user."""
        return []

    def save_beside(self, folder: Path) -> None:
        """Write what belongs to the model and is no part of the subject, into sub-folders of its folder."""


class Steps(TrainerCallback):  # type: ignore[misc]
    """Calls the module's hooks where the engine is."""

    def __init__(self, model: LearnModule) -> None:
        self.model = model

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.model.before_step()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.model.after_step()
        self.model.done += 1


def module_loss(model: Any, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """The loss as the engine calls it."""
    value, numbers = model(batch)
    return value, {"loss": float(value.detach()), **numbers}
