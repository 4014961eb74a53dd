"""Queue and moving copy: nothing lost at the end of the ring, exact resume, buffers by rule."""

from __future__ import annotations

import math
from collections import deque

import pytest
import torch
from torch import Tensor, nn

from efface.errors import ConfigError, InputError, ModelError
from efface.learn.memory.ema import EMA
from efface.learn.memory.queue import FeatureQueue


def rows(ids: range) -> tuple[Tensor, Tensor, Tensor]:
    """Keys [n, 3] that tell their id, ids and labels."""
    numbers = torch.tensor(list(ids), dtype=torch.int64)
    return numbers[:, None] * torch.tensor([1.0, 10.0, 100.0]), numbers, numbers % 4


def held(queue: FeatureQueue) -> list[int]:
    """The ids, after a check that keys and labels are theirs."""
    keys, ids, labels = queue.filled()
    assert labels is not None
    assert len(keys) == len(ids) == len(labels) == len(queue)
    torch.testing.assert_close(keys, ids[:, None] * torch.tensor([1.0, 10.0, 100.0]))
    assert torch.equal(labels, ids % 4)
    return sorted(ids.tolist())


@pytest.mark.parametrize("sizes", [[3] * 9, [1, 2, 5, 7, 4], [7, 7], [6, 9, 2], [20, 1], [16, 3], [0, 5, 0, 5]])
def test_queue_holds_the_newest_whatever_the_batches(sizes: list[int]) -> None:
    queue, oracle, start = FeatureQueue(7, 3, labels=True), deque[int](maxlen=7), 0
    assert held(queue) == []
    for size in sizes:
        queue.enqueue(*rows(range(start, start + size)))
        oracle.extend(range(start, start + size))
        start += size
        assert held(queue) == sorted(oracle)


def test_queue_resumes_from_its_state() -> None:
    one, two = FeatureQueue(7, 3, labels=True), FeatureQueue(7, 3, labels=True)
    one.enqueue(*rows(range(10)))
    two.load_state_dict(one.state_dict())
    for queue in (one, two):
        queue.enqueue(*rows(range(10, 14)))
    assert held(one) == held(two) == [7, 8, 9, 10, 11, 12, 13]
    for a, b in zip(one.filled(), two.filled(), strict=True):
        assert torch.equal(a, b)  # type: ignore[arg-type]


def test_queue_may_take_the_batch_between_loss_and_backward() -> None:
    queue = FeatureQueue(4, 3)
    queue.enqueue(torch.eye(3), torch.arange(3))
    query = torch.ones(2, 3, requires_grad=True)
    loss = (query @ queue.filled()[0].T).sum()
    queue.enqueue(7 * query, torch.arange(2))
    loss.backward()
    assert torch.equal(query.grad, torch.ones(2, 3))  # type: ignore[arg-type]
    assert not queue.filled()[0].requires_grad


def test_queue_draws_nothing_and_clears() -> None:
    before = torch.get_rng_state()
    queue = FeatureQueue(4, 3)
    queue.enqueue(torch.ones(2, 3), torch.arange(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert queue.filled()[2] is None
    queue.clear()
    assert len(queue) == len(queue.filled()[0]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 4), torch.arange(2)), r"\[2, 4\]"),
        ((torch.zeros(2, 3).long(), torch.arange(2)), "int64"),
        ((torch.zeros(2, 3), torch.arange(3)), r"ids of shape \[3\]"),
        ((torch.zeros(2, 3), torch.zeros(2)), "ids of shape .*float32"),
        ((torch.zeros(2, 3), torch.arange(2), torch.arange(2)), "labels for a queue that keeps none"),
    ],
)
def test_queue_refuses_what_does_not_fit(arguments: tuple[Tensor, ...], message: str) -> None:
    queue = FeatureQueue(4, 3)
    with pytest.raises(InputError, match=message):
        queue.enqueue(*arguments)
    assert len(queue) == 0


def test_queue_with_labels_wants_them_whole() -> None:
    queue = FeatureQueue(4, 3, labels=True)
    with pytest.raises(InputError, match="no labels for a queue that keeps labels"):
        queue.enqueue(torch.zeros(2, 3), torch.arange(2))
    with pytest.raises(InputError, match=r"labels of shape .*float32"):
        queue.enqueue(torch.zeros(2, 3), torch.arange(2), torch.zeros(2))
    with pytest.raises(ConfigError, match="0 keys"):
        FeatureQueue(0, 3)


def normed(seed: int = 0) -> nn.Sequential:
    """Parameters, real buffers and an integer one."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    module(torch.randn(5, 3))
    return module


@pytest.mark.parametrize("buffers", ["copy", "average"])
def test_ema_is_the_plain_recursion(buffers: str) -> None:
    source = normed()
    ema = EMA(source, momentum=0.9, buffers=buffers)  # type: ignore[arg-type]
    weight, mean = source[0].weight.detach().clone(), source[1].running_mean.clone()
    for step in range(4):
        with torch.no_grad():
            source[0].weight.add_(torch.randn(4, 3))
        source(torch.randn(5, 3) + step)
        ema.update(source)
        weight = 0.9 * weight + 0.1 * source[0].weight.detach()
        mean = 0.9 * mean + 0.1 * source[1].running_mean if buffers == "average" else source[1].running_mean
        torch.testing.assert_close(ema.module[0].weight, weight)  # type: ignore[index]
        torch.testing.assert_close(ema.module[1].running_mean, mean)  # type: ignore[index]
        assert int(ema.module[1].num_batches_tracked) == int(source[1].num_batches_tracked) == step + 2  # type: ignore[index,arg-type]


def test_ema_takes_no_gradient_and_leaves_the_source_alone() -> None:
    source = normed()
    source(torch.randn(5, 3)).sum().backward()
    ema = EMA(source)
    before = {name: value.clone() for name, value in source.state_dict().items()}
    ema.update(source)
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())
    assert all(p.requires_grad and p.grad is not None for p in source.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in ema.parameters())
    assert not ema.eval()(torch.randn(2, 3, requires_grad=True)).requires_grad


@pytest.mark.parametrize(("momentum", "same_as"), [(0.0, 1), (1.0, 0)])
def test_ema_at_its_ends_is_exact(momentum: float, same_as: int) -> None:
    first, second = normed(0), normed(1)
    ema = EMA(first, momentum=momentum)
    ema.update(second)
    for name, value in (first, second)[same_as].named_parameters():
        assert torch.equal(ema.module.get_parameter(name), value)


def test_ema_momentum_rises_as_a_cosine_and_resumes() -> None:
    source = normed()
    ema = EMA(source, momentum=0.9, schedule="cosine", steps=10)
    found = []
    for _ in range(12):
        found.append(ema.momentum)
        ema.update(source)
    assert found[0] == pytest.approx(0.9)
    assert found[5] == pytest.approx(0.95)
    assert found[3] == pytest.approx(1 - 0.1 * (math.cos(0.3 * math.pi) + 1) / 2)
    assert found[10:] == [1.0, 1.0]
    half = EMA(source, momentum=0.9, schedule="cosine", steps=10)
    for _ in range(3):
        half.update(source)
    other = EMA(normed(5), momentum=0.9, schedule="cosine", steps=10)
    other.load_state_dict(half.state_dict())
    assert other.momentum == found[3]
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), half.parameters(), strict=True))


def test_ema_refuses_what_it_cannot_follow() -> None:
    with pytest.raises(ModelError, match="'weight' has no shape yet"):
        EMA(nn.LazyLinear(3))
    with pytest.raises(ModelError, match="bfloat16"):
        EMA(nn.Linear(2, 2).bfloat16())
    with pytest.raises(ConfigError, match=r"momentum=1\.5"):
        EMA(normed(), momentum=1.5)
    with pytest.raises(ConfigError, match="steps=None"):
        EMA(normed(), schedule="cosine")
    grown = nn.Linear(2, 2)
    grown.extra = grown.weight * 2
    with pytest.raises(ModelError, match="cannot be copied"):
        EMA(grown)
    ema = EMA(nn.Linear(2, 2))
    with pytest.raises(ModelError, match=r"\[3, 2\] in the source"):
        ema.update(nn.Linear(2, 3))
    with pytest.raises(ModelError, match="'bias' is in the copy only"):
        ema.update(nn.Linear(2, 2, bias=False))
