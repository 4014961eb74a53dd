"""Two digits in one colour: three features of one picture, of which contrastive learning takes the easy ones first.

A strip of 8 x 16 pixels: on the left digit A, bright, on the right digit B at half intensity, both in one of six colours. It
lies in the middle of a black square of 16 x 16 pixels, since our small encoders take squares. Colour, A and B are
independent. Colour is the easiest to tell apart, then A; B is what gets suppressed.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures
from sklearn.model_selection import train_test_split

from efface.lab.digit_learning import TRAIN_SHARE, digit_pixels
from efface.learn.contrastive import items_digest
from efface.learn.run import learn
from efface.learn.watch import probe_score
from efface.run.digests import digest_value
from efface.subjects.encoder import Encoder
from efface.train.reference import cache_folder

COLOURS = np.array([[1, 0.15, 0.15], [0.15, 1, 0.15], [0.2, 0.3, 1], [1, 1, 0.1], [1, 0.1, 1], [0.1, 1, 1]])
MARKS = ("colour", "a", "b")
TRAIN, UNSEEN = 2000, 1000
KEEP_COLOUR: dict[str, Any] = {
    "crop_area": (1.0, 1.0), "shift": 0.06, "rotate": 8.0, "jitter": 0.0, "grey": 0.0, "blur": 0.0, "noise": 0.1,
}  # fmt: skip
START: dict[str, Any] = {"architecture": "conv", "channels": (32, 64, 64), "image_size": 16, "patch": 8}


@cache
def two_digits(seed: int) -> tuple[Dataset, Dataset]:
    """2000 pictures to learn from and 1000 unseen ones of other digits, with the columns `colour`, `a` and `b`."""
    pixels, labels = digit_pixels()
    pools = train_test_split(np.arange(len(labels)), train_size=TRAIN_SHARE, random_state=seed, stratify=labels)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0x2D16]))

    def part(pool: np.ndarray, count: int, name: str) -> Dataset:
        left, right = rng.choice(pool, count), rng.choice(pool, count)
        colour = rng.integers(len(COLOURS), size=count)
        images = np.zeros((count, 16, 16, 3))
        images[:, 4:12, :8] = pixels[left][..., None] * COLOURS[colour][:, None, None]
        images[:, 4:12, 8:] = 0.5 * pixels[right][..., None] * COLOURS[colour][:, None, None]
        kinds = Features({
            "id": Value("string"), "image": Image(), **{mark: Value("int64") for mark in MARKS},
        })  # fmt: skip
        rows = {
            "id": [f"{name}{i}" for i in range(count)],
            "image": [Pictures.fromarray(image) for image in images.round().astype(np.uint8)],
            "colour": colour.tolist(), "a": labels[left].tolist(), "b": labels[right].tolist(),
        }  # fmt: skip
        return Dataset.from_dict(rows, features=kinds).cast_column("image", Image(decode=False))

    return part(pools[0], TRAIN, "known"), part(pools[1], UNSEEN, "unseen")


def learned(recipe: str, seed: int, split: int, *, model: Encoder | None = None, **config: Any) -> Encoder:
    """The encoder that a recipe trains on a split's pictures, from the cache where it is there.

    Args:
        recipe: by name.
        seed: of the start, the order and the views.
        split: which pictures.
        model: what to begin with.
        config: the recipe's settings.
    """
    rows = two_digits(split)[0].select_columns(["id", "image"])
    settings = {"views": KEEP_COLOUR, "start": START, "seed": seed, "learning_rate": 1e-3, "evaluations": 0, **config}
    key = digest_value({
        "recipe": recipe, "settings": settings, "data": items_digest(rows), "lab": "two-digits 1",
        "start": None if model is None else model.digest,
    })  # fmt: skip
    folder = cache_folder() / "lab" / key.removeprefix("sha256:")[:24]
    found: Encoder = learn(recipe, rows, folder, model=model, **settings)
    return found


def probes(encoders: list[Encoder], split: int) -> dict[str, float]:
    """Accuracy of a linear probe of colour, A and B on unseen pictures, on the concatenated unit rows of encoders."""
    known, unseen = two_digits(split)
    x, z = (torch.cat([one.embed(list(part["image"]), 512) for one in encoders], dim=1) for part in (known, unseen))
    return {mark: probe_score(x, torch.tensor(known[mark]), z, torch.tensor(unseen[mark])) for mark in MARKS}
