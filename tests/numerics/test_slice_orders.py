"""Orders of slices: rotations, matching selection against brute force, lifetime against its closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest

from efface.errors import ConfigError
from efface.numerics.slice_orders import (
    cut,
    expected_requests,
    matching_orders,
    order_score,
    positions_of,
    rotations,
    simulate_failure,
    simulate_prefix,
)


@pytest.mark.parametrize("slices", [1, 2, 3, 4])
def test_rotations_are_a_latin_square_and_then_all_orders(slices: int) -> None:
    square = rotations(slices, slices)
    for position in range(slices):
        assert {order[position] for order in square} == set(range(slices))
    full = rotations(slices, math.factorial(slices))
    assert full[:slices] == square
    assert set(full) == set(permutations(range(slices)))
    with pytest.raises(ConfigError, match="orders of"):
        rotations(slices, math.factorial(slices) + 1)


def test_score_is_the_sum_of_the_spec() -> None:
    q = [0.4, 0.3, 0.2, 0.1]
    wanted = 1 * (1 - 0.1) ** 100 + 2 * (1 - 0.1 - 0.2) ** 100 + 3 * (1 - 0.6) ** 100
    assert order_score((3, 2, 1), q) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_each_step_of_matching_is_the_best_assignment(seed: int) -> None:
    """Brute force over all assignments of every step; totals are compared, since several may be best."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 5))
    q = rng.dirichlet(np.ones(size))
    orders = matching_orders(q, horizon=3)
    assert all(sorted(order) == list(range(size)) for order in orders)
    for depth in range(1, size):
        grown = [order[:depth] for order in orders]

        def total(taken: Sequence[int], grown: list[tuple[int, ...]] = grown) -> float:
            return sum(order_score((*order, s), q, horizon=3) for order, s in zip(grown, taken, strict=True))

        feasible = [
            taken
            for taken in permutations(range(size))
            if all(s not in order for order, s in zip(grown, taken, strict=True))
        ]
        assert total([order[depth] for order in orders]) == pytest.approx(
            max(map(total, feasible)), rel=1e-12, abs=1e-15
        )


def test_matching_has_distinct_entries_at_every_position() -> None:
    found = matching_orders([0.4, 0.3, 0.2, 0.1])
    assert len(found) == 4
    for position in range(4):
        assert {order[position] for order in found} == {0, 1, 2, 3}
    assert found[0][0] == 3, "the most stable slice leads the best order"
    assert matching_orders([0.4, 0.3, 0.2, 0.1], budget=2) == found[:2]


@pytest.mark.parametrize("rates", [[], [0.5, -0.1], [0.8, 0.8], [float("nan"), 0.1]])
def test_rates_that_are_none_are_refused(rates: list[float]) -> None:
    with pytest.raises(ConfigError, match="rates"):
        matching_orders(rates)


def test_a_budget_above_the_slices_is_no_matching() -> None:
    with pytest.raises(ConfigError, match="rotations"):
        matching_orders([0.5, 0.5], budget=3)


def test_expectation_of_the_spec() -> None:
    assert expected_requests(3, 4, 1) == pytest.approx(22.0)
    assert expected_requests(3, 4, 4) == pytest.approx(37.24, abs=0.01)
    assert expected_requests(5, 6, 6) == pytest.approx(119.85, abs=0.01)
    assert expected_requests(4, 4, 9) == expected_requests(4, 4, 4), "more orders than slices live no longer"


def test_the_simulator_meets_the_expectation_of_one_shard() -> None:
    """One shard, one order: geometric with mean L; sd sqrt(L (L-1)), so 4000 runs give 0.055."""
    needed = simulate_failure(1, rotations(4, 1), runs=4000, seed=0)
    assert abs(needed.mean() - 4.0) < 4 * math.sqrt(12 / 4000)
    assert needed.min() == 1


def test_cut_keeps_what_came_before() -> None:
    orders = [(2, 0, 1), (0, 1, 2)]
    where = positions_of(orders)
    assert cut(np.array([3, 3]), where, 1).tolist() == [2, 1]
    assert cut(np.array([1, 3]), where, 1).tolist() == [1, 1]
    assert cut(np.array([3, 3]), where, 2).tolist() == [0, 2]


def test_simulated_prefix_of_one_request_is_exact() -> None:
    """After one request of slice s, an order of L has s's position left."""
    mean = simulate_prefix([(1, 0)], [0.25, 0.75], requests=1, runs=20000, seed=1)
    assert mean[0] == pytest.approx(0.25, abs=0.02)  # 1 where slice 0 was hit, 0 where slice 1 was
