"""Stripes and digits: background pictures of stripes in one of six orientations, target pictures of stripes with a digit.

12 x 12 pixels: 0.3 x sinusoidal stripes of a random phase, in target pictures + 0.7 x a scikit-learn digit (8 x 8, in the
middle). Which set a picture is from is known, orientation and digit are not. Sets to learn from and unseen ones share no digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.model_selection import train_test_split
from torch import Tensor

from efface.lab.digit_learning import TRAIN_SHARE, digit_pixels, pictures

SIDE = 12
ORIENTATIONS = 6
ROWS = 2048
UNSEEN = 1024
STRIPES, DIGIT = 0.3, 0.7
WAVE = 4.0
"""Pixels from one stripe to the next."""

VIEWS: dict[str, Any] = {
    "crop_area": (0.8, 1.0), "rotate": 8.0, "jitter": 0.0, "grey": 0.0, "blur": 0.0, "noise": 0.05,
}  # fmt: skip
"""Small rotation, scale and noise: neither the orientation nor the digit is lost."""


@dataclass(frozen=True)
class Striped:
    """Pictures with the set they are from as the label (0: background, 1: target), and their factors.

    Attributes:
        data: [N] rows, half of them target.
        target: [N] bool.
        orientation: [N] 0 to 5.
        digit: [N] 0 to 9 of the target; -1 of the background.
    """

    data: Dataset
    target: Tensor
    orientation: Tensor
    digit: Tensor

    def items(self) -> list[Any]:
        """The target's pictures."""
        chosen = self.data.select(self.target.nonzero()[:, 0].tolist())
        return list(chosen["image"])


@cache
def striped(seed: int) -> tuple[Striped, Striped]:
    """2048 pictures to learn from and 1024 unseen ones."""
    _, labels = digit_pixels()
    known, unseen = train_test_split(np.arange(len(labels)), train_size=TRAIN_SHARE, random_state=seed, stratify=labels)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x57121]))
    return _drawn(known, ROWS, rng, "striped"), _drawn(unseen, UNSEEN, rng, "unseen")


def _drawn(index: np.ndarray, count: int, rng: np.random.Generator, prefix: str) -> Striped:
    pixels, labels = digit_pixels()
    orientation = rng.integers(0, ORIENTATIONS, count)
    found = STRIPES * stripes(orientation, rng.uniform(0, 2 * np.pi, count))
    target = np.arange(count) % 2 == 1
    chosen = rng.choice(index, count)
    room = (SIDE - pixels.shape[1]) // 2
    found[target, room:-room, room:-room] += DIGIT * pixels[chosen[target]] / 255
    rows = pictures((found * 255).round().astype(np.uint8), target.astype(np.int64), range(count), prefix)
    digit = np.where(target, labels[chosen], -1)
    return Striped(rows, torch.as_tensor(target), torch.as_tensor(orientation), torch.as_tensor(digit))


def stripes(orientation: np.ndarray, phase: np.ndarray) -> np.ndarray:
    """[N, 12, 12] waves from 0 to 1; orientation k lies at k / 6 of a half turn."""
    angle = orientation * np.pi / ORIENTATIONS
    y, x = np.mgrid[:SIDE, :SIDE]
    along = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    return np.asarray(0.5 + 0.5 * np.sin(2 * np.pi * along / WAVE + phase[:, None, None]))
