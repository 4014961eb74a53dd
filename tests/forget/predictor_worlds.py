"""Small classifiers and a regressor for the tests of forgetting: three heaps in four dimensions, learnt in a second."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, List, Value

from efface.data.request import Request
from efface.learn.recipes.classifier import ClassifierConfig, fit, new_model
from efface.subjects.predictor import Predictor


def heaps(n: int, seed: int, *, numbers: bool = False) -> Dataset:
    """n rows around three centres; the label is the heap, the number its first coordinate and some noise."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).standard_normal((3, 4)) * 2
    labels = np.arange(n) % 3
    values = (centres[labels] + rng.standard_normal((n, 4)) * 0.7).astype(np.float32)
    columns: dict[str, Any] = {"id": [f"{seed}-{i}" for i in range(n)], "features": list(values)}
    kinds: dict[str, Any] = {"id": Value("string"), "features": List(Value("float32"))}
    if numbers:
        columns["target"] = (values[:, 0] + 0.1 * rng.standard_normal(n)).tolist()
        kinds["target"] = Value("float64")
    else:
        columns["label"] = labels.tolist()
        kinds["label"] = ClassLabel(names=["a", "b", "c"])
    columns["identity"] = [f"p{i % 10}" for i in range(n)]
    kinds["identity"] = Value("string")
    return Dataset.from_dict(columns, features=Features(kinds))


def request_of(kind: str = "class", *, numbers: bool = False) -> Request:
    """Forget the class b, every fifth row (`rows`), or the person p3 (`person`)."""
    data, test = heaps(60, 0, numbers=numbers), heaps(45, 1, numbers=numbers)
    chosen = {
        "class": lambda i: data[i].get("label") == 1,
        "rows": lambda i: i % 5 == 0,
        "person": lambda i: data[i]["identity"] == "p3",
    }[kind]
    gone = [i for i in range(len(data)) if chosen(i)]
    kept = [i for i in range(len(data)) if i not in set(gone)]
    return Request(forget=data.select(gone), retain=data.select(kept), holdout=test)


@cache
def _state(numbers: bool, seed: int) -> tuple[Predictor, dict[str, Any]]:
    import tempfile

    config = ClassifierConfig(
        arguments={"hidden": [12, 6], "dropout": 0.1}, epochs=30, batch_size=20, learning_rate=0.1, seed=seed, weight_decay=0.0,
    )  # fmt: skip
    data = heaps(60, 0, numbers=numbers)
    model = new_model(config, data)
    with tempfile.TemporaryDirectory() as folder:
        fit(model, data, config, work=Path(folder) / "work")
    return model, {name: tensor.detach().clone() for name, tensor in model.weights().items()}


def predictor(*, numbers: bool = False, seed: int = 0) -> Predictor:
    """A trained classifier of three classes, or a regressor; a fresh copy each time."""
    model, state = _state(numbers, seed)
    assert model.form is not None
    module = model.form.build()
    module.load_state_dict(state)
    return Predictor(module.eval(), form=model.form)
