"""MUSE's splits from folders of every kind, and forget sets cut as its `scal` and `sust` are."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from efface.data.columns import canonical
from efface.data.muse import documents, few_shot, folds, nested, read_split
from efface.errors import ConfigError, RequestError

PAIRS = [{"question": "q1", "answer": "a1"}, {"question": "q2", "answer": "a2"}]


def write(folder: Path, name: str, rows: list[Any], kind: str) -> None:
    """One split in one of the layouts."""
    path = folder / f"{name}.{kind}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif kind == "csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        half = len(rows) // 2
        for index, part in enumerate((rows[:half], rows[half:])):
            table = pa.Table.from_pylist(part)
            pa.parquet.write_table(table, folder / f"{name}-0000{index}-of-00002.parquet")


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet"])
def test_every_layout_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    write(tmp_path, "knowmem/forget_qa", PAIRS, kind)
    assert read_split(str(tmp_path), "knowmem", "forget_qa") == PAIRS


def test_the_older_name_of_the_retain_splits(tmp_path: Path) -> None:
    write(tmp_path, "knowmem/retain2_qa_icl", PAIRS, "json")
    assert read_split(str(tmp_path), "knowmem", "retain_qa_icl") == PAIRS


def test_bare_texts_are_rows(tmp_path: Path) -> None:
    """The official download stores a list of texts."""
    write(tmp_path, "privleak/forget", ["one text", "another"], "json")
    assert [row["text"] for row in read_split(str(tmp_path), "privleak", "forget")] == ["one text", "another"]
    assert documents(str(tmp_path), "privleak", "forget")["answer"][:] == ["one text", "another"]


def test_bad_splits_are_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no forget in"):
        read_split(str(tmp_path), "verbmem", "forget")
    with pytest.raises(RequestError, match="no folder"):
        read_split(str(tmp_path / "missing.d" / "x" / "y"), "verbmem", "forget")
    write(tmp_path, "verbmem/forget", [{"prompt": "p"}], "json")
    with pytest.raises(RequestError, match="row 0, column 'gt'"):
        read_split(str(tmp_path), "verbmem", "forget")
    write(tmp_path, "privleak/holdout", ["  "], "json")
    with pytest.raises(RequestError, match="column 'text'"):
        read_split(str(tmp_path), "privleak", "holdout")
    write(tmp_path, "privleak/retain", [], "json")
    with pytest.raises(RequestError, match="is empty"):
        read_split(str(tmp_path), "privleak", "retain")
    (tmp_path / "privleak" / "forget.json").write_text("[", encoding="utf-8")
    with pytest.raises(RequestError, match="cannot be read"):
        read_split(str(tmp_path), "privleak", "forget")


def test_the_few_shot_prompt() -> None:
    assert few_shot("q", [("a", "b"), ("c", "d")]) == (
        "Question: a\nAnswer: b\n\nQuestion: c\nAnswer: d\n\nQuestion: q\nAnswer: "
    )
    assert few_shot("q", []) == "Question: q\nAnswer: "


def test_folds_are_disjoint_and_whole_and_nested_sets_grow() -> None:
    data = canonical([{"id": str(i), "text": f"text {i}"} for i in range(10)], "forget")
    for seed in (None, 3):
        parts = [set(part["id"]) for part in folds(data, 4, seed=seed)]
        assert [len(part) for part in parts] == [3, 3, 2, 2]
        assert set().union(*parts) == set(data["id"])
        growing = [part["id"][:] for part in nested(data, 4, seed=seed)]
        assert [len(part) for part in growing] == [3, 6, 8, 10]
        for small, large in itertools.pairwise(growing):
            assert large[: len(small)] == small
    assert folds(data, 2)[0]["id"][:] == [str(i) for i in range(5)]
    assert folds(data, 2, seed=3)[0]["id"][:] == folds(data, 2, seed=3)[0]["id"][:]
    with pytest.raises(ConfigError, match="parts of 10 rows"):
        folds(data, 11)
