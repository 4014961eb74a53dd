"""Ending a run whose predictions fall away from the original model's: a guard of utility that needs no labels.

Looked at after every so many steps; where too few rows are predicted as before, the run ends and goes back to the weights of
the look before. The decision rests on the weights and the step alone, so a resumed run ends where an unkilled one does.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from efface.errors import CheckFailed
from efface.run.files import write_with
from efface.subjects.predictor import Predictor
from efface.subjects.samples import Sample


class Agreement:
    """For `after` of `efface.train.alternating`.

    Args:
        subject: a classifier.
        rows: N samples to look at; their targets are not read.
        said: [N] the classes that the original model gave them.
        every: steps between looks.
        bound: the share of rows that must agree; 0 looks at nothing.
        live: the tensors that the run moves, by name.
        folder: where those of the last good look are kept, on disk rather than in memory.

    Attributes:
        last: the share at the last look.
        stopped_at: the step at which the run was ended.
    """

    def __init__(
        self, subject: Predictor, rows: Sequence[Sample], said: Tensor, *, every: int, bound: float,
        live: Mapping[str, Tensor], folder: Path,
    ) -> None:  # fmt: skip
        self.subject, self.rows, self.said = subject, rows, said
        self.every, self.bound, self.live, self.folder = every, bound, live, folder
        self.last: float | None = None
        self.stopped_at: int | None = None

    def _place(self, step: int) -> Path:
        return self.folder / f"kept-{step}.safetensors"

    def __call__(self, step: int) -> bool:
        """Whether the run is to end after this step."""
        if self.bound == 0 or step % self.every:
            return False
        _, outputs = self.subject.read(self.rows)
        self.last = float((outputs.argmax(-1) == self.said).float().mean())
        if self.last < self.bound:
            self.stopped_at = step
            return True
        tensors = {name: tensor.detach().contiguous() for name, tensor in self.live.items()}
        write_with(self._place(step), lambda partial: save_file(tensors, partial))
        for other in self.folder.glob("kept-*.safetensors"):
            if other != self._place(step):
                other.unlink(missing_ok=True)
        return False

    def go_back(self, name: str) -> None:
        """After a run that was ended: the weights of the look before, with a warning. After any other: nothing.

        Args:
            name: of the method, for the message.

        Raises:
            CheckFailed: the first look ended it.
        """
        if self.stopped_at is None or self.last is None:
            return
        told = f"{name}: after {self.stopped_at} steps only {self.last:.1%} of the watched rows are predicted as before"
        if self.stopped_at == self.every:
            raise CheckFailed(f"{told}, below {self.bound:.1%} at the first look; lower the learning rates")
        kept = load_file(self._place(self.stopped_at - self.every))
        with torch.no_grad():
            for key, tensor in self.live.items():
                tensor.copy_(kept[key])
        back = self.stopped_at - self.every
        warnings.warn(f"{told}; the run ended there and went back to step {back}", UserWarning, stacklevel=3)


__all__ = ["Agreement"]
