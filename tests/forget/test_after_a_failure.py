"""What a failed or senseless fit leaves behind: nothing, and one clear sentence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import efface
from efface.audit.evidence import AuditConfig, Evidence
from efface.audit.verdict import conclude
from efface.data.columns import canonical
from efface.errors import ConfigError
from efface.forget import edit as edits
from efface.forget.method import find_method
from efface.forget.run import forget_into
from efface.train.engine import Diverged

QUICK = {"learning_rate": 5e-3, "epochs": 1, "batch_size": 4}


def fit(subject: Any, request: Any, name: str, folder: Path, **more: Any) -> Any:
    method = find_method(name)
    config = method.configure({**QUICK, **more})
    return method.fit(subject, request, config, work=folder / "work", out=folder / "edit").edit


def test_a_diverged_run_leaves_dropout_off_and_the_bits_in_place(tiny: Any, request_: Any, tmp_path: Path) -> None:
    digest = tiny.digest
    tiny.model.eval()
    with pytest.raises(Diverged):
        fit(
            tiny,
            request_,
            "gradient-ascent",
            tmp_path,
            learning_rate=1e30,
            epochs=8,
            warmup_ratio=0.0,
            max_grad_norm=1e30,
        )
    assert not tiny.model.training
    tiny.changed()
    assert tiny.digest == digest


def test_a_full_disk_leaves_the_true_digest(
    tiny: Any, request_: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = tiny.digest

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(edits, "save_file", full)
    with pytest.raises(efface.errors.StorageError):
        fit(tiny, request_, "npo", tmp_path)
    assert tiny.digest == digest  # not that of the weights that were taken back


def test_several_processes_are_refused(
    tiny: Any, request_: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = find_method("npo")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes"):
        forget_into(tiny, request_, method, method.configure(QUICK), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("gamma", [0, -1])
def test_gamma_is_positive(gamma: float) -> None:
    with pytest.raises(ConfigError, match="positive"):
        find_method("wagle").configure({"gamma": gamma})


def test_a_layer_may_be_given_as_a_number() -> None:
    assert find_method("npo").configure({"scope": "layers", "layers": 0}).model_dump()["layers"] == "0"


def test_a_mask_file_comes_without_a_density(tiny: Any, request_: Any, tmp_path: Path) -> None:
    made = fit(tiny, request_, "wagle", tmp_path / "a", density=0.5)
    path = str(made.folder / "mask.safetensors")
    fit(tiny, request_, "npo", tmp_path / "b", scope="mask", mask=path)
    with pytest.raises(ConfigError, match="density with a mask file"):
        fit(tiny, request_, "npo", tmp_path / "c", scope="mask", mask=path, density=0.5)


@pytest.mark.parametrize("name", ["who-is-harry-potter", "finetune", "wagle"])
def test_needle_trains_by_plain_objectives_only(name: str, tiny: Any, request_: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"trained_by='{name}'"):
        fit(tiny, request_, "needle", tmp_path, trained_by=name)


@pytest.mark.parametrize("name", ["flat", "npo"])
def test_needle_trains_by_any_plain_objective(name: str, tiny: Any, request_: Any, tmp_path: Path) -> None:
    assert fit(tiny, request_, "needle", tmp_path, trained_by=name, epochs=1, count=2)


def test_an_anchor_may_stand_in_the_holdout_set(tiny: Any, request_: Any, tmp_path: Path) -> None:
    """What nobody has seen is not what is to be kept; in the retain set the same anchor is refused."""
    path = tmp_path / "anchors.json"
    path.write_text(json.dumps({"person0": "person9"}), encoding="utf-8")
    unseen = canonical([{"id": "u", "question": "Who is person0 ?", "answer": "nobody ."}], "holdout")
    request = dataclasses.replace(request_, holdout=unseen, sources={})
    values = {"anchors": str(path), "alpha": 0.0}
    with pytest.warns(UserWarning, match="labels"):
        assert fit(tiny, request, "who-is-harry-potter", tmp_path / "a", **values)
    kept = dataclasses.replace(request_, retain=unseen, holdout=None, sources={})
    with pytest.raises(efface.errors.RequestError, match="person0"):
        fit(tiny, kept, "who-is-harry-potter", tmp_path / "b", **values)


def test_a_prompt_protocol_that_nobody_tried_is_said() -> None:
    plain = conclude(Evidence(AuditConfig(suite=("membership",)))).not_tested
    tagged = conclude(
        Evidence(AuditConfig(suite=("membership",)), attacks={"in-context": {"left_out": True}})
    ).not_tested
    assert [line for line in tagged if line not in plain] == ["the in-context suite (left out by choice)"]
