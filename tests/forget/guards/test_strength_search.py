"""The search of a strength on curves that are known, and the traps of the released one."""

from __future__ import annotations

import itertools

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from efface.errors import InputError
from efface.forget.guards.strength_search import SearchConfig, search_strength


def falling(sigma: Tensor) -> float:
    """From 1 at no noise to 0.1 at much of it."""
    return 0.1 + 0.9 / (1.0 + float(sigma.square().mean()))


@pytest.mark.parametrize("target", [0.9, 0.5, 0.2, 0.12])
def test_it_finds_the_target_and_not_the_least(target: float) -> None:
    """The released search lowers the score itself, and over-corrupts."""
    found = search_strength(falling, target)
    assert found.reached
    assert abs(found.score - target) == found.gap < 0.01
    assert falling(found.sigma) == found.score
    assert found.sigma.ndim == 0


def test_what_cannot_be_reached_is_said() -> None:
    found = search_strength(falling, 0.02)
    assert not found.reached
    assert found.gap == pytest.approx(min(abs(value - 0.02) for _, value in found.tried))
    assert found.gap < 0.1


def test_the_first_step_against_a_hand_calculation() -> None:
    config = SearchConfig(start=2.0, mu=0.05, eta=0.5, steps=1, refine=0)
    found = search_strength(lambda sigma: float(1 - 0.1 * sigma), 0.5, config)
    # J = |0.5 - 0.1 s| = 0.3 at 2, slope -0.1: one step to 2 + 0.5 * 0.1
    assert float(found.sigma) == pytest.approx(2.05)
    assert found.gap == pytest.approx(0.295)


def test_several_strengths() -> None:
    weights = torch.tensor([1.0, 4.0, 0.25], dtype=torch.float64)

    def score(sigma: Tensor) -> float:
        return float(1.0 / (1.0 + (weights * sigma.square()).sum()))

    found = search_strength(
        score, 0.3, SearchConfig(steps=60, eta=5.0), n=3, generator=torch.Generator().manual_seed(0)
    )
    assert found.reached
    assert found.sigma.shape == (3,)
    assert bool((found.sigma >= 0.1 - 1e-9).all())
    again = search_strength(
        score, 0.3, SearchConfig(steps=60, eta=5.0), n=3, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(found.sigma, again.sigma)


def test_noise_that_is_drawn_anew_is_refused() -> None:
    """Without common random numbers the difference quotient is noise."""
    counter = itertools.count()
    with pytest.raises(InputError, match="common random numbers"):
        search_strength(lambda sigma: falling(sigma) + 1e-3 * next(counter), 0.5)


def test_each_strength_is_scored_once() -> None:
    calls: list[float] = []

    def score(sigma: Tensor) -> float:
        calls.append(float(sigma))
        return falling(sigma)

    found = search_strength(score, 0.3)
    assert len(calls) == len(set(calls)) + 1 == len(found.tried) + 1, "the first one twice, to see that it stays"


def test_a_flat_score_ends_the_search() -> None:
    found = search_strength(lambda _: 0.8, 0.5)
    assert float(found.sigma) == pytest.approx(0.1, abs=0.1)
    assert (found.score, found.reached) == (0.8, False)
    flat = search_strength(lambda _: 0.8, 0.5, n=2, generator=torch.Generator().manual_seed(0))
    assert not flat.reached


def test_bad_input() -> None:
    with pytest.raises(ValidationError, match="minimum must be larger than mu"):
        SearchConfig(mu=0.1, minimum=0.1)
    with pytest.raises(ValidationError, match="start must not be smaller"):
        SearchConfig(start=0.2, minimum=0.3)
    with pytest.raises(InputError, match="a score of nan"):
        search_strength(lambda _: float("nan"), 0.5)
    with pytest.raises(InputError, match="without a generator"):
        search_strength(falling, 0.5, n=3)
