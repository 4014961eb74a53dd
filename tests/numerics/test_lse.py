"""The tiled log-sum-exp against the dense one: values and every gradient, entry by entry."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from efface.errors import InputError
from efface.numerics import lse as lse_module
from efface.numerics.lse import lse_both, lse_rows, lse_self
from efface.numerics.masks import Dense, Mask, Same, Shifted

B, M, D = 11, 8, 5
SCALES = (0.3, 20.0, 1000.0, 5000.0, -7.0)
"""At 5000 even float64 needs the running maximum; at the others a constant shift is enough."""


def units(rows: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """[rows, D] on the unit sphere."""
    x = torch.randn(rows, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=1).to(dtype).requires_grad_()


def dense(q: Tensor, k: Tensor, scale: Tensor | float, exclude: Mask | None) -> Tensor:
    """scale * q k^T with the excluded pairs at -inf, [B, M]."""
    s = scale * q @ k.T
    if exclude is None:
        return s
    return s.masked_fill(exclude.tile(slice(0, len(q)), slice(0, len(k)), q.device), -math.inf)


def dense_lse_rows(q: Tensor, k: Tensor, scale: Tensor | float, exclude: Mask | None = None) -> Tensor:
    return dense(q, k, scale, exclude).logsumexp(1)


def weights(rows: int) -> Tensor:
    """Incoming gradients of both signs, with a zero among them."""
    return torch.linspace(-1, 1.5, rows, dtype=torch.float64).roll(3).where(torch.arange(rows) != 2, 0)


def agree(ours: Callable[..., Tensor], plain: Callable[..., Tensor], *inputs: Tensor) -> None:
    """The same value and the same gradient of every input, to 1e-10 of the largest entry."""
    left, right = ours(*inputs), plain(*inputs)
    torch.testing.assert_close(left, right, atol=1e-10, rtol=1e-12)
    pairs = zip(torch.autograd.grad(left, inputs), torch.autograd.grad(right, inputs), strict=True)
    for found, expected in pairs:
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, atol=1e-10 * max(1.0, float(expected.abs().max())), rtol=0)


MASKS: dict[str, Mask | None] = {
    "none": None,
    "paired": Shifted(-2),
    "ids": Same(torch.arange(B) % 4, torch.arange(M) % 3),
    "both": Same(torch.arange(B) % 4, torch.arange(M) % 5) | Shifted(),
    "random": Dense(torch.rand(B, M, generator=torch.Generator().manual_seed(5)) > 0.5),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("tile", [None, *range(1, B + 4)])
def test_rows_and_columns_equal_dense(tile: int | None, mask: str) -> None:
    exclude, g, h = MASKS[mask], weights(B), weights(M)
    for value in SCALES:
        scale = torch.tensor(value, dtype=torch.float64, requires_grad=True)

        def ours_both(q: Tensor, k: Tensor, scale: Tensor) -> Tensor:
            rows, cols = lse_both(q, k, scale, exclude=exclude, tile=tile)
            return (rows * g).sum() + (cols * h).sum()

        def dense_both(q: Tensor, k: Tensor, scale: Tensor) -> Tensor:
            s = dense(q, k, scale, exclude)
            return (s.logsumexp(1) * g).sum() + (s.logsumexp(0) * h).sum()

        agree(ours_both, dense_both, units(B, 0), units(M, 1), scale)
        agree(
            lambda q, k, scale: (lse_rows(q, k, scale, exclude=exclude, tile=tile) * g).sum(),
            lambda q, k, scale: (dense_lse_rows(q, k, scale, exclude) * g).sum(),
            units(B, 0), units(M, 1), scale,
        )  # fmt: skip


SQUARE = torch.rand(B, B, generator=torch.Generator().manual_seed(6)) > 0.8
SELF_MASKS: dict[str, Mask | None] = {
    "none": None,
    "ids": Same(torch.arange(B) % 7),
    "dense": Dense(SQUARE | SQUARE.T),
    "pairs both ways": Shifted(3) | Shifted(-3),
}


@pytest.mark.parametrize("mask", SELF_MASKS)
@pytest.mark.parametrize("tile", [None, *range(1, B + 4)])
def test_self_equals_dense(tile: int | None, mask: str) -> None:
    exclude, g = SELF_MASKS[mask], weights(B)
    whole = Shifted() if exclude is None else exclude | Shifted()
    for value in SCALES:
        agree(
            lambda z, scale: (lse_self(z, scale, exclude=exclude, tile=tile) * g).sum(),
            lambda z, scale: (dense_lse_rows(z, z, scale, whole) * g).sum(),
            units(B, 2), torch.tensor(value, dtype=torch.float64, requires_grad=True),
        )  # fmt: skip


@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.floats(0.01, 200),
    st.lists(st.integers(0, 4), min_size=18, max_size=18), st.integers(0, 1000),
)  # fmt: skip
@settings(deadline=None)
def test_any_shape_mask_and_length(b: int, m: int, tile: int, length: float, ids: list[int], seed: int) -> None:
    q, k = units(b, seed), units(m, seed + 1)
    q, k = (q * length).detach().requires_grad_(), k.detach().requires_grad_()
    exclude = Same(torch.tensor(ids[:b]), torch.tensor(ids[9 : 9 + m]))
    full = exclude.tile(slice(0, b), slice(0, m), q.device)
    if full.all(1).any():
        with pytest.raises(InputError, match=f"{int(full.all(1).sum())} of {b} rows have no candidate"):
            lse_rows(q, k, 3.0, exclude=exclude, tile=tile)
        return
    agree(
        lambda q, k: lse_rows(q, k, 3.0, exclude=exclude, tile=tile).sum(),
        lambda q, k: dense_lse_rows(q, k, 3.0, exclude).sum(),
        q, k,
    )  # fmt: skip


def test_gradcheck() -> None:
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    mask = MASKS["both"]
    assert torch.autograd.gradcheck(lambda *x: lse_rows(*x, exclude=mask, tile=3), (units(B, 0), units(M, 1), scale))
    assert torch.autograd.gradcheck(lambda *x: lse_both(*x, exclude=mask, tile=4), (units(B, 0), units(M, 1), scale))
    assert torch.autograd.gradcheck(lambda *x: lse_self(*x, tile=4), (units(6, 0), scale))


@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, False), (False, False, True), (True, True, False)]
)
def test_only_the_gradients_that_are_asked_for(wanted: tuple[bool, bool, bool]) -> None:
    inputs = [units(B, 0), units(M, 1), torch.tensor(4.0, dtype=torch.float64)]
    for one, need in zip(inputs, wanted, strict=True):
        one.requires_grad_(need)
    needed = [one for one, need in zip(inputs, wanted, strict=True) if need]
    found = torch.autograd.grad(sum(part.sum() for part in lse_both(*inputs, tile=3)), needed)
    s = dense(*inputs, None)
    expected = torch.autograd.grad(s.logsumexp(0).sum() + s.logsumexp(1).sum(), needed)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, atol=1e-12, rtol=0)


def test_one_output_alone_and_a_leaf_on_both_sides() -> None:
    z = units(B, 3)
    rows, _ = lse_both(z, z, 5.0, tile=4)
    (found,) = torch.autograd.grad(rows.sum(), z)
    (expected,) = torch.autograd.grad(dense_lse_rows(z, z, 5.0).sum(), z)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("scale", [20.0, 100.0, 1000.0])
def test_float32_is_as_good_as_dense_float32_and_does_not_overflow(scale: float) -> None:
    """Lengths of 1 to 3, so that |s| reaches 9000; the error is held against the dense float32 arithmetic's own."""
    for length in (1.0, 3.0):
        q, k = (length * units(300, 0).detach()).requires_grad_(), (length * units(200, 1).detach()).requires_grad_()
        low_q, low_k = q.detach().float().requires_grad_(), k.detach().float().requires_grad_()
        exact = dense_lse_rows(low_q.double(), low_k.double(), scale)
        plain = dense_lse_rows(low_q, low_k, scale)
        tiled = lse_rows(low_q, low_k, scale, tile=64)
        size = float(exact.detach().abs().max())
        assert tiled.dtype == torch.float32
        assert (
            float((tiled - exact).detach().abs().max()) <= 2 * float((plain - exact).detach().abs().max()) + 1e-7 * size
        )
        wanted = torch.autograd.grad(exact.sum(), low_q)[0]
        error = (torch.autograd.grad(tiled.sum(), low_q)[0] - wanted).abs().max()
        usual = (torch.autograd.grad(plain.sum(), low_q)[0] - wanted).abs().max()
        assert float(error) <= 3 * float(usual) + 1e-6 * scale


def test_a_row_too_low_for_the_constant_shift_is_still_exact() -> None:
    """One row opposite to all columns: its sum underflows under the shift that suits the others."""
    q = torch.cat([torch.eye(D)[:1].repeat(3, 1), -torch.eye(D)[:1]])
    k = torch.eye(D)[:1].repeat(4, 1)
    for scale in (60.0, 100.0, 170.0):
        rows = lse_rows(q, k, scale, tile=2)
        torch.testing.assert_close(rows, scale * torch.tensor([1.0, 1, 1, -1]) + math.log(4), atol=0, rtol=1e-6)
        rows, cols = lse_both(q, k, scale, tile=3)
        torch.testing.assert_close(rows[3], torch.tensor(-scale + math.log(4)))
        torch.testing.assert_close(cols, torch.full((4,), scale + math.log(3)))


def test_both_paths_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    original = lse_module._by_running_maximum
    monkeypatch.setattr(lse_module, "_by_running_maximum", lambda *x: taken.append("maximum") or original(*x))
    lse_both(units(B, 0, torch.float32), units(M, 1, torch.float32), 100.0)
    assert not taken
    lse_both(units(B, 0, torch.float32), units(M, 1, torch.float32), 1000.0)
    assert taken == ["maximum"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_inputs_and_autocast_compute_in_float32(dtype: torch.dtype, autocast: bool) -> None:
    q, k = units(B, 0, dtype), units(M, 1, dtype)
    q, k = q.detach().requires_grad_(), k.detach().requires_grad_()
    scale = torch.tensor(50.0, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        rows, cols = lse_both(q, k, scale, tile=3)
        loss = rows.sum() + cols.sum()
        alone = lse_self(q, scale, tile=3).sum() + lse_rows(q, k, scale, tile=3).sum()
    grads = torch.autograd.grad(loss + alone, (q, k, scale))
    exact_q, exact_k = q.detach().double().requires_grad_(), k.detach().double().requires_grad_()
    exact_scale = torch.tensor(50.0, dtype=torch.float64, requires_grad=True)
    s = dense(exact_q, exact_k, exact_scale, None)
    torch.testing.assert_close(rows.double(), s.logsumexp(1), atol=2e-5, rtol=0)
    torch.testing.assert_close(cols.double(), s.logsumexp(0), atol=2e-5, rtol=0)
    own = dense_lse_rows(exact_q, exact_q, exact_scale, Shifted()).sum()
    total = s.logsumexp(1).sum() * 2 + s.logsumexp(0).sum() + own
    assert rows.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for found, wanted in zip(grads, torch.autograd.grad(total, (exact_q, exact_k, exact_scale)), strict=True):
        # a gradient in half precision is the right one, rounded once (and summed over the three losses in that dtype)
        step = max(torch.finfo(found.dtype).eps, 1e-5) * 2
        torch.testing.assert_close(found.double(), wanted, atol=step * float(wanted.abs().max()), rtol=0)
    assert [grad.dtype for grad in grads] == [dtype, dtype, torch.float32]


@pytest.mark.parametrize("scale", [1 / 0.07, 1 / 0.3, 1e40])
def test_a_scale_that_is_a_number_is_not_rounded(scale: float) -> None:
    """1/0.07 is no float32 number, and 1e40 is infinite as one; float64 embeddings are computed with float64 scales."""
    length = 1.0 if scale < 100 else 1e-20
    q, k = length * units(B, 0).detach(), length * units(M, 1).detach()
    found = lse_rows(q, k, scale, tile=3)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, dense_lse_rows(q, k, scale), atol=1e-14, rtol=1e-14)
    exact = torch.tensor(scale, dtype=torch.float64)
    assert torch.equal(found, lse_rows(q, k, exact, tile=3))
    assert torch.equal(lse_self(q, scale, tile=3), lse_self(q, exact, tile=3))


def test_the_same_bits_twice() -> None:
    runs = []
    for _ in range(2):
        z = units(40, 0, torch.float32)
        value = lse_self(z, 10.0, tile=16)
        runs.append((value, torch.autograd.grad(value.sum(), z)[0]))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])


def test_a_second_derivative_is_refused() -> None:
    q = units(B, 0)
    with pytest.raises(InputError, match="second derivative"):
        torch.autograd.grad(lse_rows(q, units(M, 1), 2.0).sum(), q, create_graph=True)


def with_value(value: float) -> Tensor:
    q = units(B, 0).detach().clone()
    q[4, 2] = value
    return q


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda q, k: lse_rows(with_value(math.nan), k, 1.0), "1 of the 11 first embeddings are not finite"),
        (lambda q, k: lse_both(k, with_value(math.inf), 1.0), "1 of the 11 second embeddings are not finite"),
        (lambda q, k: lse_self(with_value(-math.inf), 1.0), "not finite"),
        (lambda q, k: lse_rows(q, k, math.nan), "a scale of nan"),
        (lambda q, k: lse_rows(q, k, torch.ones(2)), r"a scale of shape \[2\]"),
        (lambda q, k: lse_rows(q, k[:, :3], 1.0), r"\[11, 5\] on cpu and \[8, 3\]"),
        (lambda q, k: lse_rows(q[:0], k, 1.0), r"shape \[0, 5\]"),
        (lambda q, k: lse_rows(q.long(), k, 1.0), "int64"),
        (lambda q, k: lse_rows(q[0], k, 1.0), r"shape \[5\]"),
        (lambda q, k: lse_rows(q, k, 1.0, tile=0), "tile of side 0"),
        (lambda q, k: lse_rows(q, k, 1.0, exclude=Dense(torch.ones(M, B).bool())), r"expected shape \[11, 8\]"),
        (lambda q, k: lse_rows(q, k, 1.0, exclude=Same(torch.zeros(B).long(), torch.zeros(M).long())), "11 of 11 rows"),
        (lambda q, k: lse_both(q, k, 1.0, exclude=Dense(torch.arange(M).expand(B, M) == 3), tile=2), "1 of 8 columns"),
        (lambda q, k: lse_self(q[:1], 1.0), "1 of 1 rows have no candidate"),
        (lambda q, k: lse_self(q, 1.0, exclude=Shifted(7), tile=3), "not symmetric"),
    ],
)  # fmt: skip
def test_bad_input_names_what_it_got(wrong: Callable[[Tensor, Tensor], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        wrong(units(B, 0), units(M, 1))
