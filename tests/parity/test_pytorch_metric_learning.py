"""Equal numbers with pytorch-metric-learning on the same float64 embeddings, value and gradient.

Tolerance 1e-10: both sides are float64, so only the order of sums differs; the largest difference seen is 9e-16.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from efface.learn.objectives.nt_xent import nt_xent
from efface.learn.objectives.sup_con import sup_con
from efface.learn.objectives.sup_nt_xent import sup_nt_xent
from efface.learn.objectives.triplet import triplet

losses = pytest.importorskip("pytorch_metric_learning.losses")
distances = pytest.importorskip("pytorch_metric_learning.distances")
reducers = pytest.importorskip("pytorch_metric_learning.reducers")

B, D, T = 32, 16, 0.2
LABELS = torch.tensor([i % 6 for i in range(B)])
WITH_SINGLES = torch.tensor([0, 0, 0, 1, 1, *range(2, B - 3)])  # most classes have one item


def embeddings(seed: int, rows: int = B) -> Tensor:
    raw = torch.randn(rows, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return raw.requires_grad_()


def compare(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *raw: Tensor) -> float:
    """Both on unit rows; returns our value."""
    found = []
    for equation in (ours, theirs):
        value = equation(*[normalize(x, dim=1) for x in raw])
        found.append((value.detach(), torch.autograd.grad(value, raw)))
    (value, grads), (expected, expected_grads) = found
    assert abs(float(value - expected)) < 1e-10
    for grad, other in zip(grads, expected_grads, strict=True):
        assert float(other.abs().max()) > 1e-6  # there is something to compare
        assert float((grad - other).abs().max()) < 1e-10
    return float(value)


@pytest.mark.parametrize("tile", [None, 1, 7, 64])
def test_nt_xent(tile: int | None) -> None:
    peer = losses.SelfSupervisedLoss(losses.NTXentLoss(temperature=T))
    value = compare(lambda a, b: nt_xent(a, b, T, tile=tile), peer, embeddings(0), embeddings(1))
    assert 3 < value < 7  # near log(2B - 1) for unrelated views


@pytest.mark.parametrize("labels", [LABELS, WITH_SINGLES], ids=["six classes", "single items"])
@pytest.mark.parametrize("tile", [None, 5])
def test_sup_con(labels: Tensor, tile: int | None) -> None:
    peer = losses.SupConLoss(temperature=T)
    compare(lambda z: sup_con(z, labels, T, tile=tile), lambda z: peer(z, labels), embeddings(2))


@pytest.mark.parametrize("labels", [LABELS, WITH_SINGLES], ids=["six classes", "single items"])
@pytest.mark.parametrize("tile", [None, 5])
def test_supervised_nt_xent_by_pairs(labels: Tensor, tile: int | None) -> None:
    peer = losses.NTXentLoss(temperature=T)
    compare(lambda z: sup_nt_xent(z, labels, T, tile=tile), lambda z: peer(z, labels), embeddings(3))


@pytest.mark.parametrize("margin", [0.05, 0.2])
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("tile", [None, 5])
def test_triplet(margin: float, squared: bool, tile: int | None) -> None:
    peer = losses.TripletMarginLoss(margin=margin, distance=distances.LpDistance(power=2 if squared else 1))
    compare(
        lambda z: triplet(z, LABELS, margin=margin, squared=squared, tile=tile),
        lambda z: peer(z, LABELS),
        embeddings(4),
    )


def test_triplet_with_a_soft_margin() -> None:
    peer = losses.TripletMarginLoss(margin=0.05, smooth_loss=True)
    compare(lambda z: triplet(z, LABELS, soft=True), lambda z: peer(z, LABELS), embeddings(5))


def test_supervised_pairs_are_not_sup_con() -> None:
    """Both are offered because they differ wherever a class has three items."""
    z = normalize(embeddings(6).detach(), dim=1)
    assert abs(float(sup_con(z, LABELS, T) - sup_nt_xent(z, LABELS, T))) > 0.05
