"""Soft top-k: the sums, the implicit gradient, and where no threshold exists."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.errors import InputError
from efface.numerics.soft_topk import soft_topk


def scores(rows: int, labels: int, seed: int = 0, spread: float = 5.0) -> torch.Tensor:
    return spread * torch.randn(rows, labels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(labels=st.integers(3, 40), share=st.floats(0.05, 0.95), alpha=st.floats(0.5, 8), seed=st.integers(0, 9))
def test_p_sums_to_k(labels: int, share: float, alpha: float, seed: int) -> None:
    k = torch.tensor([share * labels, 1.0, labels - 0.5], dtype=torch.float64)
    p = soft_topk(scores(3, labels, seed), k, alpha, log=False)
    torch.testing.assert_close(p.sum(1), k, atol=1e-6, rtol=0)
    order = scores(3, labels, seed).argsort(1)
    assert bool((p.gather(1, order).diff(dim=1) >= 0).all()), "a larger score has a larger p"


@pytest.mark.parametrize("log", [True, False])
def test_the_gradient_is_that_of_the_function_with_a_k_for_each_row(log: bool) -> None:
    s = scores(3, 6, spread=1.0).requires_grad_()
    k = torch.tensor([1.0, 2.5, 4.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: soft_topk(x, k, 2.0, iterations=60, log=log), (s,), eps=1e-5, atol=1e-6)


def test_a_label_left_out_has_no_part() -> None:
    s = scores(2, 7, spread=1.0)
    s[:, 4] = -torch.inf
    s.requires_grad_()
    p = soft_topk(s, 2.0, log=False)
    torch.testing.assert_close(p[:, 4], torch.zeros(2, dtype=torch.float64))
    rest = torch.cat([s.detach()[:, :4], s.detach()[:, 5:]], dim=1)
    torch.testing.assert_close(torch.cat([p[:, :4], p[:, 5:]], dim=1), soft_topk(rest, 2.0, log=False))
    soft_topk(s, 2.0)[:, :2].sum().backward()  # type: ignore[no-untyped-call]
    assert s.grad is not None
    assert bool(s.grad.isfinite().all())
    assert bool((s.grad[:, 4] == 0).all())


@pytest.mark.parametrize("k", [0.0, -1.0, 6.0, 7.0])
def test_a_k_that_no_threshold_reaches_is_refused(k: float) -> None:
    with pytest.raises(InputError, match="no threshold"):
        soft_topk(scores(2, 6), k)


def test_saturated_probabilities_leave_a_finite_gradient() -> None:
    """Trap: sum v = 0 where every p is 0 or 1."""
    s = torch.tensor([[1e4, 1e4, -1e4, -1e4]], dtype=torch.float64, requires_grad=True)
    found = soft_topk(s, 2.0, 100.0)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert s.grad is not None
    assert bool(s.grad.isfinite().all())


def test_the_official_interval_misses_the_threshold_of_many_equal_scores() -> None:
    """100,000 equal scores, k = 1: at t = -max s - 10 / alpha the p already sum to 4.5."""
    s = torch.zeros(1, 100_000, dtype=torch.float64)
    assert float(torch.sigmoid(2.0 * (s - 10 / 2.0)).sum()) > 4
    assert float(soft_topk(s, 1.0, log=False).sum()) == pytest.approx(1, abs=1e-6)


def test_half_precision_is_computed_in_float32() -> None:
    p = soft_topk(scores(2, 50).to(torch.bfloat16), 5.0, log=False)
    assert p.dtype == torch.float32
    torch.testing.assert_close(p.sum(1), torch.full((2,), 5.0), atol=1e-4, rtol=0)


def test_bad_scores_are_refused() -> None:
    for s in (torch.full((2, 5), torch.nan), torch.full((2, 5), torch.inf), torch.zeros(5), torch.zeros(2, 5).long()):
        with pytest.raises(InputError):
            soft_topk(s, 2.0)
    with pytest.raises(InputError, match="alpha"):
        soft_topk(torch.zeros(2, 5), 2.0, 0.0)
