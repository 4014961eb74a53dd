"""Batches of row numbers, for data of any kind: fresh permutations one after another, all made beforehand from the seed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from efface.errors import ConfigError, InputError

LOOK = 8
"""Batches of rows that are looked through to fill one without repeated keys."""


class RowSchedule(Dataset[tuple[int, int]]):
    """The rows of a training run in their order; item `position` is (row, position). No row comes twice in a batch.

    Args:
        n: number of rows.
        epochs: passes over the rows; fractions are allowed.
        batch_size: rows in an optimiser step, over all processes; bounded by n.
        seed: of the orders.
        keys: [n] where given, a batch holds no key twice as far as the data allow: a row whose key is there already
            waits for the next batch.
        world: number of processes, which share a batch evenly.
        groups: [n] where given, every batch (and every process's share of it) holds equally many rows of each group; the
            rows of a smaller group come more often.

    Raises:
        InputError: fewer than two rows: nothing to contrast with; a group of fewer rows than a batch needs of it.
        ConfigError: the batch does not split evenly over the processes, or over processes and groups.
    """

    def __init__(
        self, n: int, *, epochs: float, batch_size: int, seed: int, keys: Sequence[int] | None = None, world: int = 1,
        groups: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        if n < 2:
            raise InputError(f"{n} rows to learn from", "at least two: a contrast needs another one", "give more data")
        self.batch_size = min(batch_size, n) // world * world
        if batch_size % world or self.batch_size < 2:
            raise ConfigError(f"batch_size={batch_size} on {world} processes", f"a multiple of {world}, at least 2")
        self.length = max(1, round(epochs * n / self.batch_size)) * self.batch_size
        rng = np.random.default_rng(np.random.SeedSequence([seed, 0x0EFFACE]))
        if groups is not None:
            self.plan = self._even(groups, world, rng)
            return
        rounds = [rng.permutation(n).tolist() for _ in range(-(-self.length // n))]
        order = self._joined(rounds) if keys is None else [row for part in rounds for row in part]
        self.plan = order[: self.length] if keys is None else self._spread(order, keys)

    def _even(self, groups: Sequence[int], world: int, rng: np.random.Generator) -> list[int]:
        """Equal shares of every group, in each process's part of each batch."""
        marks = np.asarray(groups)
        names = np.unique(marks)
        share = self.batch_size // (len(names) * world)
        if share < 1 or share * len(names) * world != self.batch_size:
            raise ConfigError(
                f"batch_size={self.batch_size} for {len(names)} groups on {world} processes",
                f"a multiple of {len(names) * world}",
            )  # fmt: skip
        batches = self.length // self.batch_size
        parts = []
        for name in names:
            rows = np.flatnonzero(marks == name)
            if len(rows) < share * world:
                raise InputError(
                    f"{len(rows)} rows of group {name}", f"{share * world}, which a batch holds", "give more"
                )
            each = len(rows) // (share * world)  # whole batches of one permutation: no row twice in a batch
            rounds = [rng.permutation(rows)[: each * share * world] for _ in range(-(-batches // each))]
            parts.append(np.concatenate(rounds)[: batches * share * world].reshape(batches * world, share))
        return [int(row) for row in np.concatenate(parts, axis=1).reshape(-1)]

    def _joined(self, rounds: list[list[int]]) -> list[int]:
        """One permutation after another; a batch that reaches into the next one takes rows that it has not got yet."""
        order: list[int] = []
        for part in rounds:
            begun = len(order) % self.batch_size
            got = set(order[len(order) - begun :])
            first = [row for row in part if row not in got][: self.batch_size - begun] if begun else []
            taken = set(first)
            order += first + [row for row in part if row not in taken]
        return order

    def _spread(self, order: list[int], keys: Sequence[int]) -> list[int]:
        """Batches without repeated keys; a row that would repeat one waits, unless nothing else is near.

        For each batch at most `LOOK` batches of rows are looked at, so that the work stays linear whatever the keys.
        """
        plan: list[int] = []
        waiting: deque[int] = deque()
        source = iter(order)
        while len(plan) < self.length:
            batch: list[int] = []
            seen: set[int] = set()
            held: list[int] = []
            for place in range(LOOK * self.batch_size):
                if len(batch) == self.batch_size:
                    break
                old = place < LOOK * self.batch_size // 2 and waiting
                row = waiting.popleft() if old else next(source, -1)
                if row < 0:
                    if not waiting:
                        break
                    row = waiting.popleft()
                (held if keys[row] in seen else batch).append(row)
                seen.add(keys[row])
            room = self.batch_size - len(batch)
            batch += held[:room]
            waiting.extendleft(reversed(held[room:]))
            while len(batch) < self.batch_size:  # what was looked at did not even fill it
                row = waiting.popleft() if waiting else next(source)
                batch.append(row)
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
