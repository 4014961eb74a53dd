"""Draws by counter: the published finaliser bit for bit, uniform, and a function of their name alone."""

from __future__ import annotations

import torch

from efface.numerics.counter_draws import mixed, uniform

MASK = (1 << 64) - 1


def slow(x: int) -> int:
    """SplitMix64 in Python's whole numbers."""
    z = (x * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_against_whole_numbers() -> None:
    names = [0, 1, 2, -1, 12345, -(1 << 63), (1 << 63) - 1]
    assert [value & MASK for value in mixed(torch.tensor(names)).tolist()] == [slow(name & MASK) for name in names]
    assert slow(0) == 0xE220A8397B1DCDAF  # the generator's first number from state 0


def test_uniform_and_unrelated() -> None:
    draws = uniform(torch.arange(100_000))
    assert float(draws.min()) >= 0
    assert float(draws.max()) < 1
    counts = torch.histc(draws, 20, 0, 1)
    assert float((counts - 5000).abs().max()) < 350  # five standard deviations
    assert abs(float(torch.corrcoef(torch.stack([draws[:-1], draws[1:]]))[0, 1])) < 0.02
    assert torch.equal(uniform(torch.arange(50, 60)), draws[50:60])
