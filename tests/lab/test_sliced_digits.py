"""Digits in slices: the head rolls back with the adapters, a stage depends on its own rows, requests play out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from efface.lab import sliced_digits
from efface.lab.sliced_digits import (
    digit_plan,
    digit_rows,
    ensemble_accuracy,
    forward,
    requests_until_failure,
    stage_logp,
    train_digits,
)
from efface.numerics.slice_orders import rotations


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliced_digits, "STEPS", 4)


def test_deleting_a_slice_is_bit_for_bit_a_run_without_it() -> None:
    world = digit_rows(0)
    plan = digit_plan(world, shards=1, slices=3, budget=2, seed=0)
    stages = train_digits(world, plan, seed=0)
    gone = {name for name, place in plan.places.items() if place == (0, 1)}
    plan.delete(min(gone))
    without = type(world)(
        {name: row for name, row in world.pixels.items() if name not in gone},
        {name: label for name, label in world.labels.items() if name not in gone},
        world.test,
        world.test_labels,
        world.mix,
    )
    fresh = train_digits(without, plan, seed=0)
    assert set(fresh) == {(0, (0,))}
    for ours, theirs in zip(fresh[0, (0,)].tensors(), stages[0, (0,)].tensors(), strict=True):
        assert torch.equal(ours, theirs)
    served, whole = stage_logp(without, fresh)[0, (0,)], stage_logp(world, stages)
    assert torch.equal(served, whole[0, (0,)])
    later = stages[0, (0, 1)]
    kept_head = forward(world.test, world, [stages[0, (0,)]], later.head).log_softmax(-1)
    assert not torch.equal(kept_head, served), "the later head without its adapters is another model: it must roll back"


def test_a_failed_system_answers_by_chance() -> None:
    assert ensemble_accuracy([None, None], {}, torch.zeros(3)) == 0.1


def test_requests_play_out_as_by_hand() -> None:
    orders = [rotations(2, 1)] * 2  # (0, 1) in both shards
    stream = np.array([[0, 1], [0, 0], [1, 1], [1, 0], [0, 0]])
    failed, seen = requests_until_failure(orders, stream, (1, 2, 3))
    assert failed == 4
    assert seen == [[(0,), (0, 1)], [None, (0, 1)], [None, (0,)]]
    never, _ = requests_until_failure(orders, stream[:2], (1, 2))
    assert never == 3
