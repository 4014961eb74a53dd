"""Labelled rows: what classifiers and regressors learn from, and how to say which of them are to be forgotten.

Columns: `id`; `image`, `text` or `features` (an array of one shape); `label` (a class) or `target` (a number); optionally
`identity` (whose row it is). A source may carry a selection: `train.csv#class=cat`, `faces.npz#identity=7,9`,
`ages.csv#target=0:30` (numbers from 0 up to, but not, 30; either end may be left out), `train.csv#random=0.1:5` (a share, or a
number of rows, drawn by a seed), `train.csv#ids=ids.txt`; with `!` in front, everything else: `train.csv#!class=cat`. So a
request is two words over one file, and can be read again.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset
from PIL import Image

from efface.data.items import CONTENT, NAMES, Names, items_of, read_items
from efface.data.pictures import picture_key, text_key
from efface.errors import RequestError, nearest

LABELLED = {
    "image": NAMES["image"],
    "text": NAMES["text"],
    "features": ("features", "x", "vector"),
    "label": NAMES["label"],
    "target": ("target", "y", "score", "value"),
    "identity": ("identity", "person", "subject", "group"),
}
"""What the columns may be called; the first name that is there counts."""

LEARNT = LABELLED | {"weight": NAMES["weight"]}
"""The same for `read_rows`, with a row's importance."""

SELECTIONS = ("class", "target", "identity", "random", "ids")
ARRAYS = {"images": "image", "labels": "label", "targets": "target", "identities": "identity", "ids": "id"}
"""Names in an .npz file that are plural forms of ours."""


def read_labelled(source: str | Path | Dataset, *, split: str = "train") -> Dataset:
    """Read labelled rows, or the selected ones.

    Args:
        source: what `read_items` takes, or an .npz file (`features` [N, ...] or `images` uint8 [N, H, W(, 3)], `labels` or
            `targets` [N], optionally `identities` and `ids`), with an optional selection after `#`.

    Returns:
        columns as the module says, in the source's order.

    Raises:
        RequestError: see `read_items`; a row that is neither labelled nor has a target; an unknown or empty selection.
    """
    if isinstance(source, Dataset):
        return _checked(read_items(source, names=LABELLED), "the data set")
    place, _, chosen = str(source).partition("#")
    return select(_checked(_read(place, split), place), chosen, place)


def _read(place: str, split: str, want: tuple[str, ...] = (), names: Names = LABELLED) -> Dataset:
    path = Path(place).expanduser()
    if path.suffix == ".npz" and path.is_file():
        rows = items_of(_arrays(path), path.name, path.parent, names)
        return read_items(rows, want=want, names=names) if want else rows
    return read_items(place, split=split, want=want, names=names)


def read_rows(source: str | Path | Dataset, *, split: str = "train", want: tuple[str, ...] = ()) -> Dataset:
    """Read pictures, texts or arrays, with labels or targets where there are some; selections as in `read_labelled`.

    Args:
        want: columns that must be there, of `label`, `target`, `image`, `text`, `features`.

    Raises:
        RequestError: see `read_items`; an unknown or empty selection.
    """
    if isinstance(source, Dataset):
        return read_items(source, want=want, names=LEARNT)
    place, _, chosen = str(source).partition("#")
    return select(_read(place, split, want, LEARNT), chosen, place)


def _checked(data: Dataset, source: str) -> Dataset:
    answers = [name for name in ("label", "target") if name in data.column_names]
    content = [name for name in CONTENT if name in data.column_names]
    if not answers:
        raise RequestError(
            f"{source}: neither labels nor targets (columns: {', '.join(data.column_names)})", "a column 'label' or 'target'",
            "add one",
        )  # fmt: skip
    if len(content) > 1:
        raise RequestError(f"{source}: columns {' and '.join(content)}", "one kind of input", "drop the others")
    if len(answers) > 1:
        data = data.remove_columns("target" if isinstance(data.features["label"], ClassLabel) else "label")
    return data


def is_labelled(data: Dataset) -> bool:
    """Whether a data set has labels or targets (and is no set of questions and answers)."""
    return bool({"label", "target"} & set(data.column_names)) and "answer" not in data.column_names


# -- .npz ----------------------------------------------------------------------------------------------------------


def _arrays(path: Path) -> list[dict[str, Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {ARRAYS.get(name, name): file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise RequestError(
            f"{path} is not a whole .npz file of plain arrays ({error})", None, "save it again"
        ) from error
    counts = {name: len(array) if array.ndim else 0 for name, array in found.items()}
    if not found or len(set(counts.values())) != 1 or not min(counts.values()):
        raise RequestError(f"{path}: arrays of lengths {counts}", "arrays with one row an example", "mend the file")
    columns: dict[str, Any] = {}
    for name, array in found.items():
        if name == "image":
            columns[name] = [_png(picture, f"{path}, row {i}") for i, picture in enumerate(array)]
        else:
            columns[name] = list(array) if array.ndim > 1 else array.tolist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _png(array: Any, place: str) -> bytes:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise RequestError(
            f"{place}: a picture of {array.dtype} {list(array.shape)}", "uint8 [H, W] or [H, W, 3]",
            "convert it, or call the array 'features'",
        )  # fmt: skip
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


# -- selections ----------------------------------------------------------------------------------------------------


def select(data: Dataset, chosen: str, source: str) -> Dataset:
    """The rows that a selection names, in order.

    Args:
        chosen: what stands after `#`; empty for all rows.

    Raises:
        RequestError: no such selection, class, identity or id, no range, or nothing left.
    """
    if not chosen:
        return data
    other = chosen.startswith("!")
    key, equals, value = chosen.removeprefix("!").partition("=")
    if key not in SELECTIONS or not equals or not value:
        raise RequestError(f"'{source}#{chosen}'", f"#NAME=VALUE with NAME of {', '.join(SELECTIONS)}",
                           nearest(key, SELECTIONS))  # fmt: skip
    readers = {"class": _of_class, "target": _of_target, "identity": _of_identity, "random": _random, "ids": _of_ids}
    places = set(readers[key](data, value, source))
    kept = [i for i in range(len(data)) if (i in places) != other]
    if not kept:
        raise RequestError(f"'{source}#{chosen}' selects no row", "at least one", "choose another selection")
    return data.select(kept)


def _of_class(data: Dataset, value: str, source: str) -> Iterator[int]:
    if "label" not in data.column_names:
        raise RequestError(f"'{source}' has no labels, so no class", "a column 'label'",
                           "select by target, identity or ids")  # fmt: skip
    names = data.features["label"].names if isinstance(data.features["label"], ClassLabel) else None
    known = names or sorted({str(label) for label in data["label"]})
    wanted = set()
    for name in value.split(","):
        if name not in known and not (names and name.isdecimal() and int(name) < len(names)):
            raise RequestError(f"'{source}' has no class '{name}'", None, nearest(name, known))
        wanted.add(names.index(name) if names and name in names else int(name))
    return (i for i, label in enumerate(data["label"]) if label in wanted)


def _of_target(data: Dataset, value: str, source: str) -> Iterator[int]:
    """low <= target < high, so that 0:30 and 30:60 share no row."""
    if "target" not in data.column_names:
        raise RequestError(f"'{source}' has no targets, so no range of them", "a column 'target'", "select by class")
    first, colon, last = value.partition(":")
    try:
        low, high = float(first or "-inf"), float(last or "inf")
    except ValueError:
        low = high = float("nan")
    if not colon or not (first or last) or not low < high:
        raise RequestError(f"'{source}#target={value}'", "LOW:HIGH with LOW below HIGH, one of which may be left out: 0:30, "
                           ":30, 60:", "mend it")  # fmt: skip
    try:
        numbers = [float(number) for number in data["target"]]
    except (TypeError, ValueError) as error:
        raise RequestError(
            f"'{source}' has targets that are no numbers ({error})", "numbers", "mend the file"
        ) from error
    return (i for i, number in enumerate(numbers) if low <= number < high)


def _of_identity(data: Dataset, value: str, source: str) -> Iterator[int]:
    if "identity" not in data.column_names:
        raise RequestError(f"'{source}' does not say whose rows they are", "a column 'identity'", "add it")
    there = set(data["identity"])
    for name in value.split(","):
        if name not in there:
            raise RequestError(f"'{source}' has no identity '{name}'", None, nearest(name, there))
    wanted = set(value.split(","))
    return (i for i, name in enumerate(data["identity"]) if name in wanted)


def _random(data: Dataset, value: str, source: str) -> Iterator[int]:
    size, _, seed = value.partition(":")
    try:
        number, start = float(size), int(seed or 0)
    except ValueError:
        number, start = -1.0, 0
    count = round(number * len(data)) if "." in size else int(number)
    if not 0 < count < len(data) or start < 0:
        raise RequestError(f"'{source}#random={value}'", f"a share such as 0.1, or a number below {len(data)}, then :SEED",
                           "mend it")  # fmt: skip
    return iter(np.random.default_rng(start).permutation(len(data))[:count].tolist())


def _of_ids(data: Dataset, value: str, source: str) -> Iterator[int]:
    try:
        wanted = {
            line.strip() for line in Path(value).expanduser().read_text(encoding="utf-8").splitlines() if line.strip()
        }
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"cannot read '{value}' ({error})", "a text file with one id a line", "check it") from error
    missing = sorted(wanted - set(data["id"]))
    if missing:
        raise RequestError(f"'{source}' has no row with the id '{missing[0]}'", f"ids of '{source}'", "mend the list")
    return (i for i, identity in enumerate(data["id"]) if identity in wanted)


# -- content -------------------------------------------------------------------------------------------------------


def content_key(row: dict[str, Any]) -> str:
    """A key of what a row shows, its label left out: equal keys mean equal inputs."""
    if "image" in row:
        return picture_key(row["image"])
    if "text" in row:
        return text_key(row["text"])
    array = np.ascontiguousarray(row["features"], dtype="<f4")
    return hashlib.sha256(str(array.shape).encode() + array.tobytes()).hexdigest()


def plain_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON values: its content by its key."""
    return {name: value for name, value in row.items() if name not in CONTENT} | {"content": content_key(row)}


__all__ = ["LABELLED", "SELECTIONS", "content_key", "is_labelled", "plain_row", "read_labelled", "select"]
