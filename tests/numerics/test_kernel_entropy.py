"""Kernel uniformity and entropies: against plain loops, the tiled form on the sphere, and what they are at the ends."""

from __future__ import annotations

import math

import pytest
import torch

from efface.errors import InputError
from efface.numerics.kernel_entropy import joint_kernel_entropy, kernel_entropy, kernel_uniformity, squared_distances
from efface.numerics.sphere import uniformity


def rows(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kernel(x: torch.Tensor, i: int, j: int, t: float) -> float:
    return math.exp(-t * sum((float(a) - float(b)) ** 2 for a, b in zip(x[i], x[j], strict=True)))


def test_as_slow_loops_say() -> None:
    x, y, t, n = rows(7, 3), rows(7, 2, 1), 0.8, 7
    pairs = [kernel(x, i, j, t) for i in range(n) for j in range(i + 1, n)]
    assert float(kernel_uniformity(x, t)) == pytest.approx(math.log(sum(pairs) / len(pairs)))
    logs = [math.log(sum(kernel(x, i, j, t) for j in range(n)) / n) for i in range(n)]
    assert float(kernel_entropy(x, t)) == pytest.approx(-sum(logs) / n)
    logs = [math.log(sum(kernel(x, i, j, t) * kernel(y, i, j, t) for j in range(n)) / n) for i in range(n)]
    assert float(joint_kernel_entropy(x, y, t)) == pytest.approx(-sum(logs) / n)


def test_on_the_sphere_as_the_tiled_form() -> None:
    x = torch.nn.functional.normalize(rows(40, 5), dim=1)
    torch.testing.assert_close(kernel_uniformity(x, 1.0), uniformity(x, 1.0))


def test_the_ends_equal_rows_and_rows_far_apart() -> None:
    same, far = torch.ones(6, 3), 100 * torch.eye(6)
    assert float(kernel_entropy(same, 1.0)) == pytest.approx(0)
    assert float(kernel_uniformity(same, 1.0)) == pytest.approx(0, abs=1e-6)
    assert float(kernel_entropy(far, 1.0)) == pytest.approx(math.log(6)), "the diagonal counts: log B is the highest"
    near, unlike = torch.zeros(6, 2), 9 * torch.eye(6)
    assert float(joint_kernel_entropy(near, unlike, 1.0)) == pytest.approx(float(kernel_entropy(unlike, 1.0)))


def test_equal_rows_have_a_finite_gradient() -> None:
    x = torch.ones(5, 3, requires_grad=True)
    (kernel_uniformity(x, 1.0) - kernel_entropy(x, 1.0)).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    point = rows(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: kernel_entropy(z, 0.5), point)
    assert torch.autograd.gradcheck(lambda z: kernel_uniformity(z, 0.5), point)


def test_rows_far_from_the_origin_keep_their_distances() -> None:
    x = rows(6, 4)
    far = (x + 1000).float()
    torch.testing.assert_close(squared_distances(far), torch.cdist(far, far).square(), atol=1e-3, rtol=1e-3)
    assert torch.equal(squared_distances(far).diagonal(), torch.zeros(6))


def test_bad_input() -> None:
    with pytest.raises(InputError, match="two or more"):
        kernel_entropy(torch.ones(1, 2), 1.0)
    with pytest.raises(InputError, match="above 0"):
        kernel_uniformity(torch.ones(3, 2), 0.0)
    with pytest.raises(InputError, match=r"\[B, D\]"):
        squared_distances(torch.ones(3, 2, dtype=torch.int64))
    with pytest.raises(InputError, match="same items"):
        joint_kernel_entropy(torch.ones(3, 2), torch.ones(4, 2), 1.0)
