"""Labelled rows: forms, selections, content keys, requests over them, and one readable error for each bad input."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from efface.data.labelled import content_key, is_labelled, plain_row, read_labelled
from efface.data.request import Request, data_digest
from efface.errors import RequestError

ROWS = [
    {"id": f"r{i}", "text": f"text number {i}", "label": ("cat", "dog", "eel")[i % 3], "identity": f"p{i % 4}"}
    for i in range(12)
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def arrays(path: Path, **more: Any) -> Path:
    values = {"features": np.arange(24.0).reshape(12, 2), "labels": np.arange(12) % 3, **more}
    np.savez(path, **{name: value for name, value in values.items() if value is not None})
    return path


def test_texts_arrays_and_pictures(tmp_path: Path) -> None:
    texts = read_labelled(write(tmp_path / "d.jsonl", ROWS))
    assert texts.column_names == ["id", "text", "label", "identity"]
    assert texts.features["label"].names == ["cat", "dog", "eel"]
    found = read_labelled(arrays(tmp_path / "a.npz"))
    assert np.asarray(found[5]["features"]).tolist() == [10.0, 11.0]
    assert list(found["label"]) == [0, 1, 2] * 4
    pictures = np.random.default_rng(0).integers(0, 255, (12, 5, 4), dtype=np.uint8)
    opened = read_labelled(arrays(tmp_path / "b.npz", features=None, images=pictures, identities=np.arange(12) // 2))
    again = np.asarray(Image.open(io.BytesIO(opened[3]["image"]["bytes"])))
    assert np.array_equal(again, pictures[3])
    assert opened["identity"][3] == "1"
    numbers = read_labelled(arrays(tmp_path / "c.npz", labels=None, targets=np.linspace(0, 1, 12)))
    assert numbers["target"][11] == 1.0


def test_arrays_of_three_dimensions_keep_their_shape(tmp_path: Path) -> None:
    cube = np.random.default_rng(0).standard_normal((12, 1, 3, 2)).astype(np.float32)
    data = read_labelled(arrays(tmp_path / "a.npz", features=cube))
    assert np.array_equal(np.stack(list(data.with_format("numpy")["features"])), cube)


@pytest.mark.parametrize(
    ("chosen", "ids"),
    [
        ("class=cat", ["r0", "r3", "r6", "r9"]),
        ("!class=cat,dog", ["r2", "r5", "r8", "r11"]),
        ("class=2", ["r2", "r5", "r8", "r11"]),
        ("identity=p1,p2", ["r1", "r2", "r5", "r6", "r9", "r10"]),
    ],
)
def test_selections(chosen: str, ids: list[str], tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", ROWS)
    assert list(read_labelled(f"{path}#{chosen}")["id"]) == ids


@pytest.mark.parametrize(
    ("chosen", "ids"),
    [
        ("target=0:30", ["r1", "r2"]),
        ("target=30:60", ["r3"]),
        ("target=:0", ["r0"]),
        ("target=30:", ["r3", "r4"]),
        ("!target=0:30", ["r0", "r3", "r4"]),
        ("target=-1e3:2.5e1", ["r0", "r1"]),
    ],
)
def test_ranges_of_a_target(chosen: str, ids: list[str], tmp_path: Path) -> None:
    """The lower end is inside and the upper one is not, so that neighbouring ranges share no row."""
    numbers = [-0.5, 0.0, 29.9, 30.0, 60]
    path = write(
        tmp_path / "d.jsonl", [{"id": f"r{i}", "features": [i, 1.0], "target": y} for i, y in enumerate(numbers)]
    )
    assert list(read_labelled(f"{path}#{chosen}")["id"]) == ids


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ("target=3", "LOW:HIGH"), ("target=:", "LOW:HIGH"), ("target=5:5", "LOW:HIGH"), ("target=6:5", "LOW:HIGH"),
        ("target=a:5", "LOW:HIGH"), ("target=nan:5", "LOW:HIGH"), ("target=1:2:3", "LOW:HIGH"),
        ("target=50:60", "selects no row"), ("class=1", "select by target"),
    ],
)  # fmt: skip
def test_bad_ranges(chosen: str, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [{"id": str(i), "features": [i], "target": i} for i in range(4)])
    with pytest.raises(RequestError, match=said):
        read_labelled(f"{path}#{chosen}")
    with pytest.raises(RequestError, match="no targets, so no range"):
        read_labelled(f"{write(tmp_path / 'c.jsonl', ROWS)}#target=0:1")


def test_random_and_listed_selections_are_complements(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", ROWS)
    some, rest = (list(read_labelled(f"{path}#{sign}random=0.25:7")["id"]) for sign in ("", "!"))
    assert len(some) == 3
    assert sorted(some + rest) == sorted(row["id"] for row in ROWS)
    assert list(read_labelled(f"{path}#random=3:7")["id"]) == some
    assert list(read_labelled(f"{path}#random=3:8")["id"]) != some
    (tmp_path / "ids.txt").write_text("\n".join(some), encoding="utf-8")
    assert list(read_labelled(f"{path}#ids={tmp_path / 'ids.txt'}")["id"]) == some


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ("class=cow", "no class 'cow'"), ("classes=cat", "#NAME=VALUE"), ("class", "#NAME=VALUE"), ("class=", "#NAME=VALUE"),
        ("identity=p9", "no identity 'p9'"), ("random=1.5", "a share"), ("random=12", "a share"), ("random=x", "a share"),
        ("random=0.1:-1", "a share"), ("ids=/nowhere.txt", "cannot read"), ("!class=cat,dog,eel", "selects no row"),
    ],
)  # fmt: skip
def test_bad_selections(chosen: str, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", ROWS)
    with pytest.raises(RequestError, match=said):
        read_labelled(f"{path}#{chosen}")


def test_bad_rows(tmp_path: Path) -> None:
    cases: list[tuple[list[dict[str, Any]], str]] = [
        ([{"text": "a"}], "neither labels nor targets"),
        ([{"text": "a", "features": [1.0], "label": 0}], "one kind of input"),
        ([{"features": [1.0], "label": 0}, {"features": [1.0, 2.0], "label": 0}], "shape"),
        ([{"features": [float("nan")], "label": 0}], "NaN"),
        ([{"features": "a", "label": 0}], "a list of numbers"),
        ([{"features": [], "label": 0}], "a list of numbers"),
        ([{"text": "a", "target": "much"}], "finite number"),
        ([{"text": "a", "label": 0, "identity": 1.5}], "column 'identity'"),
    ]
    for rows, said in cases:
        with pytest.raises(RequestError, match=said):
            read_labelled(write(tmp_path / "d.jsonl", rows))


def test_bad_arrays(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK no zip")
    with pytest.raises(RequestError, match="not a whole"):
        read_labelled(tmp_path / "x.npz")
    with pytest.raises(RequestError, match="lengths"):
        read_labelled(arrays(tmp_path / "a.npz", labels=np.arange(3)))
    with pytest.raises(RequestError, match="uint8"):
        read_labelled(arrays(tmp_path / "b.npz", features=None, images=np.zeros((12, 4, 4))))
    np.savez(tmp_path / "c.npz", features=np.array([{"a": 1}], dtype=object), labels=[0])
    with pytest.raises(RequestError, match="plain arrays"):
        read_labelled(tmp_path / "c.npz")  # an array of objects would have to be unpickled


def test_requests_over_labelled_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", ROWS)
    request = Request.load(f"{path}#class=cat", f"{path}#!class=cat", labelled=True)
    assert (len(request.forget), len(request.retain or ())) == (4, 8)
    assert request.sources["forget"].endswith("#class=cat")
    again = Request.load(f"{path}#class=cat", f"{path}#!class=cat", labelled=True)
    assert request.record().id == again.record().id
    other = Request.load(f"{path}#class=dog", f"{path}#!class=dog", labelled=True)
    assert request.record().id != other.record().id
    with pytest.raises(RequestError, match="same input"):
        Request.load(f"{path}#class=cat", f"{path}#identity=p0", labelled=True)
    rows = [{"features": [float(i)], "label": i % 2} for i in range(4)]
    assert is_labelled(Request.from_rows(rows[:2], rows[2:]).forget)
    words = [{"question": "a", "answer": "b"}]
    with pytest.raises(RequestError, match="rows of one kind"):
        Request.from_rows(rows, words)


def test_content_keys_see_content_and_not_labels() -> None:
    a, b = {"features": [1.0, 2.0], "label": 0}, {"features": [1.0, 2.0], "label": 1}
    assert content_key(a) == content_key(b) != content_key({"features": [2.0, 1.0]})
    assert content_key({"text": "a  b"}) == content_key({"text": "a b"})
    assert "features" not in plain_row(a)
    first, second = (Dataset.from_list([{"id": "0", **row}]) for row in (a, b))
    assert data_digest(first) != data_digest(second)  # the digest sees the label
