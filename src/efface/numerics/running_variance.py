"""Streaming mean and variance of each column, mergeable, in float64: `moments` without the covariance.

Chunks merge by Chan, Golub and LeVeque's update (1983): with delta = mean_b - mean_a and n = n_a + n_b,

    mean = mean_a + delta n_b / n          squares = squares_a + squares_b + delta^2 n_a n_b / n
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from efface.errors import InputError


@dataclass(frozen=True)
class RunningVariance:
    """Sums of n rows.

    Attributes:
        n: rows.
        mean: [d] float64.
        squares: [d] sum of (x - mean)^2.
    """

    n: int
    mean: Tensor
    squares: Tensor

    @staticmethod
    def of(rows: Tensor) -> RunningVariance:
        """Of [n, d] rows.

        Raises:
            InputError: no row, or one that is not finite.
        """
        x = rows.detach().double()
        if x.ndim != 2 or not len(x) or not bool(torch.isfinite(x).all()):
            raise InputError(
                f"rows of shape {list(rows.shape)}, or a value that is not finite", "[n, d] finite numbers"
            )
        mean = x.mean(0)
        return RunningVariance(len(x), mean, (x - mean).square().sum(0))

    def merge(self, other: RunningVariance | None) -> RunningVariance:
        """Of both sets of rows."""
        if other is None:
            return self
        n, delta = self.n + other.n, other.mean - self.mean
        squares = self.squares + other.squares + delta.square() * (self.n * other.n / n)
        return RunningVariance(n, self.mean + delta * (other.n / n), squares)

    @property
    def std(self) -> Tensor:
        """[d] standard deviation of the rows themselves (divided by n)."""
        return (self.squares / self.n).sqrt()
