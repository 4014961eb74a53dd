"""Random numbers by counter: a draw is a function of what it is for, not of how many were drawn before it.

The finaliser of SplitMix64 (Steele, Lea and Flood 2014) over integers that name the draw. What runs in another batch, in
another order, on another device or a second time gets the same numbers, which no generator with a state can give.
"""

from __future__ import annotations

from torch import Tensor

GOLDEN = -7046029254386353131  # 0x9e3779b97f4a7c15 as a signed number
FIRST = -4658895280553007687  # 0xbf58476d1ce4e5b9
SECOND = -7723592293110705685  # 0x94d049bb133111eb


def _shifted(x: Tensor, bits: int) -> Tensor:
    """x >> bits without the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mixed(x: Tensor) -> Tensor:
    """int64 -> int64 of the same shape: near inputs have unrelated outputs. Products wrap."""
    x = x * GOLDEN + GOLDEN
    x = (x ^ _shifted(x, 30)) * FIRST
    x = (x ^ _shifted(x, 27)) * SECOND
    return x ^ _shifted(x, 31)


def uniform(x: Tensor) -> Tensor:
    """int64 names -> float32 in [0, 1) of the same shape: the upper 24 bits of `mixed`."""
    return _shifted(mixed(x), 40).float() / (1 << 24)
