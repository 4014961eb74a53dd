"""Classified: small classifiers and a regressor with something to forget, each with the model that never saw it.

One family for all proofs about classifiers: a network from `efface.subjects.networks`, a split, a request, the `original`
trained on everything and `retrained` models from other seeds trained without the forget set: how far they differ from each
other is the noise floor of every figure. Built once and cached.

- `digits`: scikit-learn's 1,797 digits, 70 % for training, an MLP 64-128-64-10. To forget: the class 3, or a tenth of the
  rows whose labels were made wrong before training, or a tenth of clean rows.
- `diabetes`: scikit-learn's 442 patients, 10 columns, an MLP 10-64-64-1 on standardised data; the lowest quarter of the
  targets is to be forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Value, concatenate_datasets

from efface.data.request import Request, data_digest
from efface.errors import ConfigError, nearest
from efface.learn.recipes.classifier import ClassifierConfig, learn
from efface.run.digests import digest_value
from efface.run.files import make_folder
from efface.subjects.predictor import Predictor
from efface.train.reference import cache_folder

Task = Literal["class", "noisy", "random"]
TASKS: tuple[Task, ...] = ("class", "noisy", "random")
DIGIT = 3
SHARE = 0.1


@dataclass(frozen=True)
class Classified:
    """A model with something to forget.

    Attributes:
        request: forget and retain set; `holdout` is the test set (for the class task: of the kept classes), and
            `evaluate["forget_test"]` test rows of the forgotten class, where there is one.
        original: trained on forget and retain set.
        retrained: trained on the retain set alone, each from a seed of its own.
        truth: for wrong labels, the right ones of the forget set.
        scale: for a regressor, what a unit of its target is in units of the data.
        seconds: wall-clock seconds of this call.
    """

    request: Request
    original: Predictor
    retrained: tuple[Predictor, ...]
    truth: tuple[int, ...] = ()
    scale: float = 1.0
    seconds: float = 0.0


def build(
    request: Request, config: ClassifierConfig, *, retrained: int = 1, seeds_from: int = 1000, name: str = "classified",
    start: Callable[[int], Predictor] | None = None,
) -> Classified:  # fmt: skip
    """Train original and retrained models for a request, or load them from the cache.

    Args:
        request: with a retain set.
        config: of the original; its seed too.
        retrained: how many models are trained without the forget set.
        seeds_from: the k-th of them has the seed `config.seed + seeds_from * (k + 1)`.
        start: seed -> a model to train, where `config` cannot say it; must depend on the seed alone.
    """
    begun = time.perf_counter()
    assert request.retain is not None
    both = [request.retain, request.forget]
    key = {
        "lab": name, "config": config.model_dump(mode="json"), "data": [data_digest(part) for part in both],
        "torch": torch.__version__,
    }  # fmt: skip
    folder = make_folder(cache_folder() / "lab" / digest_value(key).removeprefix("sha256:")[:24])
    original = _trained(both, folder / "original", config, start, f"{name}: original")
    others = []
    for k in range(retrained):
        own = config.model_copy(update={"seed": config.seed + seeds_from * (k + 1)})
        others.append(_trained([request.retain], folder / f"retrained-{k}", own, start, f"{name}: retrained {k}"))
    return Classified(request, original, tuple(others), seconds=time.perf_counter() - begun)


def _trained(
    data: Sequence[Dataset], out: Path, config: ClassifierConfig, start: Callable[[int], Predictor] | None, label: str
) -> Predictor:
    model = None if start is None else start(config.seed)
    return learn([concatenate_datasets(list(data))], out, config, model=model, label=label)


# -- digits --------------------------------------------------------------------------------------------------------

DIGITS = ClassifierConfig(
    learning_rate=0.05, momentum=0.9, weight_decay=5e-4, epochs=60, batch_size=64, max_grad_norm=1e9,
    arguments={"hidden": [128, 64]},
)  # fmt: skip
"""60 passes of SGD; 200 for wrong labels, which take longer to be remembered."""


def digit_rows(seed: int) -> tuple[Dataset, Dataset]:
    """Training (1,258) and test rows (539) of the digits, by the seed; pixels from 0 to 1."""
    from sklearn.datasets import load_digits

    bundle: Any = load_digits()
    order = np.random.default_rng(seed).permutation(len(bundle.target))
    images = (bundle.data / 16).astype(np.float32)
    cut = round(0.7 * len(order))
    inside, outside = (
        labelled(images[part], bundle.target[part], [str(int(i)) for i in part]) for part in (order[:cut], order[cut:])
    )
    return inside, outside


def labelled(features: Any, labels: Any, ids: Sequence[str], names: Sequence[str] | None = None) -> Dataset:
    """Labelled rows from arrays: features [N, ...], labels [N]."""
    known = list(names or [str(i) for i in range(int(max(labels)) + 1)])
    values = list(np.asarray(features, dtype=np.float32))
    shape = datasets.List(Value("float32")) if values[0].ndim == 1 else datasets.Array3D(values[0].shape, "float32")
    columns = {"id": list(ids), "features": values, "label": [int(y) for y in labels]}
    kinds = Features({"id": Value("string"), "features": shape, "label": ClassLabel(names=known)})
    return Dataset.from_dict(columns, features=kinds)


def of_class(data: Dataset, label: int, want: bool = True) -> Dataset:
    """The rows of a class, or all others."""
    return data.select([i for i, own in enumerate(data["label"]) if (own == label) == want])


def digit_request(seed: int, task: Task = "class") -> tuple[Request, tuple[int, ...]]:
    """What is to be forgotten of the digits, and the right labels of the forget set.

    Raises:
        ConfigError: no such task.
    """
    if task not in TASKS:
        raise ConfigError(f"task '{task}'", None, nearest(task, TASKS))
    train, test = digit_rows(seed)
    if task == "class":
        request = Request(
            forget=of_class(train, DIGIT), retain=of_class(train, DIGIT, False), holdout=of_class(test, DIGIT, False),
            evaluate={"forget_test": of_class(test, DIGIT)},
        )  # fmt: skip
        return request, (DIGIT,) * len(request.forget)
    rng = np.random.default_rng([seed, 7])
    chosen = sorted(rng.permutation(len(train))[: round(SHARE * len(train))].tolist())
    forget = train.select(chosen)
    retain = train.select(sorted(set(range(len(train))) - set(chosen)))
    truth = tuple(forget["label"])
    if task == "noisy":
        wrong = [(label + int(rng.integers(1, 10))) % 10 for label in truth]
        forget = forget.remove_columns("label").add_column("label", wrong, feature=train.features["label"])
    return Request(forget=forget, retain=retain, holdout=test), truth


def digits(seed: int = 0, task: Task = "class", *, retrained: int = 1) -> Classified:
    """The digits' classifiers.

    Args:
        seed: of the split, the wrong labels and the starting weights.
        task: `class`, `noisy` or `random`.
        retrained: how many models without the forget set.
    """
    request, truth = digit_request(seed, task)
    epochs = 200.0 if task == "noisy" else 60.0
    made = build(
        request, DIGITS.model_copy(update={"seed": seed, "epochs": epochs}), retrained=retrained, name=f"digits {task}"
    )
    return replace(made, truth=truth)


# -- diabetes ------------------------------------------------------------------------------------------------------

DIABETES = ClassifierConfig(
    optimizer="adam", learning_rate=1e-3, weight_decay=0.0, epochs=200, batch_size=32, max_grad_norm=1e9,
    arguments={"hidden": [64, 64]},
)  # fmt: skip


def diabetes(seed: int = 0, *, train: int = 300, retrained: int = 1) -> Classified:
    """The diabetes regressors: forget the rows in the lowest quarter of the training targets.

    `holdout` holds all test rows; `evaluate` has `forget_test` and `retain_test`, those below and above the same limit.
    """
    from sklearn.datasets import load_diabetes

    bundle: Any = load_diabetes()
    order = np.random.default_rng(seed).permutation(len(bundle.target))
    inside, outside = order[:train], order[train:]
    mean, std = bundle.target[inside].mean(), bundle.target[inside].std()
    columns = bundle.data[inside]
    scaled = ((bundle.data - columns.mean(0)) / columns.std(0)).astype(np.float32)
    limit = np.quantile(bundle.target[inside], 0.25)

    def rows(part: Any) -> Dataset:
        values = (bundle.target[part] - mean) / std
        return Dataset.from_dict({
            "id": [str(int(i)) for i in part], "features": list(scaled[part]), "target": values.tolist(),
        })  # fmt: skip

    low = bundle.target <= limit
    request = Request(
        forget=rows(inside[low[inside]]), retain=rows(inside[~low[inside]]), holdout=rows(outside),
        evaluate={"forget_test": rows(outside[low[outside]]), "retain_test": rows(outside[~low[outside]])},
    )  # fmt: skip
    made = build(request, DIABETES.model_copy(update={"seed": seed}), retrained=retrained, name="diabetes")
    return replace(made, scale=float(std))


def accuracy(model: Predictor, data: Dataset) -> float:
    """Share of rows whose class is right."""
    rows = model.encode_rows(data)
    _, logits = model.read(rows)
    return float((logits.argmax(-1) == torch.tensor([row.target for row in rows])).float().mean())


__all__ = [
    "DIGIT", "TASKS", "Classified", "accuracy", "build", "diabetes", "digit_request", "digit_rows", "digits", "labelled",
    "of_class",
]  # fmt: skip
