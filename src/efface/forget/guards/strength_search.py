"""How strong must a corruption be? Zeroth-order descent on |score - target|: no gradients, a score for each strength tried.

Source: ECO, arXiv 2406.07933, section 3.3 and appendix. With J(s) = |score(s) - target|,

    g = (J(s + mu) - J(max(s - mu, 1e-8))) / (2 mu),   s <- max(s - eta g, minimum)

and for one strength a dimension g = (J(s + mu u) - J(s - mu u)) / (2 mu) u with a random unit vector u.

Departures from the official code, and why: J has its target (there the score itself is minimised, which over-corrupts); the
score must be the same at every call (common random numbers; a score that is not is refused); a step that does not lower J is
taken back and eta halved, and where strengths on both sides of the target have been seen, the strength between them is halved in
further: a first step of eta = 100 mostly leaps over the target. The best strength that was tried is returned, with its gap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from pydantic import Field, model_validator
from torch import Tensor

from efface.errors import InputError
from efface.run.settings import Settings

Score = Callable[[Tensor], float]
"""Strengths ([] or [n]) -> the score of what they leave; the same strengths always give the same score."""
SMALLEST = 1e-8


class SearchConfig(Settings):
    """The search; defaults of the official code, except `tolerance` and `refine`."""

    start: float = Field(0.1, gt=0, description="first strength; official code: 0.1")
    minimum: float = Field(0.1, gt=0, description="smallest strength; official code: 0.1")
    mu: float = Field(0.0999, gt=0, description="half the width of the difference quotient; official code: 0.0999")
    eta: float = Field(100.0, gt=0, description="step size; official code: 100")
    steps: int = Field(10, ge=1, description="official code: at most 10")
    tolerance: float = Field(0.01, gt=0, description="stop at |score - target| below it; the code: chance + 0.02")
    refine: int = Field(12, ge=0, description="further scores between two strengths on both sides of the target (ours)")

    @model_validator(mode="after")
    def _room_below(self) -> SearchConfig:
        if self.minimum <= self.mu:
            raise ValueError("minimum must be larger than mu: the quotient needs a strength below the smallest")
        if self.start < self.minimum:
            raise ValueError("start must not be smaller than minimum")
        return self


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        sigma: [] or [n], the best strength that was tried.
        score: of it.
        gap: |score - target|.
        reached: the gap is within the tolerance.
        tried: every strength (its root mean square) with its score, in order.
    """

    sigma: Tensor
    score: float
    gap: float
    reached: bool
    tried: tuple[tuple[float, float], ...]


class _Trials:
    """Scores of strengths, each taken once."""

    def __init__(self, score: Score, target: float) -> None:
        self.score, self.target = score, target
        self.seen: dict[tuple[float, ...], tuple[Tensor, float]] = {}

    def value(self, sigma: Tensor) -> float:
        key = tuple(sigma.reshape(-1).tolist())
        if key not in self.seen:
            found = float(self.score(sigma))
            if not math.isfinite(found):
                raise InputError(f"a score of {found} at strength {_size(sigma):g}", "a number")
            self.seen[key] = (sigma, found)
        return self.seen[key][1]

    def gap(self, sigma: Tensor) -> float:
        """J."""
        return abs(self.value(sigma) - self.target)

    def found(self, tolerance: float) -> Found:
        """The best; of equal ones the weakest."""
        sigma, score = min(self.seen.values(), key=lambda one: (abs(one[1] - self.target), _size(one[0])))
        gap = abs(score - self.target)
        return Found(sigma, score, gap, gap < tolerance, tuple((_size(s), v) for s, v in self.seen.values()))


def _size(sigma: Tensor) -> float:
    return float(sigma.double().square().mean().sqrt())


def search_strength(
    score: Score, target: float, config: SearchConfig | None = None, *, n: int | None = None,
    generator: torch.Generator | None = None,
) -> Found:  # fmt: skip
    """The strength whose score is nearest to the target.

    Args:
        score: see `Score`.
        target: v_r, what a model that never saw the data scores.
        n: None: one strength; else n of them, which are searched together along random directions.
        generator: of the directions; needed with n.

    Raises:
        InputError: a score that is not the same at a second call, or no number; n without a generator.
    """
    config = config or SearchConfig()
    if n is not None and generator is None:
        raise InputError("a search of several strengths without a generator", "one for its directions")
    trials = _Trials(score, target)
    sigma = torch.tensor(config.start, dtype=torch.float64)
    sigma = sigma if n is None else sigma.repeat(n)
    if trials.value(sigma) != float(score(sigma)):
        raise InputError(
            "a score that changes between two calls with the same strength", "common random numbers",
            "seed the noise of every evaluation alike",
        )  # fmt: skip
    eta, direction = config.eta, None
    for _ in range(config.steps):
        if trials.gap(sigma) < config.tolerance:
            return trials.found(config.tolerance)
        if direction is None:
            direction = _slope(trials, sigma, config.mu, n, generator)
        if not bool(direction.any()):  # flat: a vector may look elsewhere, a scalar has nowhere to go
            if n is None:
                break
            direction = None
            continue
        new = (sigma - eta * direction).clamp_min(config.minimum)
        if trials.gap(new) < trials.gap(sigma):
            sigma, direction = new, None
        else:
            eta /= 2
            direction = direction if n is None else None
    return _between(trials, config).found(config.tolerance)


def _slope(trials: _Trials, sigma: Tensor, mu: float, n: int | None, generator: torch.Generator | None) -> Tensor:
    """The difference quotient of J, along a random unit vector where there are several strengths."""
    if n is None:
        unit = torch.ones((), dtype=torch.float64)
    else:
        unit = torch.randn(n, dtype=torch.float64, generator=generator)
        unit = unit / unit.norm()
    up, down = (sigma + mu * unit).clamp_min(SMALLEST), (sigma - mu * unit).clamp_min(SMALLEST)
    return (trials.gap(up) - trials.gap(down)) / (2 * mu) * unit


def _between(trials: _Trials, config: SearchConfig) -> _Trials:
    """Halve the distance, in logarithms, between the two nearest strengths with scores on both sides of the target."""
    for _ in range(config.refine):
        known = sorted(trials.seen.values(), key=lambda one: _size(one[0]))
        if trials.found(config.tolerance).reached:
            break
        sides = [
            (low, high) for (low, a), (high, b) in pairwise(known)
            if (a - trials.target) * (b - trials.target) < 0 and float(low.min()) > 0
        ]  # fmt: skip
        if not sides:
            break
        low, high = min(sides, key=lambda pair: min(trials.gap(pair[0]), trials.gap(pair[1])))
        middle = (low * high).sqrt()
        if torch.equal(middle, low) or torch.equal(middle, high):
            break
        trials.value(middle)
    return trials


__all__ = ["Found", "Score", "SearchConfig", "search_strength"]
