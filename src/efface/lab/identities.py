"""Identities: classifiers whose task is not the person, each with some persons to forget.

One family for the proofs on forgetting persons. Sets are cut by person (`efface.data.identity_split`): `holdout` holds
unseen persons, `evaluate["test"]` the rows on which the task is judged. Built once and cached.

- `digit_subjects`: 360 of scikit-learn's digits are the "subjects"; each gives six noisy, shifted copies of itself, and the
  task is to read the digit. 120 subjects are trained on, 24 of them are to be forgotten, 200 are the test set, 40 are unseen.
- `faces` (needs `EFFACE_DATA`): the 40 persons of ORL with ten pictures each. Five of a person's pictures are mirrored; the
  task is to say which, so that the label does not depend on the person. It can be learnt, because most of the pictures are lit
  from the left, and it can be remembered. 6 persons are to be forgotten, 18 kept, 8 tested, 8 unseen.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image

from efface.data.identity_split import IdentitySplit, split_identities
from efface.errors import InputError
from efface.lab.classified import Classified, build, labelled
from efface.lab.emoji import data_folder
from efface.learn.recipes.classifier import ClassifierConfig
from efface.subjects.factory import ImageForm

SUBJECTS = {"forget": 24, "retain": 96, "test": 200, "unseen": 40}
COPIES = 6
NOISE = 0.15
"""Standard deviation of a pixel's noise, pixels from 0 to 1: the original reads 0.69 of the test rows, as the specification's."""

DIGITS = ClassifierConfig(
    learning_rate=0.05, momentum=0.9, weight_decay=5e-4, epochs=60, batch_size=64, max_grad_norm=1e9,
    arguments={"hidden": [128, 64]},
)  # fmt: skip

PERSONS = {"forget": 6, "retain": 18, "test": 8, "unseen": 8}
HEIGHT, WIDTH = 28, 23
FACES = ClassifierConfig(
    learning_rate=0.05, momentum=0.9, weight_decay=5e-4, epochs=60, batch_size=32, max_grad_norm=1e9,
    image=ImageForm(height=HEIGHT, width=WIDTH, mode="L", mean=(0.5,), std=(0.25,)),
)  # fmt: skip


def digit_split(seed: int) -> IdentitySplit:
    """Copies of 360 digits, cut by the digit that they are copies of."""
    from sklearn.datasets import load_digits

    bundle: Any = load_digits()
    rng = np.random.default_rng([seed, 0xFACE])
    chosen = rng.permutation(len(bundle.target))[: sum(SUBJECTS.values())]
    images = (bundle.images[chosen] / 16).repeat(COPIES, axis=0)  # [360 * 6, 8, 8]
    moved = np.stack([shifted(image, *rng.integers(-1, 2, 2)) for image in images])
    noisy = moved + rng.normal(0, NOISE, moved.shape)
    ids = [f"{subject}-{copy}" for subject in chosen for copy in range(COPIES)]
    rows = labelled(noisy.reshape(len(noisy), -1), bundle.target[chosen].repeat(COPIES), ids)
    rows = rows.add_column("identity", [name.partition("-")[0] for name in ids])
    return _cut(rows, SUBJECTS, seed)


def _cut(rows: Dataset, persons: Mapping[str, int], seed: int) -> IdentitySplit:
    return split_identities(
        rows, forget=persons["forget"], test=persons["test"], unseen=persons["unseen"], seed=seed
    )  # fmt: skip


def shifted(image: npt.NDArray[Any], down: int, right: int) -> npt.NDArray[Any]:
    """A picture [H, W] moved by whole pixels, zeros where nothing is."""
    height, width = image.shape
    found = np.zeros_like(image)
    found[max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)] = image[
        max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)
    ]
    return found


def digit_subjects(seed: int = 0, *, retrained: int = 1) -> Classified:
    """The classifiers of noisy copies.

    Args:
        seed: of the subjects, their copies, the split and the starting weights.
        retrained: how many models without the forgotten subjects.
    """
    request = digit_split(seed).request()
    return build(request, DIGITS.model_copy(update={"seed": seed}), retrained=retrained, name="digit subjects")


def face_split(seed: int, folder: Path | None = None) -> IdentitySplit:
    """The faces, five of ten of each person mirrored, cut by person.

    Args:
        folder: with `faces_56x46.npz`; default `orl_faces` in `EFFACE_DATA`.

    Raises:
        InputError: the faces are not there.
    """
    path = (folder or data_folder() / "orl_faces") / "faces_56x46.npz"
    if not path.exists():
        raise InputError(f"no file {path}", "the ORL faces [40, 10, 56, 46]", "set EFFACE_DATA")
    with np.load(path, allow_pickle=False) as file:
        faces = file["faces"]
    rng = np.random.default_rng([seed, 0xFACE])
    columns: dict[str, list[Any]] = {"id": [], "image": [], "label": [], "identity": []}
    for person, pictures in enumerate(faces):
        mirrored = rng.permutation(len(pictures)) < len(pictures) // 2
        for number, (picture, turned) in enumerate(zip(pictures, mirrored, strict=True)):
            columns["id"].append(f"{person}-{number}")
            columns["image"].append({"bytes": _png(picture[:, ::-1] if turned else picture), "path": None})
            columns["label"].append(int(turned))
            columns["identity"].append(str(person))
    kinds = Features({
        "id": Value("string"), "image": {"bytes": Value("binary"), "path": Value("string")},
        "label": ClassLabel(names=["as taken", "mirrored"]), "identity": Value("string"),
    })  # fmt: skip
    rows = Dataset.from_dict(columns, features=kinds)
    return _cut(rows, PERSONS, seed)


def _png(picture: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, format="PNG")
    return buffer.getvalue()


def faces(seed: int = 0, *, retrained: int = 1) -> Classified:
    """The classifiers of mirrored faces.

    Args:
        seed: of the mirrored pictures, the split and the starting weights.
        retrained: how many models without the forgotten persons.
    """
    request = face_split(seed).request()
    return build(request, FACES.model_copy(update={"seed": seed}), retrained=retrained, name="faces")


__all__ = ["digit_split", "digit_subjects", "face_split", "faces", "shifted"]
