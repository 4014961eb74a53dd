"""Digits turned by known angles: a number to regress on, and forty classes of which half are never seen in training.

`turned(seed)`: 2, 3 and 7, 12 x 12 pixels, turned by angles in [0, 90] degrees that are drawn once; column `target`.
`quarters(seed)`: every digit in the four rotations by 90 degrees, 40 classes (4 x digit + quarter); column `label`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures
from scipy import ndimage
from sklearn.model_selection import train_test_split

from efface.lab.digit_learning import TRAIN_SHARE, digit_pixels, pictures

ANGLED = (2, 3, 7)
"""Digits that no turn up to 90 degrees takes into each other or into themselves."""
LARGEST = 90.0
TURNS = 2
"""Angles that each digit is shown at."""
SIDE = 12
QUARTERS = 4


def turn(picture: np.ndarray, degrees: float, side: int = SIDE) -> np.ndarray:
    """[side, side] uint8: a grey picture enlarged and turned counter-clockwise about its centre, black beyond its edge."""
    large = ndimage.zoom(picture.astype(np.float64), side / picture.shape[0], order=1)
    found = ndimage.rotate(large, degrees, reshape=False, order=1, mode="constant", cval=0.0)
    turned: np.ndarray = found.clip(0, 255).round().astype(np.uint8)
    return turned


def _parts(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Digits to train on, and unseen ones: the split of `digit_split`."""
    known, unseen = train_test_split(np.arange(len(labels)), train_size=TRAIN_SHARE, random_state=seed, stratify=labels)
    return np.asarray(known), np.asarray(unseen)


@cache
def turned(seed: int) -> tuple[Dataset, Dataset]:
    """Turned pictures to train on, and of unseen digits; `target` is the angle in degrees."""
    pixels, labels = digit_pixels()
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x7012]))

    def part(index: np.ndarray) -> Dataset:
        chosen = np.sort(index[np.isin(labels[index], ANGLED)])
        places = np.repeat(chosen, TURNS)
        angles = rng.uniform(0, LARGEST, len(places))
        rows: dict[str, Any] = {
            "id": [f"digit{place}-{i % TURNS}" for i, place in enumerate(places)],
            "image": [
                Pictures.fromarray(turn(pixels[place], angle)).convert("RGB")
                for place, angle in zip(places, angles, strict=True)
            ],
            "target": angles.tolist(),
        }
        features = Features({"id": Value("string"), "image": Image(), "target": Value("float64")})
        return Dataset.from_dict(rows, features=features).cast_column("image", Image(decode=False))

    known, unseen = _parts(labels, seed)
    return part(known), part(unseen)


def rounded(data: Dataset, grid: float) -> Dataset:
    """The targets rounded to a grid, and as `label` the number of the grid's point."""
    steps = [round(target / grid) for target in data["target"]]
    plain = data.remove_columns("target")
    return plain.add_column("target", [step * grid for step in steps]).add_column("label", steps)


@cache
def quarters(seed: int) -> dict[str, Dataset]:
    """`seen` and `new` classes (digits 0 to 4 and 5 to 9), each of digits to train on and of unseen ones (`... unseen`)."""
    pixels, labels = digit_pixels()
    found = {}
    for name, index in zip(("", " unseen"), _parts(labels, seed), strict=True):
        for half, digits in (("seen", range(5)), ("new", range(5, 10))):
            places = np.repeat(np.sort(index[np.isin(labels[index], list(digits))]), QUARTERS)
            each = np.tile(np.arange(QUARTERS), len(places) // QUARTERS)
            shown = np.stack([np.rot90(pixels[place], quarter) for place, quarter in zip(places, each, strict=True)])
            classes = QUARTERS * labels[places] + each
            found[half + name] = pictures(
                shown, classes - classes.min(), [f"{p}-{q}" for p, q in zip(places, each, strict=True)]
            )
    return found
