"""`efface learn` with its page, `--test`, `--compare`, and `efface report` of what it made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from efface.cli import run

QUICK = ["epochs=2", "batch_size=10", "learning_rate=1e-3"]


def save(path: Path, n: int, seed: int, *, marks: bool = True) -> str:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    rows = (rng.standard_normal((n, 4)) + 2 * labels[:, None]).astype(np.float32)
    np.savez(path, features=rows, **({"labels": labels} if marks else {}))
    return str(path)


def test_a_run_leaves_a_page_and_report_writes_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, test = save(tmp_path / "train.npz", 40, 0), save(tmp_path / "test.npz", 20, 1)
    assert run(["learn", "nt-xent", "--data", data, "--test", test, "--out", str(tmp_path / "model"), *QUICK]) == 0
    assert "learn.html" in capsys.readouterr().out
    page = (tmp_path / "model" / "learn.html").read_text(encoding="utf-8")
    assert "What the encoder learnt by nt-xent" in page
    assert "Linear probe" in page
    (tmp_path / "model" / "learn.html").unlink()
    assert run(["report", str(tmp_path / "model")]) == 0
    assert (tmp_path / "model" / "learn.html").read_text(encoding="utf-8") == page


def test_rows_without_labels_learn_too(tmp_path: Path) -> None:
    data = save(tmp_path / "train.npz", 40, 0, marks=False)
    assert run(["learn", "nt-xent", "--data", data, "--out", str(tmp_path / "model"), *QUICK]) == 0
    assert "Linear probe" not in (tmp_path / "model" / "learn.html").read_text(encoding="utf-8")


def test_a_selection_of_rows(tmp_path: Path) -> None:
    data = save(tmp_path / "train.npz", 40, 0)
    assert run(["learn", "nt-xent", "--data", f"{data}#class=1", "--out", str(tmp_path / "model"), *QUICK]) == 0
    assert json.loads((tmp_path / "model" / "learn.json").read_text())["rows"] == 20


def test_recipes_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = save(tmp_path / "train.npz", 40, 0)
    words = ["learn", "--compare", "nt-xent,sup-con", "--data", data, "--out", str(tmp_path / "both"), "--seeds", "0,1"]
    assert run([*words, *QUICK, "sup-con.temperature=0.2", "--dry-run"]) == 0
    assert not (tmp_path / "both").exists()
    capsys.readouterr()
    assert run([*words, *QUICK, "sup-con.temperature=0.2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [line["recipe"] for line in found["lines"]] == ["untrained", "nt-xent", "sup-con"]
    assert found["own"] == {"sup-con": {"temperature": 0.2}}
    assert found["seeds"] == [0, 1]
    assert Path(found["report"]).exists()
    assert run(["report", str(tmp_path / "both")]) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--compare", "nt-xent"],
        ["--compare", "nt-xent,nt-xnt"],
        ["--compare", "nt-xent,sup-con", "--seeds", "0,a"],
        ["nt-xent", "--compare", "nt-xent,sup-con"],
        ["--compare", "nt-xent,sup-con", "tempratur=1"],
        ["--compare", "nt-xent,sup-con", "sup-con.tempratur=1"],
    ],
)
def test_a_comparison_that_cannot_be(words: list[str], tmp_path: Path) -> None:
    data = save(tmp_path / "train.npz", 40, 0)
    assert run(["learn", *words, "--data", data, "--out", str(tmp_path / "both"), *QUICK]) == 2
    assert not (tmp_path / "both").exists()
