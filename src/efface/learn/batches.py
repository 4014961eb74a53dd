"""Rows of pictures and texts to the batches that contrastive recipes are fed with: two views, or two sides of a pair.

Pictures that fit are prepared once and kept; views are drawn batch by batch from a generator seeded by the place in the
schedule, so a resumed run sees what the killed run would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from efface.data.items import open_picture, picture_key, text_key
from efface.errors import RequestError
from efface.learn.objective import Takes
from efface.learn.views.images import ImageViews, ViewConfig
from efface.learn.views.texts import TextViewConfig, TextViews
from efface.run.progress import track

KEPT_BYTES = 2 * 2**30
"""Prepared pictures up to this size stay in memory."""


class Prepared:
    """A column of items as model inputs.

    Args:
        tower: has `modality` and `prepare(items)`.
        column: pictures as `data.items` gives them, or texts.
        label: name in the progress bar.
    """

    def __init__(self, tower: Any, column: Sequence[Any], *, label: str = "pictures") -> None:
        self.tower, self.column = tower, column
        self.kept: dict[str, Tensor] | None = None
        if tower.modality != "image" or not len(column):
            return
        first = self._prepare([0])
        size = sum(value.numel() * value.element_size() for value in first.values()) * len(column)
        if size > KEPT_BYTES:
            return
        self.kept = {name: value.new_empty((len(column), *value.shape[1:])) for name, value in first.items()}
        with track(f"prepare {label}", len(column)) as advance:
            for start in range(0, len(column), 256):
                rows = list(range(start, min(start + 256, len(column))))
                for name, value in self._prepare(rows).items():
                    self.kept[name][start : start + len(rows)] = value
                advance(len(rows))

    def _prepare(self, rows: Sequence[int]) -> dict[str, Tensor]:
        items = [self.column[row] for row in rows]
        if self.tower.modality == "image":
            items = [open_picture(item) for item in items]
        inputs: dict[str, Tensor] = self.tower.prepare(items)
        return inputs

    def __call__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Model inputs of some rows, [b, ...] each."""
        if self.kept is None:
            return self._prepare(rows)
        index = torch.as_tensor(rows)
        return {name: value[index] for name, value in self.kept.items()}


class Batches:
    """Items (row, position) of a `RowSchedule` to `{"first": inputs, "second": inputs, labels, ids, weights}`.

    Args:
        takes: what the recipe wants.
        towers: of the first and the second side (one tower twice for views).
        columns: the items of both sides.
        seed: of the views.
        image_views, text_views: how the views of one item are drawn.
        labels, ids, weights: [N] tensors or None.
    """

    def __init__(
        self, takes: Takes, towers: tuple[Any, Any], columns: tuple[Sequence[Any], Sequence[Any]], *, seed: int,
        image_views: ViewConfig, text_views: TextViewConfig, labels: Tensor | None = None, ids: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.takes, self.towers, self.columns, self.seed = takes, towers, columns, seed
        same = takes != "pairs"
        first = Prepared(towers[0], columns[0])
        self.prepared = (first, first if same else Prepared(towers[1], columns[1]))
        self.image_views, self.text_views = ImageViews(image_views), TextViews(text_views)
        self.extras = {"labels": labels, "ids": ids, "weights": weights}

    def __call__(self, items: Sequence[tuple[int, int]]) -> dict[str, Any]:
        rows = [row for row, _ in items]
        generator = torch.Generator().manual_seed(((self.seed + 1) * 0x9E3779B1 + items[0][1]) % 2**63)
        batch: dict[str, Any] = {
            "first": self._side(0, rows, generator), "second": self._side(1, rows, generator),
        }  # fmt: skip
        for name, values in self.extras.items():
            if values is not None:
                batch[name] = values[torch.as_tensor(rows)]
        return batch

    def _side(self, side: int, rows: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
        if self.takes == "pairs":
            return self.prepared[side](rows)
        tower = self.towers[side]
        if tower.modality == "text":
            texts = [self.columns[side][row] for row in rows]
            inputs: dict[str, Tensor] = tower.prepare(self.text_views(texts, generator))
            return inputs
        inputs = dict(self.prepared[side](rows))
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in tower.normalisation)
        images = (inputs["pixel_values"] * std + mean).clamp(0, 1)
        seen, _ = self.image_views(images, generator)
        inputs["pixel_values"] = (seen - mean) / std
        return inputs


def item_numbers(column: Sequence[Any], modality: str) -> list[int]:
    """[N] one number per distinct content: equal pictures or texts share it."""
    key = picture_key if modality == "image" else text_key
    numbers: dict[str, int] = {}
    return [numbers.setdefault(key(item), len(numbers)) for item in column]


def columns_of(data: Dataset, takes: Takes, modalities: tuple[str, str]) -> tuple[Sequence[Any], Sequence[Any]]:
    """The columns that a recipe needs.

    Raises:
        RequestError: one is missing; names the column and those that are there.
    """
    wanted = ["image" if modality == "image" else "text" for modality in modalities]
    for name in [*wanted, *(["label"] if takes == "labelled" else [])]:
        if name not in data.column_names:
            raise RequestError(
                f"no column '{name}' (there are: {', '.join(data.column_names)})", f"{' and '.join(dict.fromkeys(wanted))}"
                f"{' and label' if takes == 'labelled' else ''}", "rename a column, or choose another recipe",
            )  # fmt: skip
    return data[wanted[0]], data[wanted[1]]
