"""Stopping a run early: after the optimiser step whose figure crosses a bound.

The decision rests on the finished step alone (and on the weights after it), never on earlier ones, so a run that was
killed and goes on from a checkpoint stops where the unkilled one stops. All processes see the same figure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from transformers import TrainerCallback


class StopWhen(TrainerCallback):  # type: ignore[misc]
    """A callback of the engine; the loss calls `see` once for each forward pass.

    Args:
        crossed: says of the step's figure whether to stop.
        reduce: how the figures of a step's forward passes and processes become one.
        watched: name of the figure among the numbers of the log.
        confirm: asked with the model once `crossed` says yes; the run stops only if it agrees.
    """

    def __init__(
        self, crossed: Callable[[float], bool], reduce: Literal["sum", "max"], *, watched: str = "",
        confirm: Callable[[Any], bool] | None = None,
    ) -> None:  # fmt: skip
        self.crossed, self.reduce, self.watched, self.confirm = crossed, reduce, watched, confirm
        self.figures: list[float] = []
        self.stopped_at: int | None = None

    def see(self, figure: float) -> None:
        """The figure of one forward pass: its share of the step's sum, or its maximum."""
        self.figures.append(figure)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        figure = torch.tensor(sum(self.figures) if self.reduce == "sum" else max(self.figures), dtype=torch.float64)
        self.figures = []
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            figure = figure.to(args.device)
            ops = torch.distributed.ReduceOp
            torch.distributed.all_reduce(figure, ops.SUM if self.reduce == "sum" else ops.MAX)
        if self.crossed(float(figure)) and (self.confirm is None or self.confirm(model)):
            self.stopped_at = int(state.global_step)
            control.should_training_stop = True
            control.should_save = False  # a run that goes on from a checkpoint must come to this step again
