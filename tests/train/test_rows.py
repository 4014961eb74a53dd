"""Row schedules: every row once an epoch, the same order from the same seed, no key twice in a batch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.errors import ConfigError, InputError
from efface.train.rows import GroupSchedule, RowSchedule


@given(n=st.integers(2, 40), batch=st.integers(2, 16), epochs=st.sampled_from([0.5, 1, 3]), seed=st.integers(0, 5))
def test_every_row_comes_before_any_comes_twice(n: int, batch: int, epochs: float, seed: int) -> None:
    schedule = RowSchedule(n, epochs=epochs, batch_size=batch, seed=seed)
    plan, size = schedule.plan, schedule.batch_size
    for start in range(0, len(plan), size):
        assert len(set(plan[start : start + size])) == size, "no row twice in a batch, across epochs too"
    for start in range(0, len(plan) - n + 1, n):
        assert sorted(plan[start : start + n]) == list(range(n))
    assert plan == RowSchedule(n, epochs=epochs, batch_size=batch, seed=seed).plan
    assert len(plan) % min(batch, n) == 0


def test_other_seed_other_order() -> None:
    orders = [tuple(RowSchedule(50, epochs=1, batch_size=10, seed=seed).plan) for seed in range(4)]
    assert len(set(orders)) == 4


@given(seed=st.integers(0, 20), epochs=st.integers(1, 4))
def test_no_key_twice_in_a_batch_where_the_data_allow_it(seed: int, epochs: int) -> None:
    keys = [row // 2 for row in range(40)]  # twenty keys, two rows each
    schedule = RowSchedule(40, epochs=epochs, batch_size=8, seed=seed, keys=keys)
    batches = [schedule.plan[i : i + 8] for i in range(0, len(schedule), 8)]
    clashing = [batch for batch in batches if len({keys[row] for row in batch}) < 8]
    assert len(clashing) <= 1, "only the last rows may be left with nothing else"
    assert len(schedule.plan) == 40 * epochs


def test_many_repeats_take_linear_time() -> None:
    import time

    begun = time.perf_counter()
    schedule = RowSchedule(20_000, epochs=3, batch_size=128, seed=0, keys=[row % 10 for row in range(20_000)])
    assert time.perf_counter() - begun < 20, "seconds, not hours"
    rows = sorted(schedule.plan)
    assert all(rows.count(row) <= 4 for row in rows[::997]), "three epochs and the begun fourth"


def test_keys_that_cannot_be_kept_apart_still_give_full_batches() -> None:
    schedule = RowSchedule(9, epochs=2, batch_size=3, seed=0, keys=[0] * 9)
    assert sorted(schedule.plan) == sorted([*range(9), *range(9)])


def test_bad_sizes() -> None:
    with pytest.raises(InputError, match="1 rows to learn from"):
        RowSchedule(1, epochs=1, batch_size=4, seed=0)
    with pytest.raises(ConfigError, match="batch_size=5 on 2 processes"):
        RowSchedule(20, epochs=1, batch_size=5, seed=0, world=2)
    assert RowSchedule(7, epochs=1, batch_size=100, seed=0, world=2).batch_size == 6


def test_groups_share_every_batch_evenly() -> None:
    marks = [0] * 40 + [1] * 7
    schedule = RowSchedule(47, epochs=3, batch_size=8, seed=0, groups=marks)
    assert schedule.steps == round(3 * 47 / 8)
    for start in range(0, len(schedule), 8):
        rows = [schedule[i][0] for i in range(start, start + 8)]
        assert sum(marks[row] for row in rows) == 4
        assert len(set(rows)) == 8
    seen = {schedule[i][0] for i in range(len(schedule))}
    assert seen >= set(range(40, 47))
    assert RowSchedule(47, epochs=3, batch_size=8, seed=0, groups=marks).plan == schedule.plan
    assert RowSchedule(47, epochs=3, batch_size=8, seed=1, groups=marks).plan != schedule.plan


def test_groups_share_each_processes_part() -> None:
    marks = [0, 1] * 20
    plan = RowSchedule(40, epochs=2, batch_size=8, seed=0, groups=marks, world=2).plan
    for start in range(0, len(plan), 4):
        assert sum(marks[row] for row in plan[start : start + 4]) == 2


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="a multiple of 3"):
        RowSchedule(30, epochs=1, batch_size=8, seed=0, groups=[0, 1, 2] * 10)
    with pytest.raises(InputError, match="2 rows of group 1"):
        RowSchedule(30, epochs=1, batch_size=8, seed=0, groups=[0] * 28 + [1] * 2)


@given(seed=st.integers(0, 5), epochs=st.sampled_from([0.5, 1, 3]))
def test_a_batch_is_of_one_group(seed: int, epochs: float) -> None:
    groups = [7] * 11 + [-2] * 3 + [40] * 9  # 3 rows fill no batch of 4; codes have gaps
    schedule = GroupSchedule(groups, epochs=epochs, batch_size=4, seed=seed)
    batches = [schedule.plan[i : i + 4] for i in range(0, len(schedule), 4)]
    assert all(len({groups[row] for row in batch}) == 1 and len(set(batch)) == 4 for batch in batches)
    assert schedule.coverage == pytest.approx(20 / 23)
    assert schedule.sizes == {-2: 3, 7: 11, 40: 9}
    assert schedule.steps == max(1, round(4 * epochs))
    assert [groups[batch[0]] for batch in batches][:4] == [7, 40, 7, 40][: len(batches)], "groups are visited in turn"
    assert schedule.plan == GroupSchedule(groups, epochs=epochs, batch_size=4, seed=seed).plan


def test_every_row_of_a_usable_group_comes_in_the_end() -> None:
    groups = [0] * 11 + [1] * 9
    assert set(GroupSchedule(groups, epochs=20, batch_size=4, seed=0).plan) == set(range(20))
    assert (
        GroupSchedule(groups, epochs=1, batch_size=4, seed=0).plan
        != GroupSchedule(groups, epochs=1, batch_size=4, seed=1).plan
    )


def test_groups_that_fill_no_batch_are_refused() -> None:
    with pytest.raises(InputError, match="3 groups of at most 2 rows"):
        GroupSchedule([0, 0, 1, 1, 2], epochs=1, batch_size=4, seed=0)
    with pytest.raises(ConfigError, match="multiple of 2"):
        GroupSchedule([0] * 8, epochs=1, batch_size=3, seed=0, world=2)
