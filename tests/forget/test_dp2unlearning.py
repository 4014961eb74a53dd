"""DP2Unlearning on a language model: the base, what may be one, and what the edit says about the bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import efface
from efface.errors import ConfigError, ModelError
from efface.forget.method import find_method
from efface.learn.recipes.dp_base import DPBaseConfig, learn

pytest.importorskip("opacus")
BASE = DPBaseConfig(epochs=1, batch_size=4, noise=2.0, delta=1e-3, learning_rate=0.1)
QUICK = {"learning_rate": 5e-3, "epochs": 1, "batch_size": 4}


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory, retrained_folder: Path, request_: Any) -> Path:
    """A private base that begins at another model of the same architecture."""
    out = tmp_path_factory.mktemp("dp") / "base"
    learn([request_.forget, request_.retain], out, BASE, model=efface.load(retrained_folder))
    return out


def erase(subject: Any, request: Any, folder: Path, **values: Any) -> Any:
    method = find_method("dp2unlearning")
    return method.fit(
        subject, request, method.configure({**QUICK, **values}), work=folder / "work", out=folder / "edit"
    ).edit


def test_from_a_base_the_deployed_model_leaves_no_trace(
    tiny: Any, retrained_folder: Path, base_folder: Path, request_: Any, tmp_path: Path
) -> None:
    """Two deployed models, one base: the same result, so nothing of the deployed model is in it."""
    edit = erase(tiny, request_, tmp_path / "a", base_model=str(base_folder))
    other = erase(efface.load(retrained_folder), request_, tmp_path / "b", base_model=str(base_folder))
    assert edit.facts.edited_digest == other.facts.edited_digest
    words = "; ".join(edit.facts.guarantee)
    assert "epsilon" in words
    assert f"for the {len(request_.forget)} record(s) of this request together" in words


def test_the_base_says_how_far_it_moved(base_folder: Path) -> None:
    from efface.train.private_lm import read_protection

    found = read_protection(base_folder)
    assert found.moved > 0
    assert found.digest == efface.load(base_folder).digest
    assert found.report.records == 16


def test_what_is_no_base_is_refused(
    tiny: Any, tiny_folder: Path, base_folder: Path, request_: Any, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="no report of a private base"):
        erase(tiny, request_, tmp_path / "a", base_model=str(tiny_folder))
    with pytest.raises(ModelError, match="is the deployed model"):
        erase(efface.load(base_folder), request_, tmp_path / "b", base_model=str(base_folder))
    with pytest.raises(ConfigError, match="scope all"):
        find_method("dp2unlearning").configure({"scope": "layers", "layers": "-1"})
    with pytest.raises(ConfigError, match="would leak"):
        learn([request_.retain], tmp_path / "d", BASE)
