"""MNIST: a small convolutional classifier of real handwritten digits with a class, wrong labels or random rows to forget.

The 10,000 test images of MNIST (`EFFACE_DATA/mnist10k`): 6,000 to train, 2,000 unseen, by the seed; pixels from 0 to 1 at 28 x
28. As in `classified`, the original is trained on all rows and each retrained model without the forget set, from another seed.
"""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
from datasets import Dataset

from efface.data.request import Request
from efface.errors import InputError
from efface.lab.classified import DIGIT, SHARE, Classified, Task, build, labelled, of_class
from efface.lab.emoji import data_folder
from efface.learn.recipes.classifier import ClassifierConfig

TRAIN, TEST = 6000, 2000
MNIST = ClassifierConfig(
    factory="efface.subjects.networks:conv", learning_rate=0.05, momentum=0.9, weight_decay=5e-4, epochs=12, batch_size=64,
    max_grad_norm=1e9, arguments={"channels": 1, "side": 28, "outputs": 10, "widths": [8, 16], "features": 64},
)  # fmt: skip
"""12 passes of SGD, 30 for wrong labels, which take longer to be remembered."""


def mnist_rows(seed: int, folder: Path | None = None) -> tuple[Dataset, Dataset]:
    """Training and unseen rows, features [1, 28, 28].

    Raises:
        InputError: the images are not there.
    """
    place = folder or data_folder() / "mnist10k"
    if not place.exists():
        raise InputError(f"no folder {place}", "MNIST's test images in idx files", "set EFFACE_DATA")
    raw = [gzip.decompress((place / f"t10k-{name}-ubyte.gz").read_bytes()) for name in ("images-idx3", "labels-idx1")]
    images = np.frombuffer(raw[0], dtype=np.uint8, offset=16).reshape(-1, 1, 28, 28)
    labels = np.frombuffer(raw[1], dtype=np.uint8, offset=8)
    order = np.random.default_rng([seed, 0x3157]).permutation(len(labels))
    parts = (order[:TRAIN], order[TRAIN : TRAIN + TEST])
    train, test = (
        labelled(images[part] / np.float32(255), labels[part], [str(int(i)) for i in part]) for part in parts
    )
    return train, test


def mnist(seed: int = 0, task: Task = "class", *, retrained: int = 1) -> Classified:
    """The classifiers of MNIST.

    Args:
        seed: of the split, the wrong labels and the starting weights.
        task: `class` (the digit 3), `noisy` or `random` (a tenth of the rows).
        retrained: how many models without the forget set.
    """
    train, test = mnist_rows(seed)
    epochs, truth = MNIST.epochs, tuple[int, ...]()
    if task == "class":
        request = Request(forget=of_class(train, DIGIT), retain=of_class(train, DIGIT, False), holdout=test)
    else:
        rng = np.random.default_rng([seed, 7])
        chosen = sorted(rng.permutation(len(train))[: round(SHARE * len(train))].tolist())
        forget, truth = train.select(chosen), tuple(train.select(chosen)["label"])
        if task == "noisy":
            wrong = [(label + int(rng.integers(1, 10))) % 10 for label in truth]
            forget = forget.remove_columns("label").add_column("label", wrong, feature=train.features["label"])
            epochs = 30.0
        request = Request(
            forget=forget, retain=train.select(sorted(set(range(len(train))) - set(chosen))), holdout=test
        )
    made = build(
        request, MNIST.model_copy(update={"seed": seed, "epochs": epochs}), retrained=retrained, name=f"mnist {task}"
    )
    return replace(made, truth=truth)


__all__ = ["mnist", "mnist_rows"]
