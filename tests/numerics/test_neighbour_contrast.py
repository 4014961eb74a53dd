"""BECLR's two terms against slow plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from efface.errors import InputError
from efface.numerics.neighbour_contrast import paired_uniformity, target_cosines, uniformity_without_neighbours

B, D, K, T = 5, 4, 3, 2.0


def unit(*size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*size, D, generator=generator, dtype=torch.float64), dim=-1)


def dot(x: Tensor, y: Tensor) -> float:
    return math.fsum(float(a) * float(b) for a, b in zip(x, y, strict=True))


def test_target_cosines_against_a_loop() -> None:
    p, targets = unit(B).requires_grad_(), unit(B, K, seed=1).requires_grad_()
    found = target_cosines(p, targets)
    for i in range(B):
        slow = math.fsum(dot(p[i].detach(), t.detach()) for t in targets[i]) / K
        assert float(found[i].detach()) == pytest.approx(slow, rel=1e-12)
    assert torch.autograd.grad(found.sum(), targets, allow_unused=True)[0] is None
    with pytest.raises(InputError, match="targets"):
        target_cosines(p, targets[:2])


def test_paired_uniformity_against_a_loop() -> None:
    first, second = unit(B), unit(B, seed=1)
    z = torch.cat([first, second])
    means = [
        math.fsum(math.exp(dot(z[r], z[o]) / T) for o in range(2 * B) if o % B != r % B) / (2 * B - 2)
        for r in range(2 * B)
    ]
    slow = math.log(math.fsum(means) / len(means))
    assert float(paired_uniformity(first, second, T)) == pytest.approx(slow, rel=1e-12)


def test_neighbours_are_no_negatives_of_their_item() -> None:
    first, second, extra = unit(B).requires_grad_(), unit(B, seed=1), unit(2, B, K, seed=2).requires_grad_()
    ids = torch.tensor([7, 3, 9, 1, 0])
    # item 3 (row 1) is a neighbour of row 0's; row 4's neighbours hold an earlier copy of item 9 (row 2)
    extra_ids = torch.tensor([20, 21, 22, 23, 24]).repeat(2, 1)[:, :, None] + 10 * torch.arange(K)
    extra_ids[0, 0, 1], extra_ids[1, 4, 2] = 3, 9
    found = uniformity_without_neighbours(first, second, ids, extra, extra_ids, T)
    z, items = torch.cat([first, second]).detach(), torch.cat([ids, ids]).tolist()
    candidates = [
        *zip(z, items, strict=True),
        *zip(extra.detach().flatten(0, 2), extra_ids.flatten().tolist(), strict=True),
    ]
    means = []
    for r in range(2 * B):
        b = r % B
        out = {int(ids[b]), *extra_ids[:, b].flatten().tolist()}
        kept = [math.exp(dot(z[r], row) / T) for row, item in candidates if item not in out]
        means.append(math.fsum(kept) / len(kept))
    assert float(found.detach()) == pytest.approx(math.log(math.fsum(means) / len(means)), rel=1e-12)
    by_rows, by_extra = torch.autograd.grad(found, (first, extra), allow_unused=True)
    assert float(by_rows.abs().max()) > 0
    assert by_extra is None


def test_a_batch_in_which_everybody_is_a_neighbour_repels_nobody() -> None:
    first, second, extra = unit(2).requires_grad_(), unit(2, seed=1), unit(2, 2, 1, seed=2)
    ids = torch.tensor([0, 1])
    extra_ids = torch.tensor([[[1], [0]], [[1], [0]]])
    found = uniformity_without_neighbours(first, second, ids, extra, extra_ids, T)
    (gradient,) = torch.autograd.grad(found, first)
    assert float(found.detach()) == 0
    assert not gradient.any()
    extra_ids = torch.tensor(
        [[[1], [5]], [[1], [5]]]
    )  # row 0 has its neighbour's item only in the batch: item 5 remains
    found = uniformity_without_neighbours(first, second, ids, extra, extra_ids, T)
    assert bool(torch.isfinite(torch.autograd.grad(found, first)[0]).all())


def test_bad_input() -> None:
    first = unit(B)
    with pytest.raises(InputError, match="temperature"):
        paired_uniformity(first, first, 0.0)
    with pytest.raises(InputError, match="one shape"):
        paired_uniformity(first, first[:3], T)
    with pytest.raises(InputError, match="neighbours"):
        uniformity_without_neighbours(
            first, first, torch.arange(B), unit(2, 3, K), torch.zeros(2, 3, K, dtype=torch.int64), T
        )
