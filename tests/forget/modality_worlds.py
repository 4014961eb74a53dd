"""A classifier of pictures and one of texts, with rows of three classes and of six persons; both learn them in a second."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pillow
from row_models import WORDS, model_of

from efface.data.request import Request
from efface.subjects.answers import answer_logits
from efface.subjects.factory import FactoryForm, ImageForm
from efface.subjects.predictor import Predictor
from efface.train.engine import isolated_rng

Modality = Literal["image", "text"]
MODALITIES: tuple[Modality, ...] = ("image", "text")
LABELS = ["a", "b", "c"]
N = 36


def modality_rows(modality: Modality, n: int = N, seed: int = 0) -> Dataset:
    """Texts that begin with a word of their class, and pictures that are bright in its third."""
    rng = np.random.default_rng(seed)
    labels = [i % 3 for i in range(n)]
    columns: dict[str, Any] = {"id": [f"{seed}-{i}" for i in range(n)], "label": labels}
    kinds: dict[str, Any] = {"id": Value("string"), "label": ClassLabel(names=LABELS)}
    if modality == "text":
        columns["text"] = _texts()[seed * N : seed * N + n]
        kinds["text"] = Value("string")
    else:
        grey = rng.integers(0, 90, (n, 6, 6), dtype=np.uint8)
        for picture, y in zip(grey, labels, strict=True):
            picture[2 * y : 2 * y + 2] += 120
        columns["image"] = [Pillow.fromarray(picture) for picture in grey]
        kinds["image"] = Image()
    columns["identity"] = [f"p{i // 3 % 6}" for i in range(n)]  # of every person rows of every class
    kinds["identity"] = Value("string")
    return Dataset.from_dict(columns, features=Features(kinds))


@cache
def _texts() -> list[str]:
    """Twice N distinct texts of three to six words; the first is one of the two of the class."""
    rng = np.random.default_rng(0)
    found: dict[str, None] = {}
    while len(found) < 2 * N:
        i = len(found)
        found[" ".join([WORDS[2 * (i % 3) + i // 3 % 2], *rng.choice(WORDS[6:], 2 + i % 4)])] = None
    return list(found)


def modality_request(modality: Modality, kind: str) -> Request:
    """Forget the class b, every fifth row, or the person p3."""
    data = modality_rows(modality)
    chosen = {
        "class": [i for i, label in enumerate(data["label"]) if label == 1],
        "rows": list(range(0, N, 5)),
        "person": [i for i, name in enumerate(data["identity"]) if name == "p3"],
    }[kind]
    kept = [i for i in range(N) if i not in set(chosen)]
    return Request(forget=data.select(chosen), retain=data.select(kept), holdout=modality_rows(modality, 18, 1))


def _fresh(modality: Modality) -> Predictor:
    if modality == "text":
        return model_of("bert")
    form = FactoryForm(
        factory="efface.subjects.networks:conv", modality="image", labels=tuple(LABELS),
        arguments={"channels": 1, "side": 6, "outputs": 3, "widths": [6], "features": 8, "dropout": 0.1},
        image=ImageForm(height=6, width=6, mode="L", mean=(0.4,), std=(0.25,)),
    )  # fmt: skip
    with isolated_rng(0):
        return Predictor(form.build().eval(), form=form)


@cache
def _state(modality: Modality) -> dict[str, torch.Tensor]:
    subject = _fresh(modality)
    batch = subject.batch(subject.encode_rows(modality_rows(modality)))
    steps = torch.optim.Adam(subject.model.parameters(), lr=0.01)
    for _ in range(60):
        steps.zero_grad()
        (-answer_logits(subject.model, batch).logp_sum.mean()).backward()
        steps.step()
    return {name: tensor.detach().clone() for name, tensor in subject.weights().items()}


def modality_model(modality: Modality) -> Predictor:
    """Trained; a fresh copy each time."""
    subject, state = _fresh(modality), _state(modality)
    with torch.no_grad():
        for name, tensor in subject.weights().items():
            tensor.copy_(state[name])
    subject.changed()
    return subject
