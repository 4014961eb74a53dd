"""Several requests as one forget set: numbered ids, shared rows refused, and back again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from efface.data.columns import canonical
from efface.data.joined import JOIN, join, request_of, split_joined
from efface.data.readers import read_dataset
from efface.data.request import data_digest
from efface.errors import RequestError

A = [
    {"id": "x", "question": "q1", "answer": "a1", "concept": "c"},
    {"id": "y", "question": "q2", "answer": "a2", "concept": "d"},
]
B = [{"id": "x", "question": "q3", "answer": "a3"}]


def test_ids_are_numbered_and_shared_columns_kept() -> None:
    joined = join([canonical(A, "A"), canonical(B, "B")], ["A", "B"])
    assert joined["id"][:] == ["1:x", "1:y", "2:x"]
    assert joined.column_names == ["id", "question", "answer"]
    assert [part["answer"][:] for part in split_joined(joined)] == [["a1", "a2"], ["a3"]]
    assert request_of("12:a:b") == 12
    for wrong in ("x", "x:1", ""):
        with pytest.raises(RequestError):
            request_of(wrong)


def test_a_row_of_two_requests_is_refused_by_name() -> None:
    again = canonical([{"id": "z", "question": " q2 ", "answer": "a2"}], "B")
    with pytest.raises(RequestError, match=r"request 2 \(B\) row 0 is also request 1 \(A\) row 1"):
        join([canonical(A, "A"), again], ["A", "B"])


def test_sources_joined_by_a_plus_are_read_as_one_set(tmp_path: Path) -> None:
    for name, rows in (("a", A), ("b", B)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    names = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    read = read_dataset(JOIN.join(names))
    assert data_digest(read) == data_digest(join([canonical(A, "A"), canonical(B, "B")], names))
    odd = tmp_path / "a + b.jsonl"  # a file of that name is itself
    odd.write_text(json.dumps(B[0]) + "\n", encoding="utf-8")
    assert read_dataset(odd)["id"][:] == ["x"]
    with pytest.raises(RequestError, match="no file at"):
        read_dataset(JOIN.join([names[0], str(tmp_path / "missing.jsonl")]))
