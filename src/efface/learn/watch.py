"""What the embedding looks like while it is trained: collapse, geometry, and what can be read off it.

Rows that are looked at are a fixed draw. With classes, a k-NN and a linear probe are fitted on one part of them and read
on another (on the test rows where there are some); with numbers, a ridge regression. Nothing of it reaches training.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from transformers import TrainerCallback

from efface.numerics.spectrum import effective_rank
from efface.numerics.sphere import alignment, uniformity

NEIGHBOURS = 5
FALLEN = 0.5
"""A rank below this share of its highest so far, or below 2, is called a collapse."""
CURVES = "curves.jsonl"


def knn_score(known: Tensor, labels: Tensor, unseen: Tensor, truth: Tensor, k: int = NEIGHBOURS) -> float:
    """Share of the unseen rows whose k nearest known rows (cosine) vote for their class."""
    model = KNeighborsClassifier(min(k, len(known)), metric="cosine").fit(known.numpy(), labels.numpy())
    return float(model.score(unseen.numpy(), truth.numpy()))


def standardised(known: Tensor, unseen: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Both by the mean and deviation of the known rows."""
    mean, spread = known.mean(0), known.std(0).clamp(min=1e-6)
    return ((known - mean) / spread).numpy(), ((unseen - mean) / spread).numpy()


def probe_score(known: Tensor, labels: Tensor, unseen: Tensor, truth: Tensor) -> float:
    """Accuracy of a logistic regression (C = 10) on standardised features; the constant answer for one class."""
    if bool((labels == labels[0]).all()):
        return float((truth == labels[0]).float().mean())
    a, b = standardised(known, unseen)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the solver may stop before its end
        model = LogisticRegression(C=10, max_iter=300).fit(a, labels.numpy())
    return float(model.score(b, truth.numpy()))


def ridge_errors(known: Tensor, targets: Tensor, unseen: Tensor, truth: Tensor) -> np.ndarray:
    """[n] absolute errors of a ridge regression, its penalty chosen by leave-one-out among 1e-4 to 1e4."""
    a, b = standardised(known, unseen)
    model = RidgeCV(alphas=np.logspace(-4, 4, 17)).fit(a, targets.numpy())
    found: np.ndarray = np.abs(model.predict(b) - truth.numpy())
    return found


class Rows:
    """A fixed draw of rows to look at.

    Args:
        data: items with `image`, `text` or `features`, and perhaps `label` or `target`.
        column: which of them.
        most: rows at most.
        seed: of the draw.
    """

    def __init__(self, data: Dataset, column: str, most: int, seed: int) -> None:
        order = np.random.default_rng(np.random.SeedSequence([seed, 0x100C])).permutation(len(data))
        self.places = sorted(order[:most].tolist())
        chosen = data.select(self.places)
        arrays = column == "features"
        self.items: Sequence[Any] = list(chosen.with_format("numpy")[:][column] if arrays else chosen[column])
        self.labels = torch.tensor(chosen["label"]) if "label" in chosen.column_names else None
        self.targets = torch.tensor(chosen["target"]).double() if "target" in chosen.column_names else None


def read_off(known: Tensor, rows: Rows, unseen: Tensor, others: Rows) -> dict[str, float]:
    """What can be read off embeddings of unseen rows by what known ones say."""
    found: dict[str, float] = {}
    if rows.labels is not None and others.labels is not None and not bool((rows.labels == rows.labels[0]).all()):
        found["knn"] = knn_score(known, rows.labels, unseen, others.labels)
        found["probe"] = probe_score(known, rows.labels, unseen, others.labels)
    if rows.targets is not None and others.targets is not None:
        found["mae"] = float(ridge_errors(known, rows.targets, unseen, others.targets).mean())
    return found


class Part:
    """Some of a draw's marks, so that one draw can be split in two."""

    def __init__(self, rows: Rows, index: Tensor) -> None:
        self.labels = None if rows.labels is None else rows.labels[index]
        self.targets = None if rows.targets is None else rows.targets[index]


class Watch(TrainerCallback):  # type: ignore[misc]
    """Looks at the embedding before the first step, at even distances, and after the last one.

    Args:
        embed: (items) -> [n, D] unit rows of the present encoder.
        views: () -> two views of the draw as unit rows, for alignment; None leaves it out.
        rows: the draw; `test` rows to read on, else its second half.
        steps: of the run; `times` looks are spread over them.
        folder: where the curve waits while the run is under way.
    """

    def __init__(
        self, embed: Callable[[Sequence[Any]], Tensor], rows: Rows, test: Rows | None, *, steps: int, times: int,
        folder: Path, views: Callable[[], tuple[Tensor, Tensor]] | None = None,
    ) -> None:  # fmt: skip
        self.embed, self.rows, self.test, self.views = embed, rows, test, views
        self.at = {round(steps * (i + 1) / times) for i in range(times)} if times else set()
        self.path = folder / CURVES
        self.points: list[dict[str, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """At the start; after a kill, what was seen up to the checkpoint stays."""
        if self.path.exists():
            lines = [json.loads(line) for line in self.path.read_text().splitlines() if line.endswith("}")]
            self.points = [point for point in lines if point["step"] <= state.global_step]
        if self.at and not self.points:
            self._look(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """At the chosen steps."""
        if state.global_step in self.at:
            self._look(int(state.global_step))

    def _look(self, step: int) -> None:
        point = {"step": float(step), **self.figures()}
        self.points.append(point)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(point) + "\n")

    def figures(self) -> dict[str, float]:
        """What the present embedding is like."""
        z = self.embed(self.rows.items)
        found = {"effective_rank": effective_rank(z), "uniformity": float(uniformity(z))}
        if self.views is not None:
            found["alignment"] = float(alignment(*self.views()))
        if self.test is not None:
            unseen, others = self.embed(self.test.items), self.test
            return found | read_off(z, self.rows, unseen, others)
        half = len(z) // 2
        first, second = torch.arange(half), torch.arange(half, len(z))
        parts: Any = Part(self.rows, first), Part(self.rows, second)
        return found | read_off(z[first], parts[0], z[second], parts[1])

    def plane(self) -> dict[str, Any]:
        """The draw in two principal components: points in [-1, 1], classes, share of the variance."""
        z = self.embed(self.rows.items).double()
        z = z - z.mean(0)
        _, values, directions = torch.linalg.svd(z, full_matrices=False)
        flat = z @ directions[:2].T
        points = (flat / flat.abs().max().clamp(min=1e-12)).tolist()
        total = float((values**2).sum())
        marks = self.rows.labels if self.rows.labels is not None else self.rows.targets
        return {
            "points": [[round(x, 4), round(y, 4)] for x, y in points],
            "explained": float((values[:2] ** 2).sum()) / total if total else 1.0,
            "marks": None if marks is None else marks.tolist(), "classes": self.rows.labels is not None,
        }  # fmt: skip

    @property
    def warnings(self) -> list[str]:
        """Collapse, where the rank fell."""
        ranks = [point["effective_rank"] for point in self.points]
        if not ranks or (ranks[-1] >= FALLEN * max(ranks) and ranks[-1] >= 2):
            return []
        return [
            f"the embedding collapses: its effective rank is {ranks[-1]:.1f} and was {max(ranks):.1f}; "
            "lower the learning rate, or look at temperature, batch size and views"
        ]
