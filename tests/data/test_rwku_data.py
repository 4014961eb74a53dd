"""RWKU's published layout: folders of files and of targets, and bad data by row and column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from efface.data.rwku import TYPES, attack_type, read_config
from efface.errors import RequestError


def probe(subject: str, query: str) -> dict[str, Any]:
    return {"subject": subject, "query": query, "answer": "x", "level": "1", "type": "simple question"}


ROWS = [probe("Ann", "a ___"), probe("Bob", "b ___")]


def test_the_layouts_of_a_folder(tmp_path: Path) -> None:
    for name in ("json", "lines", "parquet", "hub", "targets"):
        (tmp_path / name).mkdir()
    (tmp_path / "json" / "forget_level1.json").write_text(json.dumps(ROWS))
    (tmp_path / "lines" / "forget_level1.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "parquet" / "forget_level1.parquet")
    (tmp_path / "hub" / "forget_level1").mkdir()
    pa.parquet.write_table(
        pa.Table.from_pylist(ROWS), tmp_path / "hub" / "forget_level1" / "test-00000-of-00001.parquet"
    )
    for number, row in ((2, ROWS[0]), (10, ROWS[1])):
        folder = tmp_path / "targets" / f"{number}_{row['subject']}"
        folder.mkdir()
        (folder / "forget_level1.json").write_text(json.dumps([row]))
        (folder / "triviaqa.json").write_text(json.dumps([{"question": "q", "answers": ["a"]}]))
    for name in ("json", "lines", "parquet", "hub", "targets"):
        assert read_config(str(tmp_path / name), "forget_level1") == ROWS, name
    assert len(read_config(str(tmp_path / "targets"), "utility_factuality")) == 2, "under its official name"


def test_targets_are_chosen(tmp_path: Path) -> None:
    (tmp_path / "forget_level1.json").write_text(json.dumps(ROWS))
    assert [row["subject"] for row in read_config(str(tmp_path), "forget_level1", ["Bob"])] == ["Bob"]
    with pytest.raises(RequestError, match="no row of Eve"):
        read_config(str(tmp_path), "forget_level1", ["Eve"])


def test_types_have_one_name_each() -> None:
    assert len(set(TYPES.values())) == 9
    assert attack_type("incontext learning") == attack_type("In-Context Learning") == "in-context-learning"
    assert attack_type("a new Type!") == "a-new-type"
    assert attack_type("") == "other"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[", "cannot be read"),
        ('{"a": 1}', "not a list"),
        ("[]", "is empty"),
        ("[1]", "row 0: int"),
        ('[{"subject": "Ann", "query": "q", "answer": ""}]', "row 0, column 'answer'"),
        ('[{"subject": "Ann", "answer": "a"}]', "row 0, column 'query': None"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "forget_level1.json").write_text(text)
    with pytest.raises(RequestError, match=match):
        read_config(str(tmp_path), "forget_level1")


def test_missing_data(tmp_path: Path) -> None:
    assert read_config(str(tmp_path), "mia_forget", optional=True) == []
    with pytest.raises(RequestError, match="no mia_forget in"):
        read_config(str(tmp_path), "mia_forget")
    with pytest.raises(RequestError, match="no folder at"):
        read_config(str(tmp_path / "gone"), "mia_forget")
    with pytest.raises(RequestError, match="config 'nothing'"):
        read_config(str(tmp_path), "nothing")
