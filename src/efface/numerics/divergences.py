"""f-divergences in their variational form: for each one the activation g and the conjugate taken at it.

For a convex f with f(1) = 0 and conjugate f*, D_f(P || Q) = sup_T E_P[T] - E_Q[f*(T)]; with T = g(v), g maps any real v into
the domain of f* (Nowozin et al., f-GAN, arXiv 1606.00709, table 2). The forms are those of FLAT (arXiv 2410.11143), which
takes v from [0, 1]. Three of its activations fall as v grows (reverse KL, squared Hellinger, Neyman): f-GAN has them at -v.
A loss that wants T to grow with v gives them `argument(v)` = -v; the identity with f* holds on both sides of zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from efface.errors import ConfigError, nearest

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FDivergence:
    """One row of the table; functions of tensors of any shape.

    Attributes:
        f: the generator on u > 0.
        g: activation, v -> T.
        f_star_g: f*(g(v)).
        rising: whether g grows with v.
        series: f* is a truncated series around t = 0, so the identity holds up to the next term.
    """

    name: str
    f: Function
    g: Function
    f_star_g: Function
    rising: bool = True
    series: bool = False

    def argument(self, v: Tensor) -> Tensor:
        """v or -v, so that g grows with what is given here."""
        return v if self.rising else -v


def _half_tanh(v: Tensor) -> Tensor:
    return torch.tanh(v) / 2


def _same(v: Tensor) -> Tensor:
    return v


F_DIVERGENCES: dict[str, FDivergence] = {
    row.name: row
    for row in (
        FDivergence("total-variation", lambda u: (u - 1).abs() / 2, _half_tanh, _half_tanh),
        FDivergence("kl", lambda u: u * u.log(), _same, lambda v: (v - 1).exp()),
        FDivergence(
            "jensen-shannon", lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
            lambda v: math.log(2) - softplus(-v), lambda v: v + softplus(-v) - math.log(2),
        ),
        FDivergence("pearson", lambda u: (u - 1).square(), _same, lambda v: v.square() / 4 + v),
        FDivergence("reverse-kl", lambda u: -u.log(), lambda v: -v.exp(), lambda v: -1 - v, rising=False),
        FDivergence(
            "squared-hellinger", lambda u: (u.sqrt() - 1).square(), lambda v: 1 - v.exp(), lambda v: (-v).expm1(), rising=False
        ),
        FDivergence(
            "neyman", lambda u: (u - 1).square() / u, lambda v: 1 - v.exp(), lambda v: 2 - 2 * (v / 2).exp(), rising=False
        ),
        FDivergence(
            "jeffrey", lambda u: (u - 1) * u.log(), _same, lambda v: v + v.square() / 4 + v.pow(3) / 16, series=True
        ),
    )
}  # fmt: skip
"""By name."""


def f_divergence(name: str) -> FDivergence:
    """A row by name.

    Raises:
        ConfigError: no such divergence; suggests the nearest.
    """
    if name not in F_DIVERGENCES:
        raise ConfigError(f"divergence '{name}'", None, nearest(name, F_DIVERGENCES))
    return F_DIVERGENCES[name]
