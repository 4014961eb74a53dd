"""In which orders the slices of a shard are learnt, how long such orders live, and how many to choose.

An order is a permutation of the slices. A request for slice s cuts every order before s; an order without a prefix is
dead, a shard without live orders has failed, and the system has failed when all shards have.

Source: Basu Roy Chowdhury et al., S3T, arXiv 2406.16257 (ICLR 2025), sections 3.3 and 4. Two official versions of the
bipartite matching selection disagree; this is the one with scores and the Hungarian method.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice, product

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from efface.errors import ConfigError

Order = tuple[int, ...]
Integers = npt.NDArray[np.int64]
HORIZON = 100
"""Deletions after which BMS counts the prefix that is left (official code: t = 100)."""


def rotations(slices: int, budget: int) -> list[Order]:
    """`budget` orders of `slices` slices for uniform requests.

    The first L are the cyclic rotations: every slice stands once at every position. More orders rotate what follows the
    first slice, then what follows the second, up to all L! orders.

    Raises:
        ConfigError: no slice, no order, or more orders than there are.
    """
    if slices < 1 or not 1 <= budget <= math.factorial(slices):
        raise ConfigError(
            f"{budget} orders of {slices} slices", f"1 to {math.factorial(max(slices, 1))} orders", "lower the budget"
        )

    def every() -> Iterator[Order]:
        # product runs its last factor fastest: the rotation of the whole
        for turns in product(*(range(slices - depth) for depth in reversed(range(slices)))):
            order = list(range(slices))
            for depth, turn in enumerate(reversed(turns)):
                tail = order[depth:]
                order[depth:] = tail[turn:] + tail[:turn]
            yield tuple(order)

    return list(islice(every(), budget))


def order_score(order: Sequence[int], rates: npt.ArrayLike, *, horizon: int = HORIZON) -> float:
    """sum_n n (1 - q_o1 - ... - q_on)^t: how much prefix an order is likely to have left after t requests.

    Args:
        order: slices, first learnt first.
        rates: [L] probability that a request hits each slice.
    """
    q = np.asarray(rates, dtype=np.float64)[list(order)]
    alive = np.clip(1.0 - np.cumsum(q), 0.0, 1.0) ** horizon
    return float((np.arange(1, len(q) + 1) * alive).sum())


def matching_orders(rates: npt.ArrayLike, budget: int | None = None, *, horizon: int = HORIZON) -> list[Order]:
    """Bipartite matching selection (BMS): orders for known deletion rates, best score first.

    L orders grow by one slice at a time; which order gets which slice is the assignment of largest total score, so no two
    orders share a slice at a position. With a smaller budget the best `budget` of the L are kept.

    Raises:
        ConfigError: rates that are no probabilities, or more orders than slices.
    """
    q = np.asarray(rates, dtype=np.float64)
    if q.ndim != 1 or len(q) == 0 or not np.isfinite(q).all() or (q < 0).any() or q.sum() > 1 + 1e-9:
        raise ConfigError(f"deletion rates {q.tolist()}", "non-negative numbers with a sum of at most 1")
    size = len(q)
    wanted = size if budget is None else budget
    if not 1 <= wanted <= size:
        raise ConfigError(f"{wanted} orders by matching for {size} slices", f"1 to {size}", "use rotations for more")
    grown: list[Order] = [(index,) for index in range(size)]
    for _ in range(size - 1):
        gain = np.full((size, size), -np.inf)
        for k, order in enumerate(grown):
            for s in set(range(size)) - set(order):
                gain[k, s] = order_score((*order, s), q, horizon=horizon)
        rows, columns = linear_sum_assignment(gain, maximize=True)
        grown = [(*grown[k], int(s)) for k, s in zip(rows, columns, strict=True)]
    return sorted(grown, key=lambda order: (-order_score(order, q, horizon=horizon), order))[:wanted]


def expected_requests(shards: int, slices: int, budget: int) -> float:
    """E = m L H_{m min(B, L)}: uniform requests, with replacement, until every shard has failed.

    Holds for orders of which min(B, L) begin with different slices.
    """
    return shards * slices * sum(1.0 / k for k in range(1, shards * min(budget, slices) + 1))


def cut(prefix: Integers, positions: Integers, slice_: int) -> Integers:
    """[B] prefixes after a request for `slice_`: an order keeps what came before it.

    Args:
        prefix: [B] live lengths.
        positions: [B, L] place of each slice in each order, from 0.
    """
    return np.minimum(prefix, positions[:, slice_])


def positions_of(orders: Sequence[Order]) -> Integers:
    """[B, L]: where each slice stands in each order."""
    return np.argsort(np.asarray(orders, dtype=np.int64), axis=1)


def simulate_failure(
    shards: int, orders: Sequence[Order], *, runs: int, seed: int, rates: npt.ArrayLike | None = None
) -> Integers:
    """[runs] requests until every shard has failed.

    Args:
        orders: of every shard alike.
        rates: [L] probabilities of the slices within a shard; default uniform. Shards are hit alike.
    """
    rng, where = np.random.default_rng(seed), positions_of(orders)
    p = None if rates is None else np.asarray(rates, dtype=np.float64) / np.sum(rates)
    size = where.shape[1]
    needed = np.zeros(runs, dtype=np.int64)
    for run in range(runs):
        prefix = np.full((shards, len(where)), size, dtype=np.int64)
        count = 0
        while prefix.any():
            for shard, hit in zip(rng.integers(0, shards, 64), rng.choice(size, 64, p=p), strict=True):
                prefix[shard] = cut(prefix[shard], where, int(hit))
                count += 1
                if not prefix.any():
                    break
        needed[run] = count
    return needed


def simulate_prefix(
    orders: Sequence[Order], rates: npt.ArrayLike, *, requests: int, runs: int, seed: int
) -> npt.NDArray[np.float64]:
    """[requests] mean length of the longest live prefix of one shard after 1, 2, ... requests."""
    rng, where = np.random.default_rng(seed), positions_of(orders)
    p = np.asarray(rates, dtype=np.float64) / np.sum(rates)
    hits = rng.choice(where.shape[1], (runs, requests), p=p)
    first = np.minimum.accumulate(where.T[hits], axis=1)  # [runs, requests, B]: the earliest place hit so far
    mean: npt.NDArray[np.float64] = first.max(-1).mean(0)
    return mean
