"""Encoders side by side: concatenated unit rows, saved and opened as one encoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import efface
from efface.errors import ModelError
from efface.learn.starts import StartConfig, new_encoder
from efface.subjects.encoder import Encoder
from efface.subjects.ensemble import EnsembleEncoder

SIZE = StartConfig(width=16, depth=1, heads=2, image_size=8, patch=4, channels=(8, 16), widths=(8, 5))
ITEMS = {
    "image": [Image.new("RGB", (8, 8), (i * 50, 90, 10)) for i in range(4)],
    "text": ["a red fox", "the dog runs fast", "a", "fox fox dog"],
    "features": [[float(i), 2.0, -1.0 * i] for i in range(4)],
}


def part(modality: str, seed: int) -> Encoder:
    arrays = torch.tensor(ITEMS["features"]) if modality == "features" else None
    return new_encoder(SIZE, modality, ITEMS["text"], seed, arrays=arrays)


@pytest.mark.parametrize("modality", ["image", "text", "features"])
def test_it_embeds_as_its_parts_do_and_comes_back_the_same(modality: str, tmp_path: Path) -> None:
    parts = [part(modality, seed) for seed in range(3)]
    both, items = EnsembleEncoder(parts), ITEMS[modality]
    found = both.embed(items)
    torch.testing.assert_close(found, torch.cat([one.embed(items) for one in parts], dim=1) / 3**0.5)
    assert both.width == found.shape[1] == sum(one.width for one in parts)
    assert both.modality == modality
    features = both.features(both.prepare(items))
    assert features.requires_grad
    both.save(tmp_path / "model")
    again = efface.load(tmp_path / "model")
    assert isinstance(again, EnsembleEncoder)
    assert (again.kind, again.modality, again.digest) == ("encoder", modality, both.digest)
    torch.testing.assert_close(again.embed(items), found)
    if modality == "image":
        assert again.normalisation == parts[0].normalisation


def test_one_changed_part_changes_the_digest() -> None:
    parts = [part("image", seed) for seed in range(2)]
    both = EnsembleEncoder(parts)
    before = both.digest
    with torch.no_grad():
        next(parts[1].model.parameters()).add_(1.0)
    both.changed()
    assert both.digest != before
    assert parts[1].digest != before


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no encoders"):
        EnsembleEncoder([])
    with pytest.raises(ModelError, match="image and text"):
        EnsembleEncoder([part("image", 0), part("text", 0)])
    other = new_encoder(StartConfig(**(SIZE.model_dump() | {"image_size": 16})), "image", (), 0)
    with pytest.raises(ModelError, match="differently"):
        EnsembleEncoder([part("image", 0), other])


@pytest.mark.parametrize("names", [[], ["../part-0"], [".."], "part-0", [1], [""]])
def test_an_ensemble_names_sub_folders(names: object, tmp_path: Path) -> None:
    EnsembleEncoder([part("features", 0)]).save(tmp_path / "model")
    (tmp_path / "model" / "ensemble.json").write_text(json.dumps({"parts": names, "modality": "features"}))
    with pytest.raises(ModelError, match="names no parts"):
        efface.load(tmp_path / "model")
    (tmp_path / "model" / "ensemble.json").write_text(json.dumps({"parts": ["part-1"], "modality": "features"}))
    with pytest.raises(ModelError):
        efface.load(tmp_path / "model")
