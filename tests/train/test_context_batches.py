"""The schedule of anchors and context: every anchor in each pass, repeated as asked, and context from the whole set."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.subjects.samples import Sample
from efface.train.context_batches import ContextSchedule, balanced_order
from efface.train.streams import SampleCollator, Stream


def samples(n: int, classes: int = 3) -> list[Sample]:
    return [Sample(lambda i=i: {"x": torch.tensor([float(i)])}, i % classes, str(i)) for i in range(n)]  # type: ignore[misc]


def made(n: int = 10, m: int = 40, **more: Any) -> ContextSchedule:
    return ContextSchedule(
        "forget", Stream(samples(n), {"gone": torch.arange(n) % 2 == 0}), "retain", Stream(samples(m)),
        **{"passes": 3, "batch_size": 5, "seed": 0, **more},
    )  # fmt: skip


def steps(schedule: ContextSchedule, name: str) -> list[list[int]]:
    size = schedule.batch_size
    return [schedule.plan[name][i : i + size] for i in range(0, len(schedule), size)]


def test_a_batch_stays_for_omega_steps_and_meets_other_context_in_each() -> None:
    schedule = made(repeats=4)
    assert (schedule.steps, schedule.pass_steps) == (3 * 2 * 4, 8)
    anchors, context = steps(schedule, "forget"), steps(schedule, "retain")
    for start in range(0, len(anchors), 4):
        assert all(batch == anchors[start] for batch in anchors[start : start + 4])
        assert len({tuple(batch) for batch in context[start : start + 4]}) == 4
    for start in range(0, len(anchors), 8):
        assert sorted(anchors[start] + anchors[start + 4]) == list(range(10)), "every row is an anchor in every pass"


def test_the_context_is_not_the_first_batches_for_ever() -> None:
    """Published: a loader without a sampler, made anew for every forget batch."""
    seen = Counter(made(repeats=4).plan["retain"])
    assert set(seen) == set(range(40))
    assert max(seen.values()) - min(seen.values()) <= 1


def test_several_context_rows_beside_an_anchor() -> None:
    schedule = made(m=45, ratio=3)
    assert set(schedule.streams) == {"forget", "retain", "retain1", "retain2"}
    for step in zip(*(steps(schedule, name) for name in ("retain", "retain1", "retain2")), strict=True):
        assert len({place for part in step for place in part}) == 15, "no row comes twice in a step"
    batch = SampleCollator(0)([schedule[i] for i in range(5)])
    assert batch["forget"]["gone"].tolist() == [place % 2 == 0 for place in schedule.plan["forget"][:5]]
    assert batch["retain2"]["inputs"]["x"].flatten().tolist() == [float(p) for p in schedule.plan["retain2"][:5]]
    assert batch["retain"]["token_share"].sum() == pytest.approx(1.0)


def test_same_seed_same_order() -> None:
    plans = [made(repeats=2, ratio=2, seed=seed).plan for seed in (0, 0, 1)]
    assert plans[0] == plans[1]
    assert all(plans[0][name] != plans[2][name] for name in plans[0])


def test_balanced_batches_of_unbalanced_rows() -> None:
    labels = [0] * 37 + [1] * 2 + [2]
    schedule = made(repeats=2, batch_size=6, labels=labels)
    for batch in steps(schedule, "retain"):
        assert Counter(labels[place] for place in batch) == {0: 2, 1: 2, 2: 2}


@settings(max_examples=40, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=30), length=st.integers(1, 60), seed=st.integers(0, 9))
def test_balanced_order_of_anything(labels: list[int], length: int, seed: int) -> None:
    order = balanced_order(labels, length, np.random.default_rng(seed))
    classes = set(labels)
    assert len(order) == length
    for start in range(0, length - len(classes) + 1, len(classes)):
        assert {labels[place] for place in order[start : start + len(classes)]} == classes
    for label in classes:
        own = [place for place in order if labels[place] == label]
        counted = Counter(own)
        assert not own or max(counted.values()) - min(counted[p] for p, x in enumerate(labels) if x == label) <= 1
