"""Multi-label losses against plain loops, over one shard and over several."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

from efface.errors import InputError
from efface.numerics import multi_label as m
from efface.numerics.soft_topk import soft_topk

SCALE = 1 / 0.07
POSITIVES = [[0, 3], [6], [1, 2, 4], [6, 0], [5]]
LOSSES = {
    "softmax": lambda shard, tile=None: m.softmax_loss(shard, SCALE, tile=tile),
    "softmax-mean": lambda shard, tile=None: m.softmax_loss(shard, SCALE, averaged=True, tile=tile),
    "decoupled": lambda shard, tile=None: m.decoupled_loss(shard, SCALE, tile=tile),
    "bce": lambda shard, tile=None: m.one_vs_all_loss(shard, SCALE, tile=tile),
    "soft-top-k": lambda shard, tile=None: m.soft_topk_loss(shard, SCALE, 3.0, iterations=50),
}


def towers() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    rows = (torch.randn(n, 4, dtype=torch.float64, generator=generator) for n in (5, 7))
    q, labels = (normalize(one, dim=1).requires_grad_() for one in rows)
    return q, labels


def shard(q: Tensor, labels: Tensor, out: list[tuple[int, int]] = (), part: slice = slice(0, 7)) -> m.Shard:  # type: ignore[assignment]
    """The labels of `part`; pairs in `out` are unsampled positives."""
    start, stop = part.start, part.stop
    pairs = [(row, col) for row, line in enumerate(POSITIVES) for col in line]
    pulled = [(r, c - start) for r, c in pairs if start <= c < stop and (r, c) not in out]
    left = [(r, c - start) for r, c in out if start <= c < stop]
    n = torch.tensor([len([1 for r, c in pairs if r == row and (r, c) not in out]) for row in range(5)])

    def columns(chosen: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        found = torch.tensor(chosen, dtype=torch.int64).reshape(-1, 2)
        return found[:, 0], found[:, 1]

    return m.Shard(q, labels[part], *columns(pulled), columns(left), n, 7)


def slow(name: str, q: Tensor, labels: Tensor, out: list[tuple[int, int]] = ()) -> float:  # type: ignore[assignment]
    """The equations, one number after another."""
    s = (SCALE * q @ labels.T).detach()
    total = 0.0
    for row, line in enumerate(POSITIVES):
        own = [col for col in line if (row, col) not in out]
        kept = [col for col in range(7) if (row, col) not in out]
        if name == "soft-top-k":
            log_p = soft_topk(s[row : row + 1, kept], 3.0, iterations=60)[0]
            total -= sum(float(log_p[kept.index(col)]) for col in own) / len(own)
            continue
        if name == "bce":
            total += (sum(float(softplus(s[row, col])) for col in kept) - sum(float(s[row, col]) for col in own)) / 7
            continue
        for col in own:
            against = kept if name != "decoupled" else [col, *(other for other in kept if other not in line)]
            value = math.log(sum(math.exp(float(s[row, other])) for other in against)) - float(s[row, col])
            total += value if name == "softmax" else value / len(own)
    return total / 5


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("out", [[], [(0, 3), (2, 1)]])
def test_against_plain_loops(name: str, out: list[tuple[int, int]]) -> None:
    q, labels = towers()
    for tile in (None, 2):
        assert float(LOSSES[name](shard(q, labels, out), tile).detach()) == pytest.approx(
            slow(name, q, labels, out), rel=1e-6
        )


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_function(name: str) -> None:
    q, labels = towers()
    assert torch.autograd.gradcheck(
        lambda a, b: LOSSES[name](shard(a, b, [(0, 3)])), (q, labels), eps=1e-6, atol=1e-5, rtol=1e-3
    )


def test_one_positive_makes_decoupled_softmax_and_averaged_softmax_one() -> None:
    q, labels = towers()
    none = torch.zeros(0, dtype=torch.int64)
    one = m.Shard(q, labels, torch.arange(5), torch.tensor([3, 6, 2, 0, 5]), (none, none), torch.ones(5), 7)
    whole = m.softmax_loss(one, SCALE)
    torch.testing.assert_close(m.decoupled_loss(one, SCALE), whole)
    torch.testing.assert_close(m.softmax_loss(one, SCALE, averaged=True), whole)


@pytest.mark.parametrize("cut", [1, 4, 6])
def test_normalisers_of_shards_are_those_of_the_whole(cut: int) -> None:
    """Trap: the last label of a shard keeps its positives (label 6 and label cut - 1 have some)."""
    q, labels = towers()
    for positives in (True, False):
        parts = [
            shard(q, labels, part=part).log_denominator(SCALE, positives=positives, tile=None)
            for part in (slice(0, cut), slice(cut, 7))
        ]
        whole = shard(q, labels).log_denominator(SCALE, positives=positives, tile=None)
        torch.testing.assert_close(m.log_sum(torch.stack(parts)), whole)
    assert sum(len(shard(q, labels, part=part).rows) for part in (slice(0, cut), slice(cut, 7))) == 9


def test_masking_holds_beyond_any_constant() -> None:
    """Trap: -100 is no mask where |s| may exceed it."""
    q, labels = towers()
    hot = m.softmax_loss(shard(q, labels, [(0, 3)]), 2000.0)
    s = (2000.0 * q @ labels.T).detach()
    s[0, 3] = -torch.inf
    pulled = [(0, 0), *((row, col) for row, line in enumerate(POSITIVES[1:], 1) for col in line)]
    dense = sum(float(s[row].logsumexp(0) - s[row, col]) for row, col in pulled) / 5
    assert float(hot.detach()) == pytest.approx(dense, rel=1e-9)


def test_a_query_whose_labels_are_all_positive_costs_nothing_when_decoupled() -> None:
    q, labels = (x[:2].detach().requires_grad_() for x in towers())
    none = torch.zeros(0, dtype=torch.int64)
    rows, cols = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])
    value = m.decoupled_loss(m.Shard(q, labels, rows, cols, (none, none), torch.tensor([2, 1]), 2), SCALE)
    value.backward()  # type: ignore[no-untyped-call]
    for x in (q, labels):
        assert x.grad is not None
        assert bool(x.grad.isfinite().all())
    s = (SCALE * q[1] @ labels.T).detach()
    assert float(value.detach()) == pytest.approx(float(s.logsumexp(0) - s[1]) / 2)


def test_queries_without_labels_and_too_many_positives_are_refused() -> None:
    q, labels = towers()
    with pytest.raises(InputError, match="without a positive"):
        m.Shard(
            q,
            labels,
            torch.tensor([0]),
            torch.tensor([0]),
            (torch.zeros(0).long(),) * 2,
            torch.tensor([1, 0, 0, 0, 0]),
            7,
        )
    with pytest.raises(InputError, match="3 positives and k=2"):
        m.soft_topk_loss(shard(q, labels), SCALE, 2.0)


def test_positives_are_drawn_by_relevance_and_never_twice() -> None:
    queries = torch.tensor([0, 0, 0, 1, 2, 2])
    weights = torch.tensor([1.0, 2.0, 7.0, 1.0, 1.0, 1.0])
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([m.sample_positives(weights, queries, 1, generator) for _ in range(3000)])
    assert bool((torch.stack([draws[:, queries == i].sum(1) for i in range(3)]) == 1).all())
    torch.testing.assert_close(draws.double().mean(0)[:3], torch.tensor([0.1, 0.2, 0.7]).double(), atol=0.03, rtol=0)
    two = m.sample_positives(weights, queries, 2, generator)
    assert [int(two[queries == i].sum()) for i in range(3)] == [2, 1, 2]
    with pytest.raises(InputError, match="relevance"):
        m.sample_positives(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), 1, generator)
