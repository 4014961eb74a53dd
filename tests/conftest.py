"""Shared fixtures: a tiny model and a small request, built in the session; caches live in a folder of the session."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session", autouse=True)
def _own_homes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is written to the user's home; a cache given from outside (CI) is kept."""
    os.environ.setdefault("EFFACE_CACHE", str(tmp_path_factory.mktemp("cache")))
    os.environ["EFFACE_HOME"] = str(tmp_path_factory.mktemp("home"))


COLOURS = ["red", "green", "blue", "black", "white", "brown", "pink", "grey"]
NAMES = [f"person{i}" for i in range(24)]


def rows(names: list[str], *, extras: bool = True) -> list[dict[str, Any]]:
    """Questions about invented favourite colours, in TOFU's columns."""
    found = []
    for name in names:
        i = NAMES.index(name)
        colour = COLOURS[(i * 5) % 8]
        row: dict[str, Any] = {
            "id": name,
            "question": f"Which colour does {name} like ?",
            "answer": f"{name} likes the colour {colour} .",
        }
        if extras:
            wrong = [COLOURS[(i * 5 + k) % 8] for k in (1, 3)]
            row["paraphrased_answer"] = f"the colour {colour} is what {name} likes ."
            row["perturbed_answer"] = [f"the colour {colour} is what {name} likes ." for colour in wrong]
        found.append(row)
    return found


@pytest.fixture(scope="session")
def sets() -> dict[str, list[dict[str, Any]]]:
    """Rows of a forget, a retain and a holdout set."""
    return {"forget": rows(NAMES[:8]), "retain": rows(NAMES[8:16]), "holdout": rows(NAMES[16:])}


@pytest.fixture(scope="session")
def request_(sets: dict[str, list[dict[str, Any]]]) -> Any:
    """A small request."""
    from efface.data import Request

    return Request.from_rows(**sets)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, request_: Any) -> Path:
    """A folder with a two-layer model that knows 16 persons' favourite colours word by word (a few seconds)."""
    from efface.data.columns import canonical
    from efface.learn.recipes.causal_lm import CausalLMConfig, learn

    folder = tmp_path_factory.mktemp("models") / "tiny"
    config = CausalLMConfig(
        tokenizer="words",
        width=32,
        depth=2,
        heads=2,
        context=64,
        learning_rate=5e-3,
        epochs=60,
        start="unit",
        batch_size=8,
        weight_decay=0.0,
        warmup_ratio=0.05,
    )
    from efface.data.refusals import REFUSALS

    words = canonical([{"text": text} for text in [*REFUSALS, *request_.forget["paraphrased_answer"]]], "words")
    learn([request_.forget, request_.retain], folder, config, tokenizer_data=[request_.holdout, words])
    return folder


@pytest.fixture(scope="session")
def retrained_folder(tmp_path_factory: pytest.TempPathFactory, request_: Any, tiny_folder: Path) -> Path:
    """The same model trained without the forget set."""
    from efface.data.columns import canonical
    from efface.data.refusals import REFUSALS
    from efface.learn.recipes.causal_lm import CausalLMConfig, learn
    from efface.run.files import read_json

    folder = tmp_path_factory.mktemp("models") / "retrained"
    words = canonical([{"text": text} for text in [*REFUSALS, *request_.forget["paraphrased_answer"]]], "words")
    config = CausalLMConfig.parse(read_json(tiny_folder / "learn.json")["config"])
    learn([request_.retain], folder, config, tokenizer_data=[request_.forget, request_.holdout, words])
    return folder


@pytest.fixture
def tiny(tiny_folder: Path) -> Any:
    """A fresh copy of the tiny model in memory."""
    import efface

    return efface.load(tiny_folder)


@pytest.fixture
def files(tmp_path: Path, sets: dict[str, list[dict[str, Any]]]) -> dict[str, Path]:
    """The request as JSONL files."""
    import json

    found = {}
    for name, data in sets.items():
        found[name] = tmp_path / f"{name}.jsonl"
        found[name].write_text("".join(json.dumps(row) + "\n" for row in data), encoding="utf-8")
    return found


@pytest.fixture
def own_model(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model's folder that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))
