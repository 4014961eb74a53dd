"""Items: every source in one form, pictures opened honestly, and bad ones named by file, row and remedy."""

# ruff: noqa: E501 - one case a line

from __future__ import annotations

import base64
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset
from PIL import Image

from efface.data.items import open_picture, picture_key, read_items, text_key, thumbnail
from efface.errors import RequestError


def picture(seed: int = 0, side: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side + 4, 3), dtype=np.uint8))


def encoded(value: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    value.save(buffer, format=form, **options)
    return buffer.getvalue()


def pixels(value: Any) -> np.ndarray:
    return np.asarray(open_picture(value))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, all formats, a hidden file, a note, and one file with a capital suffix."""
    place = tmp_path / "photos"
    for i, (name, form) in enumerate(
        {
            "cat/b.png": "PNG",
            "cat/a.JPG": "JPEG",
            "dog/c.webp": "WEBP",
            "dog/deep/d.bmp": "BMP",
            "dog/e.gif": "GIF",
        }.items()
    ):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(encoded(picture(i), form))
    (place / "cat" / ".hidden.png").write_bytes(b"x")
    (place / "note.md").write_text("not a picture", encoding="utf-8")
    return place


# -- sources -----------------------------------------------------------------------------------------------------------


def test_a_folder_of_classes(folder: Path) -> None:
    data = read_items(folder, want=("image", "label"))
    assert data["id"] == ["cat/a.JPG", "cat/b.png", "dog/c.webp", "dog/deep/d.bmp", "dog/e.gif"]
    assert data.features["label"].names == ["cat", "deep", "dog"]
    assert data["label"] == [0, 0, 2, 1, 2]
    assert data[0]["image"] == {"bytes": None, "path": str(folder / "cat" / "a.JPG")}
    assert np.array_equal(pixels(data[1]["image"]), np.asarray(picture(0)))
    assert all(open_picture(value).mode == "RGB" for value in data["image"])


def test_pictures_beside_subfolders_have_no_class(folder: Path) -> None:
    (folder / "z.png").write_bytes(encoded(picture(9)))
    data = read_items(folder)
    assert data.column_names == ["id", "image"]
    with pytest.raises(RequestError, match=r"no column 'label' \(there are: id, image\)"):
        read_items(folder, want=("label",))


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_folder_with_metadata(folder: Path, form: str) -> None:
    names = ["dog/e.gif", "cat/a.JPG", "cat/b.png", "dog/c.webp", "dog/deep/d.bmp"]
    if form == "jsonl":
        write_lines(folder / "metadata.jsonl", [{"file_name": name, "caption": f"words {name}"} for name in names])
    else:
        lines = "\n".join(["file_name,caption", *(f"{name},words {name}" for name in names)])
        (folder / "metadata.csv").write_text(lines + "\n", encoding="utf-8")
    data = read_items(folder, want=("image", "text"))
    assert data["id"] == names
    assert data["text"] == [f"words {name}" for name in names]
    assert np.array_equal(pixels(data[2]["image"]), np.asarray(picture(0)))


def test_metadata_that_forgets_a_picture(folder: Path) -> None:
    write_lines(folder / "metadata.jsonl", [{"file_name": "cat/a.JPG", "text": "a"}])
    with pytest.raises(RequestError, match=r"does not name 4 pictures of the folder \(first: cat/b.png\)"):
        read_items(folder)
    write_lines(folder / "metadata.jsonl", [{"text": "a"}])
    with pytest.raises(RequestError, match=r"metadata.jsonl, row 0: columns \['text'\]; expected a file_name"):
        read_items(folder)


def test_jsonl_with_pictures_in_every_form(folder: Path) -> None:
    raw = encoded(picture(7))
    text = base64.b64encode(raw).decode()
    rows = [
        {"id": "x", "image": "cat/b.png", "text": "path", "label": 3},
        {"id": 5, "image": str(folder / "cat" / "b.png"), "text": "absolute", "label": 1},
        {"id": "y", "image": text, "text": "base64", "label": 1},
        {"id": "z", "image": f"data:image/png;base64,{text}", "text": "data address", "label": 0},
        {"id": "w", "image": {"bytes": text, "path": "name.png"}, "text": "struct", "label": 0},
        {"id": "v", "image": {"bytes": None, "path": "cat/b.png"}, "text": "struct of a path", "label": 0},
    ]
    data = read_items(write_lines(folder / "pairs.jsonl", rows), want=("image", "text"))
    assert data["id"] == ["x", "5", "y", "z", "w", "v"]
    assert data["label"] == [3, 1, 1, 0, 0, 0]
    assert not isinstance(data.features["label"], ClassLabel)
    shown = [pixels(value) for value in data["image"]]
    for index in (0, 1, 5):
        assert np.array_equal(shown[index], np.asarray(picture(0)))
    for index in (2, 3, 4):
        assert np.array_equal(shown[index], np.asarray(picture(7)))


def test_parquet_with_bytes(tmp_path: Path) -> None:
    made = Dataset.from_dict(
        {"image": [{"bytes": encoded(picture(i)), "path": None} for i in range(3)], "caption": ["a", "b", "c"]},
        features=datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")}),
    )
    made.to_parquet(tmp_path / "d.parquet")
    data = read_items(tmp_path / "d.parquet", want=("image", "text"))
    assert data["id"] == ["0", "1", "2"]
    assert data["text"] == ["a", "b", "c"]
    assert np.array_equal(pixels(data[2]["image"]), np.asarray(picture(2)))


def test_json_and_csv_and_gzip(tmp_path: Path) -> None:
    rows = [{"question": "who?", "label": "b"}, {"question": "what?", "label": "a"}]
    (tmp_path / "d.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "d.csv").write_text("question,label\nwho?,b\nwhat?,a\n", encoding="utf-8")
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    for name in ("d.json", "d.csv", "d.jsonl.gz"):
        data = read_items(tmp_path / name, want=("text", "label"))
        assert data["text"] == ["who?", "what?"]
        assert (data["label"], data.features["label"].names) == ([1, 0], ["a", "b"])


def test_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes("one \r\nzwei\u2028drei\n日本".encode())
    assert read_items(path, want=("text",))["text"] == ["one ", "zwei\u2028drei", "日本"]
    assert read_items(path)["id"] == ["0", "1", "2"]
    path.write_text("one\n\nthree\n", encoding="utf-8")
    with pytest.raises(RequestError, match=r"texts.txt, line 2: blank; expected one text a line"):
        read_items(path)


def test_pictures_are_left_out_where_texts_are_wanted(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "d.jsonl", [{"image": "gone.png", "text": "a"}])
    assert read_items(path, want=("text",)).column_names == ["id", "text"]
    with pytest.raises(RequestError, match=r"no picture at 'gone.png'"):
        read_items(path)


def test_a_ready_data_set() -> None:
    made = Dataset.from_dict(
        {"img": [picture(i) for i in range(3)], "label": [1, 0, 1], "other": [1, 2, 3]},
        features=datasets.Features(
            {"img": datasets.Image(), "label": ClassLabel(names=["no", "yes"]), "other": datasets.Value("int64")}
        ),
    )
    data = read_items(made, want=("image", "label"))
    assert data.column_names == ["id", "image", "label"]
    assert data.features["label"].names == ["no", "yes"]
    assert (data["id"], data["label"]) == (["0", "1", "2"], [1, 0, 1])
    assert data[0]["image"]["bytes"] is not None
    assert np.array_equal(pixels(data[2]["image"]), np.asarray(picture(2)))
    again = read_items(data)
    assert again.column_names == data.column_names
    assert again["id"] == data["id"]
    texts = Dataset.from_dict({"id": [4, 2], "sentence": ["a", "b"], "label": ["x", "w"], "weight": [1, 2]})
    data = read_items(texts)
    assert (data["id"], data["text"], data["label"], data["weight"]) == (["4", "2"], ["a", "b"], [1, 0], [1, 2])
    with pytest.raises(RequestError, match=r"row 1, column 'text': NoneType"):
        read_items(Dataset.from_dict({"text": ["a", None]}))
    with pytest.raises(RequestError, match=r"row 1: id '7' also in row 0"):
        read_items(Dataset.from_dict({"id": [7, 7], "text": ["a", "b"]}))
    with pytest.raises(RequestError, match="the data set is empty"):
        read_items(Dataset.from_dict({"text": []}))
    paths = Dataset.from_dict({"image": ["gone.png"]})
    with pytest.raises(RequestError, match=r"the data set, row 0: no picture at 'gone.png'"):
        read_items(paths)
    broken = Dataset.from_dict(
        {"image": [{"bytes": b"no", "path": None}]}, features=datasets.Features({"image": datasets.Image(decode=False)})
    )
    with pytest.raises(RequestError, match=r"row 0, column 'image': not a picture"):
        read_items(broken)


# -- bad sources -------------------------------------------------------------------------------------------------------

GOOD = {"image": "a.png", "text": "a"}
BAD: list[tuple[str, Any, dict[str, Any], tuple[str, ...]]] = [
    ("missing column", [{"image": "a.png"}], {"want": ("image", "text")}, ("d.jsonl: no column 'text'", "there are: image", "caption")),
    ("no usable column", [{"foo": 1}], {}, ("no column 'image' or 'text'", "foo")),
    ("unknown want", [GOOD], {"want": ("audio",)}, ("want='audio'", "image, text, label, weight")),
    ("empty", [], {}, ("d.jsonl is empty", "at least one row")),
    ("missing picture", [GOOD, {**GOOD, "image": "b.png"}], {}, ("d.jsonl, row 1, column 'image'", "b.png", "check the path")),
    ("address", [{**GOOD, "image": "https://x.org/a.png"}], {}, ("row 0", "https://x.org", "download")),
    ("no picture", [{**GOOD, "image": "d.jsonl"}], {}, ("row 0, column 'image'", "d.jsonl", "not a picture", "replace or drop")),
    ("a folder", [{**GOOD, "image": "."}], {}, ("row 0, column 'image'", "directory")),
    ("picture is null", [{**GOOD, "image": None}], {}, ("row 0, column 'image'", "NoneType")),
    ("picture is a number", [{**GOOD, "image": 3}], {}, ("row 0, column 'image'", "int")),
    ("picture is empty", [{**GOOD, "image": ""}], {}, ("row 0, column 'image'", "empty")),
    ("base64 of no picture", [{**GOOD, "image": base64.b64encode(b"x" * 99).decode()}], {}, ("row 0, column 'image'", "not a picture")),
    ("broken base64", [{**GOOD, "image": {"bytes": "$$$"}}], {}, ("row 0, column 'image'", "broken base64")),
    ("struct of nothing", [{**GOOD, "image": {"bytes": None, "path": None}}], {}, ("row 0, column 'image'", "NoneType")),
    ("very long nonsense", [{**GOOD, "image": "!" * 5000}], {}, ("row 0, column 'image'", "no picture")),
    ("text is empty", [{**GOOD, "text": " \n"}], {}, ("row 0, column 'text': empty", "some text")),
    ("text is a list", [{**GOOD, "text": ["a", "b"]}], {}, ("row 0, column 'text': list", "some text")),
    ("text in some rows", [GOOD, {"image": "a.png"}], {}, ("row 1, column 'text': missing, while row 0 has it",)),
    ("text in later rows", [{"image": "a.png"}, GOOD], {}, ("row 1, column 'text': row 0 does not have it",)),
    ("label is a float", [{**GOOD, "label": 0.5}], {}, ("row 0, column 'label': float", "class name")),
    ("label is a truth value", [{**GOOD, "label": True}], {}, ("row 0, column 'label': bool",)),
    ("labels of two kinds", [{**GOOD, "label": "x"}, {**GOOD, "label": 2}], {}, ("row 1, column 'label': the number 2",)),
    ("weight is no number", [{**GOOD, "weight": "much"}], {}, ("row 0, column 'weight': 'much'", "finite")),
    ("weight is infinite", [{**GOOD, "weight": 1e999}], {}, ("row 0, column 'weight': inf",)),
    ("duplicate ids", [{**GOOD, "id": 1}, {**GOOD, "id": "1"}], {}, ("d.jsonl, row 1: id '1' also in row 0", "unique ids")),
    ("bad id", [{**GOOD, "id": 1.5}], {}, ("row 0, column 'id': 1.5", "stable id")),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "options", "fragments"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_rows(rows: Any, options: dict[str, Any], fragments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    assert len(read_items(write_lines(tmp_path / "d.jsonl", [GOOD]))) == 1
    path = write_lines(tmp_path / "d.jsonl", rows)
    with pytest.raises(RequestError) as caught:
        read_items(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    for fragment in fragments:
        assert fragment in message


def test_bad_places(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(picture()))
    (tmp_path / "a.xlsx").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    cases: dict[str, Callable[[], Path | str]] = {
        "no file or folder at": lambda: tmp_path / "nowhere.jsonl",
        "is one picture; expected a folder": lambda: tmp_path / "a.png",
        "unknown format '.xlsx'": lambda: tmp_path / "a.xlsx",
        "no pictures in": lambda: tmp_path / "empty",
        "cannot load 'nobody/nothing' from the hub": lambda: "nobody/nothing",
    }
    for message, source in cases.items():
        with pytest.raises(RequestError, match=message):
            read_items(source())


def test_a_broken_file_in_a_folder(folder: Path) -> None:
    (folder / "dog" / "e.gif").write_bytes(b"GIF but no")
    with pytest.raises(
        RequestError, match=r"photos, row 4, column 'image' \('.*e.gif'\): not a picture; .*replace or drop"
    ):
        read_items(folder)


# -- opening -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_truncated_pictures_are_refused(form: str) -> None:
    data = encoded(picture(0, 64), form)
    assert open_picture(data).size == (68, 64)
    for part in (0.5, 0.9):
        with pytest.raises(RequestError, match=r"item 3: (a broken picture|not a picture).*replace or drop it"):
            open_picture(data[: int(len(data) * part)], place="item 3")


def test_upright() -> None:
    value = picture()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    turned = encoded(value, exif=exif)
    assert np.array_equal(pixels(turned), np.asarray(value.transpose(Image.Transpose.ROTATE_270)))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_white(mode: str) -> None:
    value = Image.new(mode, (3, 1))
    value.putdata(
        [(10, 20, 30, 255), (10, 20, 30, 0), (0, 0, 0, 128)] if mode == "RGBA" else [(10, 255), (10, 0), (0, 128)]
    )
    found = pixels(encoded(value))[0]
    assert list(found[0]) == ([10, 20, 30] if mode == "RGBA" else [10] * 3)
    assert list(found[1]) == [255] * 3
    assert list(found[2]) == [127] * 3


def test_a_transparent_palette_is_white() -> None:
    value = Image.new("P", (2, 1))
    value.putpalette([200, 0, 0, 0, 200, 0])
    value.putdata([0, 1])
    assert [list(colour) for colour in pixels(encoded(value, transparency=0))[0]] == [[255] * 3, [0, 200, 0]]
    assert [list(colour) for colour in pixels(encoded(value))[0]] == [[200, 0, 0], [0, 200, 0]]


def test_sixteen_bits_keep_their_range() -> None:
    value = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    assert [colour[0] for colour in pixels(encoded(value))[0]] == [0, 100, 255]


def test_the_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert list(pixels(data)[0, 0]) == [255, 0, 0]


def test_other_modes_and_own_pixels() -> None:
    for mode in ("L", "1", "CMYK", "YCbCr", "HSV", "P"):
        assert open_picture(picture().convert(mode)).mode == "RGB"
    value = picture()
    opened = open_picture(value)
    opened.putpixel((0, 0), (1, 2, 3))
    assert value.getpixel((0, 0)) != (1, 2, 3)


def test_bombs_and_foreign_formats_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for side in (12, 40):  # a warning and an error of Pillow
        with pytest.raises(RequestError, match=r"more pixels than are safe to decode; expected at most 100"):
            open_picture(encoded(picture(0, side)))
    monkeypatch.undo()
    with pytest.raises(RequestError, match="not a picture"):
        open_picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    with pytest.raises(RequestError, match="NoneType"):
        open_picture(None)


# -- keys and thumbnails -----------------------------------------------------------------------------------------------


def test_keys(tmp_path: Path) -> None:
    data = encoded(picture())
    (tmp_path / "a.png").write_bytes(data)
    same = [
        data,
        {"bytes": data, "path": "other.png"},
        tmp_path / "a.png",
        {"bytes": None, "path": str(tmp_path / "a.png")},
    ]
    assert len({picture_key(value) for value in same}) == 1
    assert len(picture_key(data)) == 64
    assert picture_key(encoded(picture(1))) != picture_key(data)
    assert picture_key(picture()) == picture_key(picture())
    assert picture_key(picture()) != picture_key(picture(1))
    assert picture_key(Image.new("L", (2, 8))) != picture_key(Image.new("L", (8, 2)))
    assert text_key("a  b\n") == text_key(" a b")
    assert text_key("e\u0301") == text_key("é")
    assert text_key("a b") != text_key("ab")
    with pytest.raises(RequestError, match="no such file"):
        picture_key(tmp_path / "none.png")


def test_thumbnails() -> None:
    wide = Image.new("RGB", (300, 150), "green")
    shown = Image.open(io.BytesIO(base64.b64decode(thumbnail(wide))))
    assert (shown.format, shown.size, shown.getpixel((5, 5))) == ("PNG", (96, 48), (0, 128, 0))
    small = picture()
    shown = Image.open(io.BytesIO(base64.b64decode(thumbnail(encoded(small)))))
    assert np.array_equal(np.asarray(shown), np.asarray(small))
    assert Image.open(io.BytesIO(base64.b64decode(thumbnail(wide, side=20)))).size == (20, 10)
