"""Scikit-learn's digits for recipes: pictures of 8 x 8, gentle views, a small convolutional encoder, and what it learns.

1078 digits to train on and 719 unseen ones (60 to 40, stratified), 50 labels for the few-label figures.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pictures
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from efface.learn.run import learn
from efface.learn.starts import StartConfig, new_encoder
from efface.learn.watch import knn_score, probe_score
from efface.run.digests import digest_value
from efface.subjects.encoder import Encoder
from efface.train.reference import cache_folder

TRAIN_SHARE = 0.6
FEW = 50
GENTLE: dict[str, Any] = {
    "crop_area": (1.0, 1.0), "shift": 0.12, "rotate": 15.0, "jitter": 0.0, "grey": 0.0, "blur": 0.0, "noise": 0.1,
}  # fmt: skip
"""Small affine maps and noise: what keeps a digit of 8 x 8 pixels readable."""

START: dict[str, Any] = {"architecture": "conv", "channels": (32, 64, 128), "image_size": 8, "patch": 4}


def pictures(pixels: np.ndarray, labels: np.ndarray, ids: Any, prefix: str = "digit") -> Dataset:
    """Rows of pictures with labels.

    Args:
        pixels: [N, H, W] or [N, H, W, 3] uint8.
        labels: [N].
        ids: N numbers.
    """
    features = Features({
        "id": Value("string"), "image": Image(), "label": ClassLabel(names=[str(i) for i in range(int(labels.max()) + 1)]),
    })  # fmt: skip
    rows = {
        "id": [f"{prefix}{i}" for i in ids],
        "image": [Pictures.fromarray(picture).convert("RGB") for picture in pixels],
        "label": [int(label) for label in labels],
    }
    return Dataset.from_dict(rows, features=features).cast_column("image", Image(decode=False))


@cache
def digit_pixels() -> tuple[np.ndarray, np.ndarray]:
    """[1797, 8, 8] uint8 and [1797] labels."""
    images, labels = load_digits(return_X_y=True)
    return (images.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8), labels.astype(np.int64)


@cache
def digit_split(seed: int) -> tuple[Dataset, Dataset]:
    """Digits to train on, and unseen ones."""
    pixels, labels = digit_pixels()
    known, unseen = train_test_split(np.arange(len(labels)), train_size=TRAIN_SHARE, random_state=seed, stratify=labels)
    return pictures(pixels[known], labels[known], known), pictures(pixels[unseen], labels[unseen], unseen)


def untrained(seed: int, **start: Any) -> Encoder:
    """The encoder that recipes start from, 3 x 3 convolutions of 32, 64 and 128 channels and their mean."""
    return new_encoder(StartConfig.parse({**START, **start}, owner="start"), "image", (), seed)


def learned(recipe: str, seed: int, data: Dataset | None = None, **config: Any) -> Encoder:
    """The encoder that a recipe trains on digits, from the cache where it is there.

    Args:
        recipe: by name.
        seed: of the split, the start, the order and the views.
        data: in place of the digits to train on.
        config: the recipe's settings; gentle views, AdamW at 1e-3 and a head of 64 unless set.
    """
    return learned_at(recipe, seed, data, **config)[0]


def learned_at(recipe: str, seed: int, data: Dataset | None = None, **config: Any) -> tuple[Encoder, Path]:
    """As `learned`, and the folder of the model, where a recipe leaves what it trains beside the encoder.

    Args:
        config: also `model`, an encoder to go on from in place of a fresh one.
    """
    rows = digit_split(seed)[0] if data is None else data
    model = config.pop("model", None)
    settings = {
        "views": GENTLE, "start": START, "seed": seed, "learning_rate": 1e-3, "evaluations": 0, **config
    }  # fmt: skip
    from efface.learn.contrastive import items_digest

    known = {"recipe": recipe, "settings": settings, "data": items_digest(rows), "lab": "digit-learning 1"}
    if model is not None:
        known["model"] = model.digest
    folder = cache_folder() / "lab" / digest_value(known).removeprefix("sha256:")[:24]
    found: Encoder = learn(recipe, rows, folder, model=model, **settings)
    return found, folder


def scores(encoder: Encoder, seed: int) -> dict[str, float]:
    """Accuracies on unseen digits: `knn`, `probe` from all training labels, `knn50`, `probe50` from 50 of them."""
    known, unseen = digit_split(seed)
    x, z = (encoder.embed(list(part["image"]), 512) for part in (known, unseen))
    labels, truth = torch.tensor(known["label"]), torch.tensor(unseen["label"])
    few = torch.tensor(train_test_split(np.arange(len(labels)), train_size=FEW, random_state=seed, stratify=labels)[0])
    return {
        "knn": knn_score(x, labels, z, truth), "probe": probe_score(x, labels, z, truth),
        "knn50": knn_score(x[few], labels[few], z, truth), "probe50": probe_score(x[few], labels[few], z, truth),
    }  # fmt: skip
