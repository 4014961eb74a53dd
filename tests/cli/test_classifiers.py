"""The whole way of a classifier by commands, as docs/classifiers.md says: learn, forget, audit, report, certify, verify."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "forget"))
from predictor_worlds import heaps

from efface.cli import run

TRAINING = ["epochs=30", "batch_size=20", "learning_rate=0.1", "weight_decay=0.0", "arguments.hidden=[12, 6]"]
QUICK = ["epochs=40", "learning_rate=0.05", "batch_size=20"]


def save(path: Path, seed: int, n: int, numbers: bool = False) -> None:
    data = heaps(n, seed, numbers=numbers)
    answers = {"targets": np.array(data["target"])} if numbers else {"labels": np.array(data["label"])}
    np.savez(path, features=np.stack(list(data.with_format("numpy")["features"])), ids=np.array(data["id"]),
             identities=np.array(data["identity"]), **answers)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    save(folder / "train.npz", 0, 60)
    save(folder / "test.npz", 1, 45)
    assert (
        run(["learn", "classifier", "--data", str(folder / "train.npz"), "--out", str(folder / "model"), *TRAINING])
        == 0
    )
    kept = f"{folder / 'train.npz'}#!class=1"
    assert run(["learn", "classifier", "--data", kept, "--out", str(folder / "retrained"), "seed=5", *TRAINING]) == 0
    return folder


def forget(world: Path, out: Path, *more: str, method: str = "gradient-difference") -> list[str]:
    return ["forget", method, "--model", str(world / "model"), "--data", str(world / "train.npz"), "--forget", "class=1",
            "--holdout", str(world / "test.npz"), "--out", str(out), *QUICK, *more]  # fmt: skip


def test_from_request_to_certificate(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert run(forget(world, out)) == 0
    assert run(forget(world, out)) == 0  # a finished run stays as it is
    code = run(["audit", str(out), "--against", str(world / "retrained"), "relearning.max_steps=10"])
    assert code in (0, 1)
    found = {row["metric"]: row for row in json.loads((out / "findings.json").read_text())["findings"]}
    assert found["classifier/ua"]["unlearned"]["value"] > 0.8
    assert found["classifier/ta"]["unlearned"]["value"] > 0.8
    assert {"classifier/average_gap", "representation/untouched", "robustness/relearning_speed"} <= set(found)
    assert run(["report", str(out)]) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "The space of features" in page
    assert "Features of the retrained model" in page
    assert "gives no answers in words" in page
    assert run(["certify", str(out)]) == 0
    assert run(["verify", str(out)]) == 0
    tables = out / "tables" / "unlearned" / "forget.predictions.arrow"
    tables.write_bytes(tables.read_bytes()[:-3] + b"xyz")
    assert run(["verify", str(out)]) == 1
    capsys.readouterr()


def test_a_head_only_edit_is_caught_by_command(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model from elsewhere whose head alone was edited: perfect by accuracy, and the audit says suppressed."""
    from safetensors.torch import load_file, save_file

    trick = tmp_path / "trick"
    shutil.copytree(world / "model", trick)
    tensors: dict[str, Any] = load_file(trick / "model.safetensors")
    last = max(name for name in tensors if name.endswith("bias"))
    tensors[last][1] -= 20.0
    save_file(tensors, trick / "model.safetensors")
    words = ["audit", str(trick), "--original", str(world / "model"), "--against", str(world / "retrained"), "--out",
             str(tmp_path / "run"), "--data", str(world / "train.npz"), "--forget", "class=1", "--holdout",
             str(world / "test.npz"), "--suite", "accuracy,representation"]  # fmt: skip
    assert run(words) == 1
    outcome = json.loads((tmp_path / "run" / "findings.json").read_text())["outcome"]
    assert outcome["word"] == "suppressed"
    assert outcome["fired"] == ["representation/untouched"]
    capsys.readouterr()


def test_a_regressor_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "train.npz", 0, 60, numbers=True)
    save(tmp_path / "test.npz", 1, 45, numbers=True)
    data = str(tmp_path / "train.npz")
    assert (
        run(["learn", "classifier", "--data", data, "--out", str(tmp_path / "model"), *TRAINING, "learning_rate=0.01"])
        == 0
    )
    words = ["forget", "gaussian-amnesiac", "--model", str(tmp_path / "model"), "--data", data, "--forget", "identity=p3",
             "--holdout", str(tmp_path / "test.npz"), "--out", str(tmp_path / "run"), "epochs=2", "batch_size=10"]  # fmt: skip
    assert run(words) == 0
    assert run(["audit", str(tmp_path / "run"), "relearning.max_steps=5"]) in (0, 1)
    found = {row["metric"] for row in json.loads((tmp_path / "run" / "findings.json").read_text())["findings"]}
    assert {"regressor/error/forget", "regressor/paired"} <= found
    assert run(["report", str(tmp_path / "run")]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["forget", "dpo-idk"], "methods for a classifier"),
        (["forget", "npo", "--forget", "class=9"], "no class '9'"),
        (["forget", "npo", "--forget", "class"], "#NAME=VALUE"),
        (["forget", "npo", "prompt.style=chat"], "prompt for a classifier"),
        (["forget", "npo", "adapter=x"], "adapter for a classifier"),
        (["forget", "npo", "head=nowhere"], "head 'nowhere'"),
        (["forget", "npo", "factory=my.nets:made"], "as model.json says"),
        (["forget", "gaussian-amnesiac"], "on a classifier"),
        (["forget", "npo", "learning_rat=1"], "learning_rate"),
    ],
)
def test_bad_input_is_one_line(
    world: Path, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, method, *more = words
    base = forget(world, tmp_path / "run", method=method)
    if "--forget" in more:  # in place of the usual one: two would be two requests
        at = base.index("--forget")
        base = [*base[:at], *base[at + 2 :]]
    assert run([*base, *more]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error
    assert not (tmp_path / "run").exists()


def test_data_is_for_predictors(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "forget",
        "npo",
        "--model",
        str(tiny_folder),
        "--data",
        "x.npz",
        "--forget",
        "class=1",
        "--out",
        str(tmp_path / "r"),
    ]
    assert run(words) == 2
    assert "--data for a language model" in capsys.readouterr().err
