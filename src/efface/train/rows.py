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


class GroupSchedule(RowSchedule):
    """Every batch is of one group: what an anchor is contrasted with shares its group (MCL, arXiv 2402.11816).

    In each pass the rows of every group are shuffled, cut to whole batches, and the groups are visited in turn, one batch
    each; groups of fewer rows than a batch are never visited (`coverage` says how many rows are left).

    Args:
        groups: [n] the group of each row; any integers, looked at by value.
        epochs: passes over the groups' whole batches; fractions are allowed.
        batch_size: rows in an optimiser step, over all processes.
        seed: of the orders.
        world: number of processes, which share a batch evenly.

    Raises:
        InputError: no group fills a batch.
        ConfigError: the batch does not split evenly over the processes.
    """

    def __init__(
        self, groups: Sequence[int], *, epochs: float, batch_size: int, seed: int, world: int = 1
    ) -> None:  # fmt: skip
        marks = np.asarray(groups)
        if batch_size % world or batch_size < 2:
            raise ConfigError(f"batch_size={batch_size} on {world} processes", f"a multiple of {world}, at least 2")
        members = [np.flatnonzero(marks == name) for name in np.unique(marks)]
        usable = [rows for rows in members if len(rows) >= batch_size]
        if not usable:
            raise InputError(
                f"{len(members)} groups of at most {max(map(len, members), default=0)} rows for batches of {batch_size}",
                "one group that fills a batch", "lower the batch size, or make fewer groups",
            )  # fmt: skip
        self.batch_size = batch_size
        self.coverage = sum(map(len, usable)) / len(marks)
        self.sizes = {int(name): len(rows) for name, rows in zip(np.unique(marks), members, strict=True)}
        a_pass = sum(len(rows) // batch_size for rows in usable)
        self.length = max(1, round(epochs * a_pass)) * batch_size
        rng = np.random.default_rng(np.random.SeedSequence([seed, 0x6709]))
        self.plan = []
        while len(self.plan) < self.length:
            waiting = [
                rng.permutation(rows)[: len(rows) // batch_size * batch_size].reshape(-1, batch_size) for rows in usable
            ]
            for turn in range(max(map(len, waiting))):
                self.plan += [int(row) for batches in waiting if turn < len(batches) for row in batches[turn]]
        self.plan = self.plan[: self.length]
