"""Alignment and uniformity against plain loops, in every tile size, with their traps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from efface.errors import InputError
from efface.numerics.sphere import (
    alignment,
    alignment_rows,
    cross_uniformity,
    cross_uniformity_rows,
    twins,
    uniformity,
    uniformity_rows,
    unit,
)


def rows(n: int, d: int = 7, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def looped(x: Tensor, y: Tensor, t: float) -> float:
    """log mean_{i != j} exp(-t ||x_i - y_j||^2), pair by pair."""
    total = [
        math.exp(-t * sum((a - b) ** 2 for a, b in zip(p, q, strict=True)))
        for i, p in enumerate(x.tolist())
        for j, q in enumerate(y.tolist())
        if i != j
    ]
    return math.log(sum(total) / len(total))


@pytest.mark.parametrize("tile", [None, 1, 2, 3, 5, 10, 11, 64])
@pytest.mark.parametrize("t", [0.5, 2.0, 30.0])
def test_uniformities_equal_loops_in_every_tile(tile: int | None, t: float) -> None:
    x, y = unit(rows(11)), unit(rows(11, seed=1))
    assert float(uniformity(x, t, tile)) == pytest.approx(looped(x, x, t), abs=1e-12)
    assert float(cross_uniformity(x, y, t, tile)) == pytest.approx(looped(x, y, t), abs=1e-12)


@pytest.mark.parametrize("tile", [None, 1, 3, 11])
def test_gradients_equal_those_of_the_distances(tile: int | None) -> None:
    def dense(x: Tensor, y: Tensor) -> Tensor:
        x, y = normalize(x, dim=1), normalize(y, dim=1)
        off = ~torch.eye(len(x), dtype=torch.bool)
        within = torch.log(torch.exp(-2 * (x[:, None] - x[None]).square().sum(2))[off].mean())
        return within + 3 * torch.log(torch.exp(-2 * (x[:, None] - y[None]).square().sum(2))[off].mean())

    def ours(x: Tensor, y: Tensor) -> Tensor:
        x, y = unit(x), unit(y)
        return uniformity(x, 2.0, tile) + 3 * cross_uniformity(x, y, 2.0, tile)

    found = []
    for function in (dense, ours):
        x, y = rows(11).requires_grad_(), rows(11, seed=1).requires_grad_()
        found.append(torch.autograd.grad(function(x, y), (x, y)))
    for expected, given in zip(*found, strict=True):
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-12)


def test_the_rows_average_to_the_whole() -> None:
    x, y = unit(rows(9)), unit(rows(9, seed=1))
    assert uniformity_rows(x).exp().mean().log() == pytest.approx(float(uniformity(x)), abs=1e-12)
    assert cross_uniformity_rows(x, y).exp().mean().log() == pytest.approx(float(cross_uniformity(x, y)), abs=1e-12)
    assert float(alignment_rows(x, y).mean()) == pytest.approx(float(alignment(x, y)), abs=1e-15)


def test_collapsed_rows_have_uniformity_zero_and_many_dimensions_minus_two_t() -> None:
    one = unit(rows(1)).expand(20, -1)
    assert float(uniformity(one)) == pytest.approx(0.0, abs=1e-12)
    assert float(cross_uniformity(one, one)) == pytest.approx(0.0, abs=1e-12)
    assert float(uniformity(unit(rows(200, 2000)))) == pytest.approx(-4.0, abs=0.02)


def test_uniformity_does_not_see_a_rotation() -> None:
    x = unit(rows(40))
    turn = torch.linalg.qr(rows(7, 7, seed=3)).Q
    assert float(uniformity(x @ turn)) == pytest.approx(float(uniformity(x)), abs=1e-12)


def test_alignment_is_two_minus_two_cosines() -> None:
    x, y = unit(rows(30)), unit(rows(30, seed=1))
    assert float(alignment(x, y)) == pytest.approx(float(2 - 2 * (x * y).sum(1).mean()), abs=1e-12)
    a = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[0.73, math.sqrt(1 - 0.73**2)]], dtype=torch.float64)
    assert float(alignment(a, b)) == pytest.approx(0.54, abs=1e-12)  # a cosine of 0.732 gives the paper's 0.536


def test_float32_stays_close_at_a_sharp_kernel() -> None:
    x = rows(300, 16)
    assert float(uniformity(unit(x.float()), 20.0)) == pytest.approx(float(uniformity(unit(x), 20.0)), abs=2e-5)
    assert uniformity(unit(x.float())).dtype == torch.float32


def test_unit_survives_tiny_and_huge_rows_and_has_a_gradient() -> None:
    x = torch.tensor([[3e-30, 4e-30], [3e30, 4e30], [3.0, 4.0]])
    torch.testing.assert_close(unit(x), torch.tensor([[0.6, 0.8]]).expand(3, 2))
    z = rows(4).requires_grad_()
    assert torch.autograd.gradcheck(unit, (z,))


def test_twins_are_counted_whatever_the_tile() -> None:
    x = unit(rows(10, dtype=torch.float32))
    z = torch.cat([x, x[:1], x[:1] + 1e-8, -x[3:4]])
    for tile in (None, 1, 4, 13):
        assert twins(unit(z), tile=tile).tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 0]


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_bad_rows_are_named_by_index(value: float) -> None:
    x = rows(6)
    x[4] = value
    with pytest.raises(InputError, match="row 4 of pictures is"):
        unit(x, "pictures")


def test_shapes_and_lengths_are_refused() -> None:
    x = unit(rows(5))
    with pytest.raises(InputError, match=r"shape \[2, 7\]"):
        uniformity(x[:2])
    with pytest.raises(InputError, match="2 pairs"):
        cross_uniformity(x[:2], x[:2])
    with pytest.raises(InputError, match=r"\[5, 7\] and \[4, 7\]"):
        alignment(x, x[:4])
    with pytest.raises(InputError, match="row 0 has length 3; expected rows of length one"):
        uniformity(3 * x)
    with pytest.raises(InputError, match="row 2 has length nan"):
        uniformity(torch.where(torch.arange(5)[:, None] == 2, torch.nan, x))
    with pytest.raises(InputError, match="t = 0"):
        uniformity(x, 0)
    with pytest.raises(InputError, match=r"shape \[3\]"):
        unit(torch.ones(3))
    with pytest.raises(InputError, match="int64"):
        unit(torch.ones(3, 2, dtype=torch.int64))
