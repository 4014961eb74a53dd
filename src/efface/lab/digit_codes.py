"""Scikit-learn's digits as arrays of 64 values in [0, 1], and small auto-encoders of them with codes of 16 dimensions.

The encoder is an MLP 64-128-128-(2 x 16) on the values as they are, the decoder its mirror with a Bernoulli likelihood. The
same split as in `digit_learning`: 1078 rows to train on, 719 unseen ones.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from sklearn.model_selection import train_test_split
from torch import Tensor

from efface.lab.digit_learning import FEW, TRAIN_SHARE, digit_pixels
from efface.learn.contrastive import items_digest
from efface.learn.run import learn
from efface.learn.watch import knn_score, probe_score
from efface.run.digests import digest_value
from efface.subjects.auto_encoder import load_auto_encoder
from efface.subjects.encoder import Encoder
from efface.subjects.small_encoders import VectorEncoder, VectorEncoderConfig
from efface.train.engine import isolated_rng
from efface.train.reference import cache_folder

CODE = 16
WIDTHS = (128, 128)


@cache
def digit_arrays(seed: int) -> tuple[Dataset, Dataset]:
    """Rows to train on and unseen ones: `id`, `features` [64] in [0, 1], `label`."""
    pixels, labels = digit_pixels()
    index = np.arange(len(labels))
    known, unseen = train_test_split(index, train_size=TRAIN_SHARE, random_state=seed, stratify=labels)

    def part(rows: np.ndarray) -> Dataset:
        values = (pixels[rows].reshape(len(rows), -1) / 255).astype(np.float32)
        return Dataset.from_dict({
            "id": [f"digit{row}" for row in rows], "features": values, "label": labels[rows].tolist(),
        })  # fmt: skip

    return part(known), part(unseen)


def new_vectors(seed: int, widths: tuple[int, ...] = WIDTHS) -> Encoder:
    """An untrained MLP on the values as they are."""
    with isolated_rng(seed):
        return Encoder(VectorEncoder(VectorEncoderConfig(inputs=64, widths=widths)).eval(), source="from scratch")


def trained(recipe: str, seed: int, batch_size: int, updates: int, **config: Any) -> Path:
    """The folder of a model that a recipe trains on the arrays for a number of updates, from the cache where it is there."""
    data = digit_arrays(seed)[0]
    start = new_vectors(seed, WIDTHS if recipe == "cmim" else (*WIDTHS, CODE))
    settings = {
        "batch_size": batch_size, "epochs": updates * batch_size / len(data), "seed": seed, "learning_rate": 1e-3,
        "weight_decay": 0.0, "evaluations": 0, **config,
    }  # fmt: skip
    key = digest_value({
        "recipe": recipe, "settings": settings, "data": items_digest(data), "start": start.digest, "lab": "digit-codes 1",
    })  # fmt: skip
    folder = cache_folder() / "lab" / key.removeprefix("sha256:")[:24]
    learn(recipe, data, folder, model=start, **settings)
    return folder


def read_off(known: Tensor, unseen: Tensor, seed: int) -> dict[str, float]:
    """Accuracies on unseen rows: `knn` (5, cosine), `probe` from all training labels, `probe50` from 50 of them."""
    parts = digit_arrays(seed)
    labels, truth = (torch.tensor(part["label"]) for part in parts)
    few = torch.tensor(train_test_split(np.arange(len(labels)), train_size=FEW, random_state=seed, stratify=labels)[0])
    return {
        "knn": knn_score(known, labels, unseen, truth), "probe": probe_score(known, labels, unseen, truth),
        "probe50": probe_score(known[few], labels[few], unseen, truth),
    }  # fmt: skip


def code_scores(folder: Path, seed: int) -> dict[str, float]:
    """What mean codes and informative embeddings (`hidden_...`, standardised) give, the loss in nats, the deviation."""
    model = load_auto_encoder(folder)
    rows = [list(part.with_format("numpy")[:]["features"]) for part in digit_arrays(seed)]
    (mu, _), (mu_unseen, deviation) = (model.codes(part) for part in rows)
    known, unseen = (model.informative(part) for part in rows)
    mean, spread = known.mean(0), known.std(0).clamp(min=1e-6)
    inner = read_off((known - mean) / spread, (unseen - mean) / spread, seed)
    return {
        **read_off(mu, mu_unseen, seed), **{f"hidden_{name}": value for name, value in inner.items()},
        "loss": float(model.reconstruction_loss(rows[1]).mean()), "deviation": float(deviation.mean()),
    }  # fmt: skip


def view_scores(folder: Path, seed: int) -> dict[str, float]:
    """The same accuracies of an encoder without a decoder."""
    from efface.subjects.encoder import load_encoder

    encoder = load_encoder(folder)
    known, unseen = (encoder.embed(list(part.with_format("numpy")[:]["features"]), 512) for part in digit_arrays(seed))
    return read_off(known, unseen, seed)
