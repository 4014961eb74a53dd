"""Batches of row numbers, for data of any kind: fresh permutations one after another, all made beforehand from the seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from efface.errors import ConfigError, InputError


class RowSchedule(Dataset[tuple[int, int]]):
    """The rows of a training run in their order; item `position` is (row, position).

    Args:
        n: number of rows.
        epochs: passes over the rows; fractions are allowed.
        batch_size: rows in an optimiser step, over all processes; bounded by n.
        seed: of the orders.
        keys: [n] where given, a batch holds no key twice as far as the data allow: a row whose key is there already
            waits for the next batch.
        world: number of processes, which share a batch evenly.

    Raises:
        InputError: fewer than two rows: nothing to contrast with.
        ConfigError: the batch does not split evenly over the processes.
    """

    def __init__(
        self, n: int, *, epochs: float, batch_size: int, seed: int, keys: Sequence[int] | None = None, world: int = 1
    ) -> None:
        if n < 2:
            raise InputError(f"{n} rows to learn from", "at least two: a contrast needs another one", "give more data")
        self.batch_size = min(batch_size, n) // world * world
        if batch_size % world or self.batch_size < 2:
            raise ConfigError(f"batch_size={batch_size} on {world} processes", f"a multiple of {world}, at least 2")
        self.length = max(1, round(epochs * n / self.batch_size)) * self.batch_size
        rng = np.random.default_rng(np.random.SeedSequence([seed, 0x0EFFACE]))
        rounds = -(-self.length // n)
        order = np.concatenate([rng.permutation(n) for _ in range(rounds)])
        self.plan = order[: self.length].tolist() if keys is None else self._spread(order.tolist(), keys)

    def _spread(self, order: list[int], keys: Sequence[int]) -> list[int]:
        """Batches without repeated keys; a row that would repeat one waits, unless nothing else is left."""
        plan: list[int] = []
        waiting: list[int] = []
        source = iter(order)
        while len(plan) < self.length:
            batch: list[int] = []
            seen: set[int] = set()
            held: list[int] = []
            queue = waiting
            waiting = []
            for row in queue:
                fits = len(batch) < self.batch_size and keys[row] not in seen
                (batch if fits else held).append(row)
                seen.add(keys[row])
            while len(batch) < self.batch_size:
                row = next(source, -1)
                if row < 0:
                    break
                fits = keys[row] not in seen
                (batch if fits else held).append(row)
                seen.add(keys[row])
            room = self.batch_size - len(batch)
            batch += held[:room]
            waiting = held[room:]
            plan += batch
        return plan

    def __len__(self) -> int:
        return self.length

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.length // self.batch_size

    def __getitem__(self, position: int) -> tuple[int, int]:
        return self.plan[position], position
