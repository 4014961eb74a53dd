"""What every contrastive recipe promises, found by discovery: it learns, is saved, is the same from the same seed, takes
chunks or refuses them, and is documented."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

import efface
from efface.catalog import entries, find
from efface.errors import ConfigError
from efface.learn.objective import ContrastiveConfig
from efface.learn.run import learn
from efface.run.files import read_json

ROOT = Path(__file__).parents[2]
RECIPES = sorted(
    entry.card.name
    for entry in entries().values()
    if entry.card.verb == "learn" and issubclass(entry.module.CONFIG, ContrastiveConfig)
)
SMALL: dict[str, Any] = {
    "batch_size": 8, "epochs": 1, "evaluations": 1, "evaluation_rows": 20, "queue_size": 16, "queue_start": 0, "prototypes": 4,
    "hidden": 8, "head_hidden": 8, "head_width": 8, "rows_per_cluster": 8, "memory_start": 0, "small_crops": 1, "hard": 4,
    "mixed": 4, "with_anchor": 2, "label_width": 8, "gate_hidden": 8, "mask_patch": 2, "topk": 1,
    "latent": 4, "stages": 2, "small_groups": "merge", "stage_batch_size": 4, "d_common": 8, "d_salient": 8,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "simlap": {"width": 8}, "beclr": {"projector": 8, "clusters": 2}, "mcl": {"clusters": 2}, "swav": {"projector": 8},
}  # fmt: skip
VIEWS = {"crop_area": (0.5, 1.0), "jitter": 0.0, "grey": 0.0, "blur": 0.0, "noise": 0.05}


def rows(takes: str, classes: int) -> Dataset:
    """24 digits of 8 x 8 with texts, labels and numbers."""
    from efface.lab.digit_learning import digit_pixels, pictures

    pixels, labels = digit_pixels()
    found = pictures(pixels[:24], labels[:24] % classes, range(24))
    if takes == "pairs":
        found = found.add_column("text", [f"the digit {label} of {i}" for i, label in enumerate(found["label"])])
        return found.add_column("weight", [1.0] * 24)
    if takes == "targets":
        return found.remove_columns("label").add_column("target", [float(i % 5) for i in range(24)])
    return found


def run(name: str, out: Path, **more: Any) -> Any:
    module = find(name, "learn").module
    recipe = getattr(module, "RECIPE", None)
    takes = "views" if recipe is None else recipe.takes
    known = module.CONFIG.model_fields
    settings = {key: value for key, value in SMALL.items() if key in known}
    start = {"image_size": 8, "patch": 4, "width": 16, "depth": 1, "heads": 2, "context": 12, "channels": (8, 16)}
    architecture = "auto" if takes == "pairs" else "conv"
    settings |= {"start": {**start, "architecture": architecture, "norm": "group"}, "views": VIEWS, **OWN.get(name, {})}
    return learn(name, rows(takes, 2 if name == "sepclr" else 4), out, **{**settings, **more})


@pytest.mark.parametrize("name", RECIPES)
def test_it_learns_is_saved_and_is_the_same_from_the_same_seed(name: str, tmp_path: Path) -> None:
    model = run(name, tmp_path / "model")
    again = efface.load(tmp_path / "model")
    assert again.digest == model.digest
    assert again.kind in ("encoder", "dual-encoder")
    facts = read_json(tmp_path / "model" / "learn.json")
    losses = (
        facts["losses"] if "losses" in facts else [row for stage in facts["stages"] for row in stage.get("losses", [])]
    )
    assert losses
    assert all(math.isfinite(value) for _, value in losses)
    tower = again.image if again.kind == "dual-encoder" else again
    z = tower.embed(list(rows("views", 4)["image"]))
    assert np.isfinite(z.numpy()).all()
    assert run(name, tmp_path / "second", evaluations=0).digest == model.digest  # looking changes nothing


def refusal(name: str, out: Path) -> str:
    """Why a recipe takes no chunks; empty where it does."""
    try:
        run(name, out, chunk=4, evaluations=0)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", RECIPES)
def test_chunks_serve_or_are_refused(name: str, tmp_path: Path) -> None:
    why = refusal(name, tmp_path / "chunks")
    if why:
        assert "chunk" in why or "gradient caching" in why
        return
    run(name, tmp_path / "whole", evaluations=0)
    chunks, whole = (read_json(tmp_path / form / "learn.json") for form in ("chunks", "whole"))
    if "losses" in whole:
        assert chunks["losses"][0][1] == pytest.approx(whole["losses"][0][1], rel=1e-4)


@pytest.mark.parametrize("name", RECIPES)
def test_it_stands_in_the_docs(name: str) -> None:
    assert f"`{name}`" in (ROOT / "docs" / "contrastive-learning.md").read_text(encoding="utf-8")
