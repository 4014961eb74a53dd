"""The shared supervised contrast against loops, for any masks and tiles; its sums over pairs; and memory linear in B."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

from efface.errors import InputError
from efface.numerics.contrast import Contrast, check_pair, lse_or_nothing, masked_sum, supervised_contrast
from efface.numerics.masks import Dense, Same, Shifted
from efface.numerics.sigmoid import softplus_rows

B, M, D, SCALE = 9, 13, 6, 4.0


def unit(rows: int, seed: int) -> Tensor:
    raw = torch.randn(rows, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normalize(raw, dim=1).requires_grad_()


def mask(seed: int, share: float) -> Tensor:
    return torch.rand(B, M, generator=torch.Generator().manual_seed(seed)) < share


def dense(q: Tensor, k: Tensor, scale: Tensor, positive: Tensor, exclude: Tensor) -> Tensor:
    """Row by row with torch's own log-sum-exp over what is left."""
    losses = []
    for i in range(len(q)):
        s = scale * k @ q[i]
        p = positive[i] & ~exclude[i]
        losses.append((s[~exclude[i]].logsumexp(0) - s[p]).mean() if bool(p.any()) else s.new_zeros(()))
    return torch.stack(losses)


@pytest.mark.parametrize("tile", [None, 1, 4, 13])
def test_any_masks_against_a_loop(tile: int | None) -> None:
    q, k, scale = unit(B, 0), unit(M, 1), torch.tensor(SCALE, dtype=torch.float64, requires_grad=True)
    positive, exclude = mask(2, 0.3), mask(3, 0.2)
    positive[4] = False  # no positive
    exclude[5] = True  # nothing at all is left
    found = supervised_contrast(q, k, scale, Dense(positive), Dense(exclude), tile=tile)
    slow = dense(q, k, scale, positive, exclude)
    assert found.positives.tolist() == (positive & ~exclude).sum(1).tolist()
    assert found.without_positive == int(((positive & ~exclude).sum(1) == 0).sum()) >= 2
    assert torch.allclose(found.losses, slow, rtol=0, atol=1e-12)
    weights = torch.rand(B, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    grads = torch.autograd.grad((weights * found.losses).sum(), (q, k, scale))
    for one, other in zip(grads, torch.autograd.grad((weights * slow).sum(), (q, k, scale)), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_no_exclusion_and_one_set() -> None:
    z, labels = unit(B, 5), torch.arange(B) % 3
    found = supervised_contrast(z, z, SCALE, Same(labels), tile=4)
    everything = torch.zeros(B, B, dtype=torch.bool)
    slow = dense(z, z, torch.tensor(SCALE, dtype=torch.float64), labels[:, None] == labels[None], everything)
    assert torch.allclose(found.losses, slow, rtol=0, atol=1e-12)
    assert isinstance(found, Contrast)
    assert found.without_positive == 0


def test_all_without_positive_is_an_error() -> None:
    with pytest.raises(InputError, match=r"none of the 9 anchors of \[9, 6\] has a positive among \[13, 6\]"):
        supervised_contrast(unit(B, 0), unit(M, 1), SCALE, Dense(torch.zeros(B, M, dtype=torch.bool)))
    with pytest.raises(InputError, match="has a positive"):  # all positives are excluded
        supervised_contrast(unit(B, 0), unit(B, 1), SCALE, Shifted(0), Shifted(0))


@pytest.mark.parametrize("shape", [(B, M + 1), (M, B), (B, 1)])
def test_masks_of_another_shape(shape: tuple[int, int]) -> None:
    q, k = unit(B, 0), unit(M, 1)
    wrong, right = Dense(torch.ones(shape, dtype=torch.bool)), Dense(mask(2, 0.5))
    with pytest.raises(InputError, match=r"shape \[9, 13\]"):
        supervised_contrast(q, k, SCALE, wrong)
    with pytest.raises(InputError, match=r"shape \[9, 13\]"):
        supervised_contrast(q, k, SCALE, right, wrong)
    with pytest.raises(InputError, match=r"shape \[9, 13\]"):
        softplus_rows(q, k, SCALE, q.new_zeros(B), positive=wrong)
    with pytest.raises(InputError, match=r"shape \[9, 13\]"):
        masked_sum(k, wrong, B)


def test_a_row_without_candidates_is_minus_infinity_and_still() -> None:
    q, k, exclude = unit(B, 0), unit(M, 1), mask(3, 0.2)
    exclude[2] = True
    found = lse_or_nothing(q, k, SCALE, exclude=Dense(exclude), tile=4)
    assert float(found[2].detach()) == -math.inf
    assert torch.isfinite(found).sum() == B - 1
    by_q, by_k = torch.autograd.grad(found[torch.isfinite(found)].sum(), (q, k))
    assert not by_q[2].any()
    assert torch.isfinite(by_q).all()
    assert torch.isfinite(by_k).all()


@pytest.mark.parametrize("tile", [None, 1, 4, 13])
def test_softplus_rows_against_autograd(tile: int | None) -> None:
    q, k, shift = (
        unit(B, 0),
        unit(M, 1),
        torch.randn(B, generator=torch.Generator().manual_seed(6), dtype=torch.float64),
    )
    shift.requires_grad_()
    scale = torch.tensor(SCALE, dtype=torch.float64, requires_grad=True)
    positive, exclude = mask(7, 0.3), mask(8, 0.3)
    found = softplus_rows(q, k, scale, shift, positive=Dense(positive), exclude=Dense(exclude), tile=tile)
    sign = torch.where(positive, 1.0, -1.0).double()
    slow = (softplus(-sign * (scale * q @ k.T + shift[:, None])) * ~exclude).sum(1)
    assert torch.allclose(found, slow, rtol=0, atol=1e-12)
    weights = torch.rand(B, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    inputs = (q, k, scale, shift)
    expected = torch.autograd.grad((weights * slow).sum(), inputs)
    for one, other in zip(torch.autograd.grad((weights * found).sum(), inputs), expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_softplus_rows_of_an_infinite_shift() -> None:
    q, k = unit(B, 0), unit(M, 1)
    positive = Dense(mask(7, 0.3))
    shift = torch.full((B,), math.inf, dtype=torch.float64, requires_grad=True)
    found = softplus_rows(q, k, SCALE, shift, positive=positive, exclude=~positive)
    assert not found.any()
    for grad in torch.autograd.grad(found.sum(), (q, k, shift)):
        assert not grad.any()


def test_nothing_of_the_size_of_the_matrix_is_kept() -> None:
    """Bytes saved for the backward pass grow with B, not with B^2."""
    saved: list[int] = []

    def remember(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x

    def elements(rows: int) -> int:
        saved.clear()
        z = unit(rows, 0)
        labels = torch.arange(rows) % 5
        with torch.autograd.graph.saved_tensors_hooks(remember, lambda x: x):
            supervised_contrast(z, z, SCALE, Same(labels), Shifted(0), tile=32)
            softplus_rows(z, z, SCALE, z.new_zeros(rows), positive=Shifted(0), tile=32)
        return sum(saved)

    small, large = elements(128), elements(256)
    assert large < 2.05 * small
    assert max(saved) <= 256 * D


def test_autocast_does_not_lower_the_precision() -> None:
    z, labels = unit(B, 5).detach().float().requires_grad_(), torch.arange(B) % 3

    def run() -> list[Tensor]:
        value = supervised_contrast(z, z, 100.0, Same(labels), Shifted(0)).losses.mean()
        value = value + softplus_rows(z, z, 100.0, z.new_zeros(B), positive=Shifted(0)).mean()
        return [value.detach(), torch.autograd.grad(value, z)[0]]

    plain = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for one, other in zip(run(), plain, strict=True):
            assert torch.equal(one, other)


def test_more_candidates_than_anchors_are_fine() -> None:
    check_pair(unit(1, 0), unit(M, 1), SCALE)  # one local anchor among all candidates
    with pytest.raises(InputError, match="as many rows"):
        check_pair(unit(B, 0), unit(M, 1), SCALE, paired=True)
