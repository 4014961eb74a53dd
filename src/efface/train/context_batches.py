"""Batches for losses between anchors and context: each anchor batch in several steps, beside other context rows in each.

What contrastive forgetting trains on. The whole order is made beforehand from the seed, like every `Schedule`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from efface.train.streams import Schedule, Stream, row_order


class ContextSchedule(Schedule):
    """Anchors in `anchor`, context in `context`, `context1`, ...: one stream for each context row beside an anchor row.

    Args:
        anchor, context: the names of the streams.
        rows: the anchors; each comes once in a pass.
        others: the context.
        passes: over the anchors; fractions are allowed.
        batch_size: anchors in a step.
        repeats: steps in which an anchor batch stays.
        ratio: context rows beside an anchor row.
        labels: classes of the context, for batches with all classes alike often; None draws rows as they are.
        seed: of every order.

    Attributes:
        pass_steps: steps of a pass over the anchors.
    """

    def __init__(
        self, anchor: str, rows: Stream, context: str, others: Stream, *, passes: float, batch_size: int, seed: int,
        repeats: int = 1, ratio: int = 1, labels: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        n = len(rows.rows)
        batches = max(1, round(passes * n / batch_size))
        steps = batches * repeats
        names = [f"{context}{k or ''}" for k in range(ratio)]
        super().__init__(
            {anchor: rows, **dict.fromkeys(names, others)}, anchor=anchor, epochs=steps * batch_size / n,
            batch_size=batch_size, seed=seed,
        )  # fmt: skip
        first = np.asarray(self.plan[anchor][: batches * batch_size]).reshape(batches, batch_size)
        self.plan[anchor] = first.repeat(repeats, axis=0).ravel().tolist()
        rng = np.random.default_rng([seed, 0xC0])
        total = self.length * ratio
        order = row_order(len(others.rows), total, rng) if labels is None else balanced_order(labels, total, rng)
        shaped = np.asarray(order).reshape(steps, ratio, batch_size)
        self.plan |= {name: shaped[:, place].ravel().tolist() for place, name in enumerate(names)}
        self.pass_steps = max(1, round(n / batch_size)) * repeats


def balanced_order(labels: Sequence[int], length: int, rng: np.random.Generator) -> list[int]:
    """`length` places in `labels`: rounds of one place of each class, the classes in a random order in each.

    Of a class all places come before any comes twice.
    """
    marks = np.asarray(labels)
    places = [np.flatnonzero(marks == label) for label in np.unique(marks)]
    rounds = math.ceil(length / len(places))
    grid = np.stack([own[row_order(len(own), rounds, rng)] for own in places], axis=1)  # [rounds, K]
    return [int(i) for i in rng.permuted(grid, axis=1).ravel()[:length]]


__all__ = ["ContextSchedule", "balanced_order"]
