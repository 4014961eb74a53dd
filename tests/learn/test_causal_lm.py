"""The recipe: nothing is overwritten, and checkpoints of other settings are never gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from efface.errors import RunError, StorageError
from efface.learn.recipes import causal_lm
from efface.learn.recipes.causal_lm import CausalLMConfig, learn

SMALL = {"tokenizer": "words", "width": 16, "depth": 1, "heads": 2, "context": 64, "batch_size": 4, "epochs": 2}


def test_an_occupied_folder_is_refused_before_any_work(request_: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("the only copy", encoding="utf-8")
    with pytest.raises(StorageError, match="not empty"):
        learn([request_.retain], tmp_path, CausalLMConfig(**SMALL))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_same_settings_load_and_others_are_refused(request_: Any, tmp_path: Path) -> None:
    out = tmp_path / "model"
    first = learn([request_.retain], out, CausalLMConfig(**SMALL))
    assert learn([request_.retain], out, CausalLMConfig(**SMALL)).digest == first.digest
    with pytest.raises(RunError, match="other settings"):
        learn([request_.retain], out, CausalLMConfig(**SMALL, seed=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"], "no work folder is left"


def test_a_stopped_run_of_other_settings_is_not_gone_on_with(
    request_: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, seen = causal_lm.train, []

    def stopping(*args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["folder"])
        kwargs["folder"].mkdir(parents=True, exist_ok=True)
        (kwargs["folder"] / "trace").write_text("left by a kill", encoding="utf-8")
        raise KeyboardInterrupt

    monkeypatch.setattr(causal_lm, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        learn([request_.retain], tmp_path / "model", CausalLMConfig(**SMALL))
    monkeypatch.setattr(causal_lm, "train", lambda *a, **k: (seen.append(k["folder"]), plain(*a, **k))[1])
    learn([request_.retain], tmp_path / "model", CausalLMConfig(**SMALL, learning_rate=1e-3))
    assert seen[0] != seen[1]
    assert not (seen[1] / "trace").exists()
