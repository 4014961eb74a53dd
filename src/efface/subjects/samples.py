"""Labelled examples as rows of training: what a classifier or regressor is to say about one input."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Inputs = dict[str, Tensor]
"""What a module takes: by name for a model of transformers, `x` for any other."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One example; it counts as an answer of one token.

    Attributes:
        make: gives the input without a batch dimension.
        target: class index, or number.
        key: digest of the input.
    """

    make: Callable[[], Inputs] = field(repr=False)
    target: int | float
    key: str

    n_targets = 1
    n_tokens = 1

    def labelled(self, target: int | float) -> Sample:
        """The same input with another answer."""
        return replace(self, target=target)


def collate_samples(rows: Sequence[Sample], pad_id: int = 0) -> dict[str, Inputs | Tensor]:
    """A batch.

    Args:
        rows: B samples; texts of other lengths are padded right.
        pad_id: fills up `input_ids`; everything else is filled with 0.

    Returns:
        `inputs` by name [B, ...] and `target` [B], int64 for classes and float32 for numbers.
    """
    made = [row.make() for row in rows]
    inputs: Inputs = {}
    for name in made[0]:
        parts = [part[name] for part in made]
        if all(part.shape == parts[0].shape for part in parts):
            inputs[name] = torch.stack(parts)
        else:
            inputs[name] = pad_sequence(parts, batch_first=True, padding_value=pad_id if name == "input_ids" else 0)
    return {"inputs": inputs, "target": torch.tensor([row.target for row in rows])}


def to_device(batch: Mapping[str, Inputs | Tensor], device: torch.device) -> dict[str, Inputs | Tensor]:
    """A batch with its tensors on a device."""
    return {
        name: {key: tensor.to(device) for key, tensor in part.items()} if isinstance(part, dict) else part.to(device)
        for name, part in batch.items()
    }


__all__ = ["Inputs", "Sample", "collate_samples", "to_device"]
