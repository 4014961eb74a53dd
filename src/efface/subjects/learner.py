"""What a training objective needs of a subject: rows from a data set, batches from rows, fresh weights."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from datasets import Dataset


class Learner(Protocol):
    """A causal language model, a classifier or a regressor."""

    model: Any
    source: str

    @property
    def kind(self) -> str: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def digest(self) -> str: ...
    @property
    def pad_id(self) -> int: ...

    def changed(self) -> None: ...
    def weights(self) -> dict[str, torch.Tensor]: ...
    def evaluating(self) -> contextlib.AbstractContextManager[Any]: ...

    def encode_rows(self, data: Dataset, *, name: str = "data") -> list[Any]:
        """Rows with `n_targets`, `n_tokens` and `key`."""
        ...

    def batch(self, rows: Sequence[Any]) -> Any:
        """What `answer_logits` takes, where the model is."""
        ...

    def fresh(self) -> Any:
        """A module of the same form with fresh weights, from torch's global generator."""
        ...


__all__ = ["Learner"]
