"""Corruptions against slow plain loops; nothing else moves; the noise belongs to the prompt."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from efface.errors import ConfigError, InputError
from efface.forget.guards.corruption import KINDS, WITHOUT_STRENGTH, corrupted, request_generator, rms

T, D, N = 5, 6, 3
WHERE = torch.tensor([False, True, True, False, True])


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(T, D, generator=torch.Generator().manual_seed(0))


def draw(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_loop(e: Tensor, kind: str, n: int, sigma: float) -> list[list[float]]:
    """The chosen rows, number by number."""
    generator, m = draw(), int(WHERE.sum())
    places = torch.randperm(D, generator=generator)[:n].tolist() if kind == "rand_noise_rand_n" else []
    order = torch.randperm(m, generator=generator).tolist() if kind == "shuffle" else []
    z = torch.randn(m, n, generator=generator).tolist() if "noise" in kind else [[0.0] * n] * m
    chosen = [row for row, here in zip(e.tolist(), WHERE.tolist(), strict=True) if here]
    found = []
    for i, row in enumerate(chosen):
        largest = sorted(range(D), key=lambda j, row=row: -abs(row[j]))[:n]
        out = list(row)
        for k in range(n):
            if kind == "rand_noise_first_n":
                out[k] = row[k] + sigma * z[i][k]
            elif kind == "rand_noise_rand_n":
                out[places[k]] = row[places[k]] + sigma * z[i][k]
            elif kind == "rand_noise_top_k":
                out[largest[k]] = row[largest[k]] + sigma * z[i][k]
            elif kind == "set_rand_noise_first_n":
                out[k] = sigma * z[i][k]
            elif kind in ("zero_out_first_n", "zero_out_top_k"):
                out[k if kind.endswith("first_n") else largest[k]] = 0.0
            elif kind in ("flip_sign_first_n", "flip_sign_top_k"):
                place = k if kind.endswith("first_n") else largest[k]
                out[place] = -row[place]
        if kind == "shuffle":
            out = list(chosen[order[i]])
        elif kind == "reverse_order":
            out = list(chosen[m - 1 - i])
        found.append(out)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_against_a_loop(rows: Tensor, kind: str) -> None:
    before = rows.clone()
    out = corrupted(rows, WHERE, kind, N, 2.0, draw())
    assert torch.equal(rows, before), "in-place changes break autograd and tied buffers"
    assert torch.equal(out[~WHERE], rows[~WHERE]), "other rows keep their bits"
    expected = by_loop(rows, kind, N, 2.0)
    for ours, theirs in zip(out[WHERE].tolist(), expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
    assert not torch.equal(out[WHERE], rows[WHERE])


@pytest.mark.parametrize("kind", sorted(set(KINDS) - WITHOUT_STRENGTH))
def test_common_random_numbers(rows: Tensor, kind: str) -> None:
    """Two strengths differ by a factor and by nothing else; a difference quotient of them is no noise."""
    start = corrupted(rows, WHERE, kind, N, 0.0, draw())
    one, three = (corrupted(rows, WHERE, kind, N, sigma, draw()) - start for sigma in (1.0, 3.0))
    torch.testing.assert_close(three, 3 * one, rtol=0, atol=1e-5)


def test_a_strength_for_each_number(rows: Tensor) -> None:
    sigma = torch.tensor([0.0, 1.0, 10.0])
    moved = corrupted(rows, WHERE, "rand_noise_first_n", 3, sigma, draw()) - rows
    plain = corrupted(rows, WHERE, "rand_noise_first_n", 3, 1.0, draw()) - rows
    torch.testing.assert_close(moved[:, :3], plain[:, :3] * sigma, rtol=0, atol=1e-5)
    assert torch.equal(moved[:, 0], torch.zeros(T))


def test_the_generator_belongs_to_the_prompt() -> None:
    def noise(seed: int, ids: list[int]) -> list[float]:
        found: list[float] = torch.randn(4, generator=request_generator(seed, ids)).tolist()
        return found

    assert noise(0, [5, 6]) == noise(0, [5, 6])
    assert len({tuple(noise(*key)) for key in [(0, [5, 6]), (1, [5, 6]), (0, [6, 5]), (0, [56]), (0, [5])]}) == 5


def test_precision_and_size() -> None:
    rows = torch.randn(T, D, generator=draw(1)).to(torch.bfloat16)
    assert corrupted(rows, WHERE, "rand_noise_first_n", 1, 1.0, draw()).dtype == torch.bfloat16
    assert rms(torch.tensor([[3.0, 4.0]])) == pytest.approx(math.sqrt(12.5))


def test_bad_input(rows: Tensor) -> None:
    with pytest.raises(ConfigError, match="corruption 'blur'"):
        corrupted(rows, WHERE, "blur", 1, 1.0, draw())
    with pytest.raises(ConfigError, match="at most 6"):
        corrupted(rows, WHERE, "rand_noise_first_n", D + 1, 1.0, draw())
    with pytest.raises(InputError, match="one, or n of them"):
        corrupted(rows, WHERE, "rand_noise_first_n", 3, torch.ones(2), draw())
    with pytest.raises(InputError, match="0 or more"):
        corrupted(rows, WHERE, "rand_noise_first_n", 3, -1.0, draw())
    assert torch.equal(corrupted(rows, torch.zeros(T, dtype=torch.bool), "shuffle", 9, 0.0, draw()), rows)
