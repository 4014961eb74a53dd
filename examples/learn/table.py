"""All recipes of one tower and the core objectives on two data sets at equal budget; prints docs/results/learn.md.

    python table.py [WORLD ...] > learn.md      worlds: digits mnist

Every recipe sees the same rows, gentle views and number of passes, from the same small convolutional encoder; what of a
recipe is bound to the size of the data (prototypes, queues, memories, epochs of warm-up) is set once below, and not tuned.
Three seeds; finished models are kept in EFFACE_CACHE, so that the command goes on where it stopped.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from datasets import Dataset

from efface.lab.digit_learning import GENTLE, START, digit_split, pictures
from efface.lab.mnist import mnist_rows
from efface.learn.compare import Comparison, compare, markdown
from efface.train.reference import cache_folder

SEEDS = (0, 1, 2)
CORE = ["info-nce", "nt-xent", "moco", "simple-contrastive", "hard-contrastive", "triplet", "sup-con", "sup-nt-xent"]
RECIPES = [
    "dcl", "moco-dcl", "mochi", "mv-infonce", "mv-dhel", "mv-pwe", "mv-avg", "mv-pvc", "cacr", "cacr-moco", "cacr-moco-v3",
    "swav", "beclr", "pixcontrast", "pixpro", "simlap", "cmim", "mcl",
]  # fmt: skip
SHARED: dict[str, Any] = {
    "batch_size": 128,
    "learning_rate": 1e-3,
    "optimizer": "adamw",
    "views": GENTLE,
    "projector": 64,
}
SMALL = {"queue_size": 512, "momentum": 0.99}
OWN: dict[str, dict[str, Any]] = {
    "moco": {"queue_size": 512, "momentum": 0.99, "temperature": 0.2},
    "moco-dcl": SMALL,
    "cacr-moco": SMALL,
    "mochi": {**SMALL, "temperature": 0.2},
    "swav": {"prototypes": 50, "small_crops": 0, "queue_size": 0, "freeze": 1.0, "hidden": 128},
    "beclr": {
        "clusters": 30,
        "rows_per_cluster": 16,
        "memory_start": 5,
        "recluster": 5,
        "mask_patch": 2,
        "learning_rate": 1e-3,
    },
    "mcl": {"clusters": 4, "stages": 3, "stage_batch_size": 32},
}


def digits() -> tuple[Dataset, Dataset]:
    """1078 and 719 of scikit-learn's digits, 8 x 8."""
    return digit_split(0)


def mnist() -> tuple[Dataset, Dataset]:
    """2000 and 2000 of MNIST's test images, halved to 14 x 14."""
    found = []
    for part, count in zip(mnist_rows(0), (2000, 2000), strict=True):
        rows = part.select(range(count)).with_format("numpy")[:]
        pixels = rows["features"].reshape(count, 14, 2, 14, 2).mean((2, 4))
        found.append(pictures((pixels * 255).round().astype(np.uint8), np.asarray(rows["label"]), rows["id"], "mnist"))
    return found[0], found[1]


WORLDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "digits": (digits, {"epochs": 20, "start": START}),
    "mnist": (mnist, {"epochs": 8, "start": {**START, "image_size": 14, "patch": 7}}),
}


def table(world: str) -> Comparison:
    """Train and read everything on one data set."""
    rows, settings = WORLDS[world]
    known, unseen = rows()
    folder = cache_folder() / "examples" / f"learn-{world}"
    return compare([*CORE, *RECIPES], known, folder, test=unseen, seeds=SEEDS, own=OWN, **SHARED, **settings)


if __name__ == "__main__":
    for name in sys.argv[1:] or list(WORLDS):
        found = table(name)
        print(f"\n### {name}: {found.rows} rows to train on, {found.unseen} unseen\n\n{markdown(found)}", flush=True)
