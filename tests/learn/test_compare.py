"""Recipes side by side: the same rows, intervals, what is refused, and the page."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_watch import arrays

from efface.errors import ConfigError, RequestError
from efface.learn.compare import Comparison, compare, figures, markdown
from efface.report.learning import render_comparison, render_learning, write_learning
from efface.run.files import read_json

QUICK: dict[str, Any] = {"batch_size": 20, "epochs": 3, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    folder = tmp_path_factory.mktemp("compared")
    names = ["nt-xent", "sup-con", "moco"]
    own = {"moco": {"queue_size": 40, "momentum": 0.9}}
    return folder, compare(names, arrays(), folder, test=arrays(30, 1), seeds=(0, 1), own=own, **QUICK)


def test_one_line_a_recipe_after_the_start(compared: tuple[Path, Comparison]) -> None:
    folder, found = compared
    assert [line.recipe for line in found.lines] == ["untrained", "nt-xent", "sup-con", "moco"]
    for line in found.lines:
        for name in ("probe", "knn"):
            figure = line.figures[name]
            assert 0 <= figure.low <= figure.value <= figure.high <= 1
            assert figure.spread is not None
    assert all(line.seconds and line.peak_mb and line.views == 2 for line in found.lines[1:])
    assert Comparison.model_validate(read_json(folder / "compare.json")) == found
    assert read_json(folder / "moco-1" / "learn.json")["config"]["queue_size"] == 40
    assert {read_json(folder / f"{name}-0" / "learn.json")["data"][0] for name in ("nt-xent", "sup-con")} == {
        found.data
    }


def test_the_table_and_the_page_show_every_line(compared: tuple[Path, Comparison]) -> None:
    folder, found = compared
    table, page = markdown(found), render_comparison(found)
    for line in found.lines:
        assert f"| {line.recipe} |" in table
        assert f">{line.recipe}</th>" in page
    assert re.search(r"\| nt-xent \| \d+\.\d \[\d+\.\d, \d+\.\d\] ± \d", table)
    assert "<script" not in page
    assert write_learning(folder).name == "compare.html"
    assert write_learning(folder / "nt-xent-0").read_text(encoding="utf-8") == render_learning(
        read_json(folder / "nt-xent-0" / "learn.json"), None
    )


def test_a_second_call_trains_nothing(compared: tuple[Path, Comparison], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, found = compared

    def train(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("efface.learn.contrastive.train", train)
    own = {"moco": {"queue_size": 40, "momentum": 0.9}}
    again = compare(
        ["nt-xent", "sup-con", "moco"], arrays(), folder, test=arrays(30, 1), seeds=(0, 1), own=own, **QUICK
    )
    assert again.lines == found.lines


def test_intervals_narrow_with_rows_and_hold_the_mean() -> None:
    rng = np.random.default_rng(0)
    few, many = (figures([{"probe": (rng.random(n) < 0.8).astype(float)}])["probe"] for n in (50, 5000))
    assert many.high - many.low < (few.high - few.low) / 5
    assert few.low < few.value < few.high
    assert few.spread is None
    same = figures([{"mae": np.full(9, 2.0)}, {"mae": np.full(9, 4.0)}])["mae"]
    assert (same.value, same.low, same.high) == (3.0, 3.0, 3.0)
    assert same.spread == pytest.approx(np.sqrt(2))


def test_a_recipe_that_fails_has_its_reason_in_the_table(tmp_path: Path) -> None:
    own = {"sup-con": {"start": {"architecture": "conv"}}}  # no encoder of arrays
    found = compare(["nt-xent", "sup-con"], arrays(), tmp_path, own=own, **QUICK)
    assert found.held_out
    assert (found.rows, found.unseen) == (48, 12)
    assert found.lines[1].refused == ""
    assert "architecture 'conv' for arrays" in found.lines[2].refused
    assert "refused: architecture" in markdown(found)
    assert "architecture &#39;conv&#39; for arrays" in render_comparison(found)


@pytest.mark.parametrize(
    ("names", "more", "words"),
    [
        (["nt-xent"], {}, "two or more"),
        (["nt-xent", "nt-xent"], {}, "two or more"),
        (["nt-xent", "classifier"], {}, "train an encoder"),
        (["nt-xent", "sup-con"], {"quue_size": 3}, "none of nt-xent, sup-con has"),
        (["nt-xent", "sup-con"], {"own": {"moco": {}}}, "settings of 'moco'"),
    ],
)
def test_what_cannot_be_compared(names: list[str], more: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        compare(names, arrays(), tmp_path, **{**QUICK, **more})


def test_rows_without_marks_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="to read on"):
        compare(["nt-xent", "info-nce"], arrays().remove_columns("label"), tmp_path, **QUICK)
