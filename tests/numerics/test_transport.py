"""Balanced codes and transport plans against plain loops, their limits, and their refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from efface.errors import InputError
from efface.numerics.transport import balanced_codes, entropic_plan, soft_cross_entropy


def cosines(rows: int, prototypes: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(rows, prototypes, generator=generator, dtype=torch.float64) * 2 - 1).to(dtype)


def slow_codes(scores: Tensor, eps: float, iterations: int) -> Tensor:
    """The published loop: prototypes to 1 / K each, samples to 1 / N each, times N at the end."""
    n, k = scores.shape
    q = [[math.exp(float(scores[b, a]) / eps) for b in range(n)] for a in range(k)]
    total = math.fsum(map(math.fsum, q))
    q = [[value / total for value in row] for row in q]
    for _ in range(iterations):
        q = [[value / math.fsum(row) / k for value in row] for row in q]
        sums = [math.fsum(q[a][b] for a in range(k)) for b in range(n)]
        q = [[row[b] / sums[b] / n for b in range(n)] for row in q]
    return torch.tensor(q, dtype=torch.float64).T * n


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_codes_are_the_published_loop(iterations: int) -> None:
    scores = cosines(9, 4)
    torch.testing.assert_close(
        balanced_codes(scores, eps=0.05, iterations=iterations),
        slow_codes(scores, 0.05, iterations),
        atol=1e-12,
        rtol=0,
    )


def test_rows_sum_to_one_and_with_many_iterations_columns_are_even() -> None:
    scores = cosines(60, 12, dtype=torch.float32)
    few, many = (balanced_codes(scores, eps=0.05, iterations=n) for n in (3, 500))
    for codes in (few, many):
        torch.testing.assert_close(codes.sum(1), torch.ones(60), atol=1e-5, rtol=0)
    assert float((many.sum(0) - 60 / 12).abs().max()) < 1e-3
    assert float((few.sum(0) - 60 / 12).abs().max()) > 1e-3, "three iterations balance only nearly"


@pytest.mark.parametrize("eps", [0.05, 0.01, 1e-5])
def test_small_eps_neither_overflows_nor_is_ignored(eps: float) -> None:
    scores = cosines(40, 8, dtype=torch.float32)
    assert math.isinf(float(torch.exp(scores / eps).max())) == (eps < 0.0112)
    codes = balanced_codes(scores, eps=eps, iterations=50)
    assert bool(torch.isfinite(codes).all())
    loose = balanced_codes(scores, eps=0.1, iterations=50)
    assert float(codes.amax(1).mean()) > float(loose.amax(1).mean()) + 0.05, "a smaller eps gives harder codes"


def test_half_precision_and_autocast_do_not_reach_the_codes() -> None:
    scores = cosines(40, 8, dtype=torch.float32)
    expected = balanced_codes(scores, eps=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(balanced_codes(scores, eps=0.05), expected)
    half = balanced_codes(scores.half(), eps=0.05)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, atol=5e-2, rtol=0)


def test_codes_have_no_gradient() -> None:
    assert not balanced_codes(cosines(5, 3).requires_grad_(), eps=0.1).requires_grad


def test_soft_cross_entropy_against_a_loop() -> None:
    targets, logits = balanced_codes(cosines(6, 5), eps=0.2), (10 * cosines(6, 5, 1)).requires_grad_()
    found = soft_cross_entropy(targets, logits)
    for row in range(6):
        lse = math.log(math.fsum(math.exp(float(x)) for x in logits[row].detach()))
        slow = -math.fsum(float(q) * (float(x) - lse) for q, x in zip(targets[row], logits[row].detach(), strict=True))
        assert float(found[row].detach()) == pytest.approx(slow, rel=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    torch.testing.assert_close(gradient, logits.softmax(1).detach() - targets)
    with pytest.raises(InputError, match="one shape"):
        soft_cross_entropy(targets[:3], logits)


def slow_plan(cost: np.ndarray, eps: float, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    kernel = np.exp(-cost / eps)
    u, v = np.ones(len(rows)), np.ones(len(columns))
    for _ in range(5000):
        u = rows / (kernel @ v)
        v = columns / (kernel.T @ u)
    return u[:, None] * kernel * v[None]


def test_plan_is_the_fixed_point_of_scaling() -> None:
    rng = np.random.default_rng(0)
    cost, masses = rng.random((4, 7)), np.array([1.0, 2.0, 3.0, 4.0])
    for given in (None, masses):
        rows = np.full(4, 0.25) if given is None else masses / masses.sum()
        found = entropic_plan(cost, eps=0.1, rows=given, tolerance=1e-10, iterations=10000)
        np.testing.assert_allclose(found, slow_plan(cost, 0.1, rows, np.full(7, 1 / 7)), atol=1e-8)
        np.testing.assert_allclose(found.sum(1), rows, atol=1e-8)
    tiny = entropic_plan(cost, eps=1e-3)
    assert np.isfinite(tiny).all()
    assert tiny.sum() == pytest.approx(1, abs=1e-6)


def test_bad_input() -> None:
    scores = cosines(4, 3)
    for eps in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match="eps"):
            balanced_codes(scores, eps=eps)
        with pytest.raises(InputError, match="eps"):
            entropic_plan(scores.numpy(), eps=eps)
    with pytest.raises(InputError, match="finite"):
        balanced_codes(torch.full((2, 2), torch.nan), eps=0.1)
    with pytest.raises(InputError, match="iterations"):
        balanced_codes(scores, eps=0.1, iterations=0)
    with pytest.raises(InputError, match="real"):
        balanced_codes(scores[:0], eps=0.1)
    with pytest.raises(InputError, match="4 positive"):
        entropic_plan(scores.numpy(), eps=0.1, rows=np.array([1.0, 0.0, 1.0, 1.0]))
    with pytest.raises(InputError, match="equal sums"):
        entropic_plan(scores.numpy(), eps=0.1, rows=np.ones(4), columns=np.ones(3))
