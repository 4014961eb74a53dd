"""A head on a learnt encoder: the same features, its own folder, and forgetting with it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

sys.path.insert(0, str(Path(__file__).parents[1] / "learn"))
from test_watch import arrays, pictures

import efface
from efface.learn.run import learn
from efface.learn.starts import StartConfig, new_encoder
from efface.subjects.encoder import Encoder
from efface.subjects.headed import with_head
from efface.subjects.predictor import Predictor

QUICK: dict[str, Any] = {"epochs": 30, "batch_size": 20, "learning_rate": 0.05}


def encoder(kind: str) -> Encoder:
    if kind == "array":
        rows = torch.as_tensor(arrays().with_format("numpy")[:]["features"])
        return new_encoder(StartConfig(), "features", (), 0, arrays=rows)
    return new_encoder(StartConfig(architecture=kind, image_size=8, patch=4, width=32), "image", (), 0)


@pytest.mark.parametrize("kind", ["conv", "vit", "array"])
def test_the_head_reads_the_encoders_features(kind: str) -> None:
    made = encoder(kind)
    items = list(arrays().with_format("numpy")[:]["features"]) if kind == "array" else list(pictures()["image"])
    found = with_head(made, ("a", "b", "c"))
    x = torch.stack([found.prepare(item)["x"] for item in items[:6]])
    with torch.no_grad():
        torch.testing.assert_close(
            found.model.features(x), made.features(made.prepare(items[:6])), rtol=1e-4, atol=1e-5
        )
    assert found.labels == ("a", "b", "c")
    assert found.model.encoder is not made.model


@pytest.mark.parametrize("kind", ["conv", "vit", "array"])
def test_a_classifier_on_an_encoder_learns_and_is_loaded(kind: str, tmp_path: Path) -> None:
    data = arrays() if kind == "array" else pictures(60)
    encoder(kind).save(tmp_path / "encoder")
    own = efface.load(tmp_path / "encoder")
    made = learn("classifier", data, tmp_path / "model", model=own, **QUICK)
    again = efface.load(tmp_path / "model")
    assert isinstance(again, Predictor)
    assert again.digest == made.digest
    truth = np.array(data["label"])
    column = "features" if kind == "array" else "image"
    items = list(data.with_format("numpy")[:][column] if kind == "array" else data[column])
    with torch.no_grad():
        logits = again.model(torch.stack([again.prepare(item)["x"] for item in items]))
    assert (logits.argmax(1).numpy() == truth).mean() > 0.9


def test_texts_keep_their_weights_and_get_a_sequence_classifier(tmp_path: Path) -> None:
    texts = [f"the {a} {b}" for a in ("red", "blue") for b in ("car", "dog", "fox", "bus")]
    made = new_encoder(StartConfig(width=32, depth=1, heads=2), "text", texts, 0)
    found = with_head(made, ("red", "blue"))
    assert found.modality == "text"
    torch.testing.assert_close(
        found.model.base_model.encoder.layer[0].output.dense.weight, made.model.encoder.layer[0].output.dense.weight
    )
    data = Dataset.from_dict({"id": [str(i) for i in range(8)], "text": texts, "label": [0] * 4 + [1] * 4})
    learn("classifier", data, tmp_path / "model", model=made, **(QUICK | {"epochs": 2}))
    assert efface.load(tmp_path / "model").kind == "classifier"


def test_numbers(tmp_path: Path) -> None:
    data = arrays().remove_columns("label").add_column("target", [float(i % 3) for i in range(60)])
    made = learn("classifier", data, tmp_path / "model", model=encoder("array"), **(QUICK | {"epochs": 2}))
    assert made.kind == "regressor"
    assert efface.load(tmp_path / "model").kind == "regressor"
