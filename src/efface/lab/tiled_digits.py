"""Canvases of 32 x 32 in which every place has a class of its own, for systems that learn a feature for each cell.

A canvas is 4 x 4 of scikit-learn's digits (8 x 8 pixels each). Canvases to learn from and held-out ones share no digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from efface.lab.digit_learning import TRAIN_SHARE, digit_pixels, learned, pictures
from efface.learn.pixel_towers import cell_spread, cells_of, load_pixel_head
from efface.learn.starts import StartConfig, new_encoder
from efface.learn.views.images import ImageViews, ViewConfig
from efface.learn.watch import probe_score
from efface.numerics.pixel_grid import matches
from efface.subjects.encoder import Encoder

CANVASES = 1024
HELD_OUT = 200
LABELLED = 200
"""Canvases whose 3200 tiles a probe is fitted on."""

TILES = 4
START: dict[str, Any] = {"architecture": "conv", "channels": (32, 64, 128), "image_size": 32, "patch": 8}
VIEWS: dict[str, Any] = {
    "crop_area": (0.25, 0.8), "flip": 0.0, "jitter": 1.0, "brightness": 0.4, "contrast": 0.0, "saturation": 0.0, "hue": 0.0,
    "grey": 0.0, "blur": 0.0, "noise": 0.05,
}  # fmt: skip
"""Crops that mostly overlap, brightness and noise; no flip: digits have a handedness."""


@dataclass(frozen=True)
class Mosaics:
    """Canvases with the classes of their tiles, [N, 4, 4] each."""

    train: Dataset
    held: Dataset
    train_tiles: Tensor
    held_tiles: Tensor


@cache
def mosaics(seed: int) -> Mosaics:
    """1024 canvases to learn from and 200 of other digits."""
    _, labels = digit_pixels()
    known, unseen = train_test_split(np.arange(len(labels)), train_size=TRAIN_SHARE, random_state=seed, stratify=labels)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x305A1C]))
    train, train_tiles = _canvases(known, CANVASES, rng, "canvas")
    held, held_tiles = _canvases(unseen, HELD_OUT, rng, "held")
    return Mosaics(train, held, train_tiles, held_tiles)


def _canvases(index: np.ndarray, count: int, rng: np.random.Generator, prefix: str) -> tuple[Dataset, Tensor]:
    pixels, labels = digit_pixels()
    chosen = rng.choice(index, (count, TILES, TILES))
    side = TILES * pixels.shape[1]
    canvases = pixels[chosen].transpose(0, 1, 3, 2, 4).reshape(count, side, side)
    rows = pictures(canvases, np.zeros(count, dtype=np.int64), range(count), prefix).remove_columns("label")
    return rows, torch.as_tensor(labels[chosen])


def untrained_mosaic(seed: int) -> Encoder:
    """The encoder that recipes start from, with a map of 8 x 8 cells."""
    return new_encoder(StartConfig.parse({**START}, owner="start"), "image", (), seed)


def mosaic_learned(recipe: str, seed: int, **config: Any) -> Encoder:
    """The encoder that a recipe trains on mosaics, from the cache where it is there."""
    return learned(recipe, seed, mosaics(seed).train, **{"start": START, "views": VIEWS, **config})


def cell_maps(encoder: Encoder, inputs: dict[str, Tensor], head: nn.Module | None = None) -> Tensor:
    """[N, D, 8, 8] of the encoder, or after its pixel-wise head; in evaluation mode."""
    with encoder.evaluating():
        maps = encoder.maps(inputs)
        return (maps if head is None else head.to(maps.device)(maps)).float().cpu()


def head_of(encoder: Encoder) -> nn.Module:
    """The pixel-wise head that was trained with this encoder."""
    return load_pixel_head(Path(encoder.source))


def matching(encoder: Encoder, seed: int, head: nn.Module | None = None) -> float:
    """Share of the cells of one crop with a match whose most similar cell (cosine) of another crop is a match.

    Two views are drawn of each held-out canvas, as in training.
    """
    inputs = encoder.prepare(list(mosaics(seed).held["image"]))
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in encoder.normalisation)
    images = (inputs["pixel_values"] * std + mean).clamp(0, 1)
    draw, generator = ImageViews(ViewConfig.parse(VIEWS)), torch.Generator().manual_seed(seed)
    cells, boxes = [], []
    for _ in range(2):
        views, box = draw(images, generator)
        maps = cell_maps(encoder, {"pixel_values": (views - mean) / std}, head)
        cells.append(nn.functional.normalize(cells_of(maps), dim=2))
        boxes.append(box / images.shape[2])
    side = round(cells[0].shape[1] ** 0.5)
    match = matches(boxes[0], boxes[1], ((side, side), (side, side)))
    nearest = (cells[0] @ cells[1].transpose(1, 2)).argmax(2, keepdim=True)
    right = match.gather(2, nearest)[..., 0]
    return float(right[match.any(2)].float().mean())


def tile_probe(encoder: Encoder, seed: int) -> float:
    """Accuracy of a logistic regression of a tile's digit from the mean of its 2 x 2 cells, on held-out canvases."""
    data = mosaics(seed)
    known = data.train.select(range(LABELLED))
    rows = []
    for part in (known, data.held):
        maps = cell_maps(encoder, encoder.prepare(list(part["image"])))
        pooled = nn.functional.adaptive_avg_pool2d(maps, TILES)
        rows.append(cells_of(pooled).flatten(0, 1))
    return probe_score(rows[0], data.train_tiles[:LABELLED].flatten(), rows[1], data.held_tiles.flatten())


def spread(encoder: Encoder, seed: int, head: nn.Module | None = None) -> float:
    """See `cell_spread`: of the cells of held-out canvases."""
    return cell_spread(cells_of(cell_maps(encoder, encoder.prepare(list(mosaics(seed).held["image"])), head)))
