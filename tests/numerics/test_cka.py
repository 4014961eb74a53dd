"""CKA and Procrustes from streamed moments against the plain formulas with n x n matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from torch import Tensor

from efface.errors import InputError
from efface.numerics.cka import cka, cka_influence, cka_of, moments, procrustes, procrustes_of


def rows(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(n: int, d1: int, d2: int) -> tuple[Tensor, Tensor]:
    x = rows(n, d1) + 3
    return x, x @ rows(d1, d2, seed=1) / d1**0.5 + 0.7 * rows(n, d2, seed=2) - 1


def plain_biased(x: Tensor, y: Tensor) -> float:
    n = len(x)
    h = torch.eye(n, dtype=torch.float64) - 1 / n
    k, l = h @ x @ x.T @ h, h @ y @ y.T @ h  # noqa: E741
    return float((k * l).sum() / (k.norm() * l.norm()))


def plain_unbiased(x: Tensor, y: Tensor) -> float:
    """Song et al. 2012, equation 5, on Gram matrices with a zero diagonal."""

    def hsic(a: Tensor, b: Tensor) -> float:
        n = len(a)
        k, l, one = a @ a.T, b @ b.T, torch.ones(n, dtype=torch.float64)  # noqa: E741
        k.fill_diagonal_(0)
        l.fill_diagonal_(0)
        terms = (
            (k @ l).trace()
            + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (one @ k @ l @ one)
        )
        return float(terms / (n * (n - 3)))

    return hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))


SHAPES = [(50, 7, 4), (50, 4, 50), (20, 60, 5), (20, 33, 61), (4, 3, 9)]


@pytest.mark.parametrize(("n", "d1", "d2"), SHAPES)
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_both_estimators_equal_the_plain_formulas(n: int, d1: int, d2: int, chunk: int) -> None:
    x, y = related(n, d1, d2)
    m = moments(x, y, chunk)
    assert cka_of(m) == pytest.approx(plain_unbiased(x, y), abs=1e-10)
    assert cka_of(m, unbiased=False) == pytest.approx(plain_biased(x, y), abs=1e-10)


@pytest.mark.parametrize(("n", "d1", "d2"), SHAPES[:4])
def test_item_shares_average_to_hsic(n: int, d1: int, d2: int) -> None:
    """The U-centred form, item by item, against n x n matrices."""
    x, y = related(n, d1, d2)

    def centred(z: Tensor) -> Tensor:
        k = z @ z.T
        k.fill_diagonal_(0)
        side = k.sum(1)
        a = k - side[:, None] / (n - 2) - side[None] / (n - 2) + k.sum() / ((n - 1) * (n - 2))
        return a.fill_diagonal_(0)

    a, b = centred(x), centred(y)
    xy, xx, yy = ((p * q).sum(1) / (n - 3) for p, q in ((a, b), (a, a), (b, b)))
    size = (xx.mean() * yy.mean()).sqrt()
    expected = 2 * (xy - xy.mean() * (xx / xx.mean() + yy / yy.mean()) / 2) / size
    torch.testing.assert_close(cka_influence(moments(x, y)), expected, rtol=0, atol=1e-9)
    assert float(xy.mean() / size) == pytest.approx(cka(x, y), abs=1e-10)


def test_the_influence_of_an_item_is_near_what_leaving_it_out_does() -> None:
    x, y = related(400, 6, 5)
    influence = cka_influence(moments(x, y))
    whole = cka(x, y)
    keep = torch.arange(400)
    left = [399 * (whole - cka(x[keep != i], y[keep != i])) for i in range(0, 400, 8)]
    correlation = np.corrcoef(left, influence[::8].numpy())[0, 1]
    assert correlation > 0.999
    assert float(influence[::8].std()) == pytest.approx(float(np.std(left, ddof=1)), rel=0.03)


def test_unbiased_is_near_zero_where_biased_is_near_one() -> None:
    """The trap: independent Gaussians with many more dimensions than items.

    The U-centred matrices are then all but independent noise, and their correlation over n(n-3)/2 pairs has this spread.
    """
    n, draws = 40, 30
    spread = math.sqrt(2 / (n * (n - 3)))
    found = [cka(rows(n, 2000, 2 * seed), rows(n, 2000, 2 * seed + 1)) for seed in range(draws)]
    assert abs(np.mean(found)) < 4 * spread / math.sqrt(draws)
    assert 0.5 * spread < np.std(found) < 1.5 * spread
    assert cka(rows(n, 2000), rows(n, 2000, 1), unbiased=False) > 0.95


def test_rotation_scale_and_shift_leave_it_at_one() -> None:
    x = rows(80, 9) * torch.arange(1, 10)
    turned = 5 * x @ torch.linalg.qr(rows(9, 9, seed=3)).Q - 2
    assert cka(x, turned) == pytest.approx(1.0, abs=1e-12)
    assert cka(x, turned, unbiased=False) == pytest.approx(1.0, abs=1e-12)
    assert procrustes(x, turned) == pytest.approx(0.0, abs=1e-12)
    other = related(80, 9, 4)[1]
    assert cka(turned, other) == pytest.approx(cka(x, other), abs=1e-12)


@pytest.mark.parametrize(("n", "d1", "d2"), [(50, 6, 6), (50, 4, 7), (12, 30, 9)])
def test_procrustes_equals_the_best_rotation(n: int, d1: int, d2: int) -> None:
    x, y = related(n, d1, d2)
    width = max(d1, d2)
    a, b = (torch.nn.functional.pad(z - z.mean(0), (0, width - z.shape[1])) for z in (x, y))
    a, b = (a / a.norm()).numpy(), (b / b.norm()).numpy()
    turn, _ = orthogonal_procrustes(a, b)
    assert procrustes(x, y) == pytest.approx(float(((a @ turn - b) ** 2).sum()), abs=1e-10)


def test_the_influence_of_procrustes_is_near_what_leaving_an_item_out_does() -> None:
    x, y = related(300, 5, 5)
    whole, influence = procrustes_of(moments(x, y))
    keep = torch.arange(300)
    left = [299 * (whole - procrustes(x[keep != i], y[keep != i])) for i in range(0, 300, 6)]
    assert np.corrcoef(left, influence[::6].numpy())[0, 1] > 0.995


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dead_features_are_nan(dtype: torch.dtype) -> None:
    x, dead = rows(30, 5).to(dtype), torch.full((30, 5), 0.1, dtype=dtype)
    for pair in ((x, dead), (dead, x), (dead, dead)):
        assert math.isnan(cka(*pair))
        assert math.isnan(cka(*pair, unbiased=False))
        assert math.isnan(procrustes(*pair))


def test_bad_features_are_refused() -> None:
    x = rows(10, 3)
    with pytest.raises(InputError, match=r"\[10, 3\] and \[9, 3\]"):
        cka(x, x[:9])
    with pytest.raises(InputError, match="3 items; expected 4"):
        cka(x[:3], x[:3])
    bad = x.clone()
    bad[6, 1] = math.inf
    with pytest.raises(InputError, match="row 6 of the second features is not finite"):
        cka(x, bad)
