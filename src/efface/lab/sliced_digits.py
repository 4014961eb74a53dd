"""Digits in slices: S3T's training and deletion on a network small enough to retrain at will.

Eight fixed random residual layers; every stage trains rank-4 adapters of its own group of layers, from the output side
down, and the head. The head is part of the stage: a deletion rolls it back together with the adapters. Training is
full-batch Adam for a fixed number of steps, on rows in the order of their digests, so a stage depends on its rows, its
parent and its seed alone (S3T, arXiv 2406.16257).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy

from efface.data.deletion_plan import DeletionPlan, live_prefixes, longest
from efface.numerics.slice_orders import Order, rotations
from efface.subjects.sliced import Node, layer_groups, nodes_of
from efface.train.slices import stage_seed

TRAIN, LAYERS, WIDTH, RANK, CLASSES = 1300, 8, 64, 4, 10
STEPS, LEARNING_RATE = 80, 0.01


@dataclass(frozen=True)
class DigitRows:
    """One draw: training rows by id, test rows [497, 64], and the fixed network.

    `mix` is [8, 64, 64], the residual layers; `pixels` and `labels` have an entry for every id.
    """

    pixels: Mapping[str, Tensor]
    labels: Mapping[str, int]
    test: Tensor
    test_labels: Tensor
    mix: Tensor


@dataclass(frozen=True)
class Stage:
    """What one stage trained: adapters by layer, down [4, 64] and up [64, 4], and the head [65, 10]."""

    down: Mapping[int, Tensor]
    up: Mapping[int, Tensor]
    head: Tensor

    def tensors(self) -> list[Tensor]:
        """All of it."""
        return [*self.down.values(), *self.up.values(), self.head]


def digit_rows(seed: int) -> DigitRows:
    """Split and fixed layers from a seed."""
    rng = np.random.default_rng(seed)
    images, truth = load_digits(return_X_y=True)
    order = rng.permutation(len(images))
    x, y = torch.tensor(images[order] / 16.0, dtype=torch.float32), torch.tensor(truth[order], dtype=torch.long)
    mix = torch.tensor(rng.standard_normal((LAYERS, WIDTH, WIDTH)) / WIDTH**0.5, dtype=torch.float32)
    names = [f"digit{i}" for i in order[:TRAIN]]
    return DigitRows(
        dict(zip(names, x[:TRAIN], strict=True)), dict(zip(names, y[:TRAIN].tolist(), strict=True)), x[TRAIN:], y[TRAIN:],
        mix,
    )  # fmt: skip


def digit_plan(world: DigitRows, *, shards: int, slices: int, budget: int, seed: int) -> DeletionPlan:
    """A plan with the cyclic rotations; equal pictures of equal label are one record."""
    records = {name: [pixels.tolist(), world.labels[name]] for name, pixels in world.pixels.items()}
    return DeletionPlan.make(records, [rotations(slices, budget)] * shards, slices=slices, seed=seed)


def forward(inputs: Tensor, world: DigitRows, path: list[Stage], head: Tensor) -> Tensor:
    """[n, 10] logits: h <- h + relu((W + up down) h) / 2 in every layer; layers without an adapter stay fixed."""
    down = {layer: tensor for stage in path for layer, tensor in stage.down.items()}
    up = {layer: tensor for stage in path for layer, tensor in stage.up.items()}
    hidden = inputs
    for layer in range(LAYERS):
        moved = hidden @ world.mix[layer].T
        if layer in down:
            moved = moved + (hidden @ down[layer].T) @ up[layer].T
        hidden = hidden + moved.relu() / 2
    return hidden @ head[:-1] + head[-1]


def train_digits(world: DigitRows, plan: DeletionPlan, *, seed: int) -> dict[Node, Stage]:
    """Every stage of every live prefix, parents first."""
    lengths = plan.prefixes()
    groups = layer_groups(LAYERS, plan.slices)
    stages: dict[Node, Stage] = {}
    for shard, prefix in nodes_of(plan.orders):
        those = zip(plan.orders[shard], lengths[shard], strict=True)
        if not any(order[: len(prefix)] == prefix and live >= len(prefix) for order, live in those):
            continue
        names = plan.rows(shard, prefix)
        inputs = torch.stack([world.pixels[name] for name in names])
        labels = torch.tensor([world.labels[name] for name in names])
        path = [stages[shard, prefix[:depth]] for depth in range(1, len(prefix))]
        generator = torch.Generator().manual_seed(stage_seed(seed, (shard, prefix)))
        layers = groups[len(prefix) - 1]
        own = Stage(
            {n: torch.randn(RANK, WIDTH, generator=generator) / WIDTH**0.5 for n in layers},
            {n: torch.zeros(WIDTH, RANK) for n in layers},
            path[-1].head.clone() if path else torch.zeros(WIDTH + 1, CLASSES),
        )  # the optimiser starts anew and the head goes on from the parent's  # fmt: skip
        for tensor in own.tensors():
            tensor.requires_grad_(True)
        optimiser = torch.optim.Adam(own.tensors(), lr=LEARNING_RATE)
        for _ in range(STEPS):
            optimiser.zero_grad()
            cross_entropy(forward(inputs, world, [*path, own], own.head), labels).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        for tensor in own.tensors():
            tensor.requires_grad_(False)
        stages[shard, prefix] = own
    return stages


def stage_logp(world: DigitRows, stages: Mapping[Node, Stage]) -> dict[Node, Tensor]:
    """[497, 10] log-probabilities on the test rows, were each stage the last of its prefix."""
    found = {}
    with torch.no_grad():
        for shard, prefix in stages:
            path = [stages[shard, prefix[:depth]] for depth in range(1, len(prefix) + 1)]
            found[shard, prefix] = forward(world.test, world, path, path[-1].head).log_softmax(-1)
    return found


def ensemble_accuracy(serving: list[Order | None], logp: Mapping[Node, Tensor], labels: Tensor) -> float:
    """Of the mean log-probabilities over live shards; a system that has failed answers nothing right but by chance."""
    live = [logp[shard, prefix] for shard, prefix in enumerate(serving) if prefix is not None]
    if not live:
        return 1.0 / CLASSES
    return float((torch.stack(live).mean(0).argmax(-1) == labels).float().mean())


def requests_until_failure(
    orders: list[list[Order]], stream: np.ndarray[tuple[int, int], np.dtype[np.int64]], at: tuple[int, ...]
) -> tuple[int, list[list[Order | None]]]:
    """Play a stream of requests.

    Args:
        orders: of every shard.
        stream: [R, 2] shard and slice of each request.
        at: after how many requests to look.

    Returns:
        the number of requests after which no shard was left (R + 1 where that never came), and what was served at `at`.
    """
    count = np.zeros((len(orders), len(orders[0][0])), dtype=np.int64)
    failed, seen = len(stream) + 1, []
    for index, (shard, hit) in enumerate(stream, start=1):
        count[shard, hit] += 1
        if index in at or failed > len(stream):
            serving = longest(orders, live_prefixes(orders, count))
            if index in at:
                seen.append(serving)
            if failed > len(stream) and not any(serving):
                failed = index
        if failed <= len(stream) and index >= max(at):
            break
    return failed, seen
