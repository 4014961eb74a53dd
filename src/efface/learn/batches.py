"""Rows of pictures and texts to the batches that contrastive recipes are fed with: two views, or two sides of a pair.

Pictures that fit are prepared once and kept; views are drawn batch by batch from a generator seeded by the place in the
schedule, so a resumed run sees what the killed run would have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from efface.data.items import open_picture, picture_key, text_key
from efface.errors import RequestError
from efface.learn.module import Batch
from efface.learn.objective import Takes
from efface.learn.views.features import FeatureViewConfig, FeatureViews
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
        if tower.modality == "text" or not len(column):
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
    """Items (row, position) of a `RowSchedule` to a `Batch` (see `learn.module`).

    Args:
        takes: what the recipe wants.
        towers: of the first and the second side (one tower twice for views).
        columns: the items of both sides.
        seed: of the views.
        draws: how each view of a picture is drawn; of texts and arrays, their number is the number of views.
        text_views, feature_views: how the views of a text and of an array are drawn.
        marks: [N] tensors by name (labels, targets, ids, weights, groups); None is left out.
    """

    def __init__(
        self, takes: Takes, towers: tuple[Any, Any], columns: tuple[Sequence[Any], Sequence[Any]], *, seed: int,
        draws: Sequence[ViewConfig], text_views: TextViewConfig, feature_views: FeatureViewConfig,
        marks: dict[str, Tensor | None],
    ) -> None:  # fmt: skip
        self.takes, self.towers, self.columns, self.seed = takes, towers, columns, seed
        first = Prepared(towers[0], columns[0])
        self.prepared = (first, first if takes != "pairs" else Prepared(towers[1], columns[1]))
        self.draws = [ImageViews(draw) for draw in draws]
        self.text_views, self.feature_views = TextViews(text_views), FeatureViews(feature_views)
        self.marks = {name: values for name, values in marks.items() if values is not None}

    def __call__(self, items: Sequence[tuple[int, int]]) -> Batch:
        rows = [row for row, _ in items]
        generator = torch.Generator().manual_seed(((self.seed + 1) * 0x9E3779B1 + items[0][1]) % 2**63)
        index = torch.as_tensor(rows)
        batch: Batch = {"rows": index, **{name: values[index] for name, values in self.marks.items()}}
        if self.takes == "pairs":
            return batch | {"views": [self.prepared[0](rows), self.prepared[1](rows)]}
        return batch | self.views(rows, generator)

    def views(self, rows: Sequence[int], generator: torch.Generator) -> Batch:
        """`views` of some rows, and for pictures `boxes`."""
        tower = self.towers[0]
        if tower.modality == "text":
            texts = [self.columns[0][row] for row in rows]
            return {"views": [tower.prepare(self.text_views(texts, generator)) for _ in self.draws]}
        inputs = self.prepared[0](rows)
        if tower.modality == "features":
            return {"views": [{"features": self.feature_views(inputs["features"], generator)} for _ in self.draws]}
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in tower.normalisation)
        images = (inputs["pixel_values"] * std + mean).clamp(0, 1)
        height, width = images.shape[2:]
        side = images.new_tensor([width, height, width, height])
        found: Batch = {"views": [], "boxes": []}
        for draw in self.draws:
            seen, boxes = draw(images, generator)
            found["views"].append({**inputs, "pixel_values": (seen - mean) / std})
            found["boxes"].append(boxes / side)
        return found | {"boxes": torch.stack(found["boxes"])}


def array_key(row: Any) -> str:
    """SHA-256 of an array's numbers."""
    return hashlib.sha256(np.ascontiguousarray(row, dtype=np.float32).tobytes()).hexdigest()


def item_numbers(column: Sequence[Any], modality: str) -> list[int]:
    """[N] one number per distinct content: equal pictures, texts or arrays share it."""
    key: Any = {"image": picture_key, "text": text_key, "features": array_key}[modality]
    numbers: dict[str, int] = {}
    return [numbers.setdefault(key(item), len(numbers)) for item in column]


def columns_of(data: Dataset, takes: Takes, modalities: tuple[str, str]) -> tuple[Sequence[Any], Sequence[Any]]:
    """The columns that a recipe needs.

    Raises:
        RequestError: one is missing; names the column and those that are there.
    """
    wanted = [*modalities, *({"labelled": ["label"], "targets": ["target"]}.get(takes, []))]
    for name in wanted:
        if name not in data.column_names:
            raise RequestError(
                f"no column '{name}' (there are: {', '.join(data.column_names)})", " and ".join(dict.fromkeys(wanted)),
                "rename a column, or choose another recipe",
            )  # fmt: skip
    if "features" in modalities:
        rows = data.with_format("numpy")[:]["features"]
        return rows, rows
    return data[modalities[0]], data[modalities[1]]
