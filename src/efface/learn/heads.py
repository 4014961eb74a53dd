"""Heads with batch norm whose statistics are those of the whole batch, however many processes share it.

torch's SyncBatchNorm runs on GPUs only and has no exact equality with one process in a loss that is summed; here the rows
of all processes are gathered with the exact gradient and normalised together; of maps, whose cells are many, only sums are.
Heads are narrow, so that this costs little.
An encoder's own batch norm stays each process's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from efface.train.gather import gather_plain, gather_rows, processes, rank


class SharedBatchNorm(nn.BatchNorm1d):
    """Batch norm of [b, D] over the rows of all processes; every process must call it, with equally many rows."""

    def forward(self, input: Tensor) -> Tensor:
        """[b, D] of this process."""
        if not self.training or processes() == 1:
            return super().forward(input)
        start = rank() * len(input)
        return super().forward(gather_rows(input))[start : start + len(input)]


def mlp(widths: Sequence[int], *, last_norm: bool = False) -> nn.Sequential:
    """Linear layers with batch norm and ReLU between them.

    Args:
        widths: of the input, of every hidden layer, and of the output.
        last_norm: batch norm (without ReLU) after the last layer too.
    """
    layers: list[nn.Module] = []
    for place, (before, after) in enumerate(pairwise(widths)):
        last = place == len(widths) - 2
        layers.append(nn.Linear(before, after))
        if not last or last_norm:
            layers.append(SharedBatchNorm(after))
        if not last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class MapNorm(nn.BatchNorm2d):
    """Batch norm of maps [b, C, h, w] over the rows of all processes, by sums that are gathered with the exact gradient."""

    def forward(self, input: Tensor) -> Tensor:
        """[b, C, h, w] of this process; every process must call it."""
        if not self.training or processes() == 1:
            return super().forward(input)
        cells = input.numel() // input.shape[1]
        count = gather_plain(torch.tensor([float(cells)], device=input.device)).sum()
        mean = gather_rows(input.sum((0, 2, 3))[None]).sum(0) / count
        near = input - mean[:, None, None]
        variance = gather_rows(near.square().sum((0, 2, 3))[None]).sum(0) / count
        if self.running_mean is not None and self.running_var is not None and self.momentum is not None:
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        return near * ((variance + self.eps).rsqrt() * self.weight)[:, None, None] + self.bias[:, None, None]
