"""Equal numbers with sentence-transformers' MultipleNegativesRankingLoss on the same float64 embeddings, value and gradient.

Its arithmetic is called without a model. Tolerance 1e-10: float64 on both sides, only the order of sums differs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from efface.learn.objectives.clip import clip
from efface.learn.objectives.info_nce import info_nce
from efface.learn.objectives.nt_xent import nt_xent_losses

B, D, T = 32, 16, 0.2


def peer(**settings: Any) -> Callable[[Tensor, Tensor], Tensor]:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    loss = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=1 / T, **settings)
    return lambda a, b: loss.compute_loss_from_embeddings([a, b], torch.empty(0))


def compare(ours: Callable[[Tensor, Tensor], Tensor], theirs: Callable[[Tensor, Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(7)
    raw = [torch.randn(B, D, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    found = []
    for equation in (ours, theirs):
        value = equation(*[normalize(x, dim=1) for x in raw])
        found.append((value.detach(), torch.autograd.grad(value, raw)))
    (value, grads), (expected, expected_grads) = found
    assert abs(float(value - expected)) < 1e-10
    for grad, other in zip(grads, expected_grads, strict=True):
        assert float(other.abs().max()) > 1e-6
        assert float((grad - other).abs().max()) < 1e-10


@pytest.mark.parametrize("tile", [None, 5])
def test_one_way(tile: int | None) -> None:
    compare(lambda a, b: info_nce(a, b, T, tile=tile), peer())


@pytest.mark.parametrize("tile", [None, 5])
def test_symmetric(tile: int | None) -> None:
    directions = ("query_to_doc", "doc_to_query")
    compare(lambda a, b: clip(a, b, 1 / T, tile=tile), peer(directions=directions, partition_mode="per_direction"))


@pytest.mark.parametrize("tile", [None, 5])
def test_first_view_half_of_nt_xent(tile: int | None) -> None:
    """Anchors of the first view only; candidates are both views without the anchor."""
    joint = peer(directions=("query_to_doc", "query_to_query"), partition_mode="joint")
    compare(lambda a, b: nt_xent_losses(a, b, a, b, 1 / T, tile=tile)[:B].mean(), joint)
