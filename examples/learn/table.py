"""All recipes of one tower and the core objectives on two data sets at equal budget; prints docs/results/learn.md.

    python table.py [WORLD ...] > learn.md      worlds: digits mnist

Every recipe sees the same rows, gentle views and number of passes, from the same small convolutional encoder; what of a
recipe is bound to the size of the data (prototypes, queues, memories, epochs of warm-up) is set once below, and not tuned.
Three seeds; finished models are kept in EFFACE_CACHE, so that the command goes on where it stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path
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
PLAIN = {**GENTLE, "shift": 0.0, "rotate": 0.0, "noise": 0.0}
PIXELS = {
    "projector": 0,
    "views": {**GENTLE, "rotate": 0.0, "shift": 0.0, "crop_area": (0.5, 1.0)},
    "head_hidden": 128,
    "head_width": 64,
}
OWN: dict[str, dict[str, Any]] = {
    "moco": {**SMALL, "temperature": 0.2},
    "moco-dcl": SMALL,
    "cacr-moco": SMALL,
    "mochi": {**SMALL, "hard": 64, "mixed": 32, "with_anchor": 16, "synthesis_epoch": 1.0},
    "swav": {"prototypes": 50, "small_crops": 0, "queue_size": 0, "hidden": 128},
    "beclr": {"clusters": 30, "rows_per_cluster": 16, "memory_start": 3, "recluster": 3, "mask_patch": 2},
    "pixpro": PIXELS,
    "pixcontrast": PIXELS,
    "simlap": {"projector": 0, "width": 64, "hidden": 128, "label_width": 64, "gate_hidden": 128},
    "cmim": {"projector": 0, "views": PLAIN},
    "mcl": {"clusters": 4, "stages": 3, "stage_batch_size": 32},
}
"""Pixel-wise recipes refuse rotations, of which boxes do not tell, and take crops; cMIM sees pictures as they are."""


def digits() -> tuple[Dataset, Dataset]:
    """1078 and 719 of scikit-learn's digits, 8 x 8."""
    return digit_split(0)


def mnist() -> tuple[Dataset, Dataset]:
    """1000 and 2000 of MNIST's test images, halved to 14 x 14."""
    found = []
    for part, count in zip(mnist_rows(0), (1000, 2000), strict=True):
        rows = part.select(range(count)).with_format("numpy")[:]
        pixels = rows["features"].reshape(count, 14, 2, 14, 2).mean((2, 4))
        found.append(pictures((pixels * 255).round().astype(np.uint8), np.asarray(rows["label"]), rows["id"], "mnist"))
    return found[0], found[1]


WORLDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "digits": (digits, {"epochs": 10, "start": START}),
    "mnist": (mnist, {"epochs": 6, "start": {**START, "image_size": 14, "patch": 7}}),
}


def table(world: str) -> Comparison:
    """Train and read everything on one data set."""
    rows, settings = WORLDS[world]
    known, unseen = rows()
    folder = cache_folder() / "examples" / f"learn-{world}"
    return compare([*CORE, *RECIPES], known, folder, test=unseen, seeds=SEEDS, own=OWN, **SHARED, **settings)


if __name__ == "__main__":
    print((Path(__file__).parent / "head.md").read_text(encoding="utf-8").rstrip())
    for name in sys.argv[1:] or list(WORLDS):
        found = table(name)
        print(f"\n### {name}: {found.rows} rows to train on, {found.unseen} unseen\n\n{markdown(found)}", flush=True)
