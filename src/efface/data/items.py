"""Items: pictures, texts and labels from wherever they lie, in one form.

Columns of the result: `id` (text, unique) and those of `image` (`{"bytes", "path"}`, not decoded: see `open_picture`),
`text`, `label` (whole numbers, or a `ClassLabel` whose `names` are the classes) and `weight` that the source has.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
from datasets import ClassLabel, Dataset, Features, Value

from efface.data.pictures import (
    PICTURE_SUFFIXES,
    look_at_picture,
    open_picture,
    picture_key,
    text_key,
    thumbnail,
)
from efface.data.readers import HUB_NAME, SUFFIXES, _csv, _hub, _json, _jsonl, _open, _parquet
from efface.errors import RequestError

__all__ = ["items_of", "open_picture", "picture_key", "read_items", "text_key", "thumbnail"]

NAMES = {
    "image": ("image", "img", "picture", "file_name", "image_path"),
    "text": ("text", "caption", "question", "sentence", "prompt", "description"),
    "label": ("label", "class", "category", "fine_label"),
    "weight": ("weight",),
}
"""What the columns may be called; the first name that is there counts."""

Names = Mapping[str, tuple[str, ...]]
CONTENT = ("image", "text", "features")
"""Columns that can be what a row is about."""

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
READERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
BASE64 = re.compile(r"^(data:image/[\w.+-]+;base64,)?([A-Za-z0-9+/\s]{40,}={0,2})\s*$")


def read_items(
    source: str | Path | Dataset, *, split: str = "train", want: Sequence[str] = (), names: Names = NAMES
) -> Dataset:
    """Read pictures, texts and labels.

    Args:
        source: a folder of pictures (recursive, sorted; the class is the subfolder where all pictures lie in
            subfolders; or `metadata.jsonl`, `.csv`, `.parquet` with file_name), a JSONL, JSON, CSV or Parquet file (also
            gzip; pictures as a path relative to the file, base64, or a struct of bytes), a .txt file with one text a
            line, a hub name `user/name[:config][@revision]`, or a `Dataset`.
        split: the split, for hub names.
        want: columns that must be there, of `image`, `text`, `label`. Pictures are left out where only texts are wanted.
        names: the columns to look for, and what they may be called.

    Returns:
        a data set in the source's order; see the module.

    Raises:
        RequestError: a missing column, a missing or broken picture, an empty set or text, duplicate ids; names file, row
            and remedy. Pixels are decoded later: a truncated picture is refused by `open_picture`.
    """
    for name in want:
        if name not in names:
            raise RequestError(f"want={name!r}", ", ".join(names), "choose among them")
    skip = {"image"} if "text" in want and "image" not in want else set()
    if isinstance(source, Dataset):
        return _from_dataset(source, "the data set", want, skip, names)
    path, text = Path(source).expanduser(), str(source)
    if path.is_dir():
        return _from_folder(path, want, skip, names)
    if path.exists():
        suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
        if suffix == ".txt":
            return _from_rows(_lines(path), path.name, path.parent, want, skip, names)
        if suffix in PICTURE_SUFFIXES:
            raise RequestError(f"{path} is one picture", "a folder of pictures", "name the folder")
        if suffix not in READERS:
            raise RequestError(f"{path}: unknown format '{suffix}'", f"a folder, .txt, or one of {', '.join(SUFFIXES)}",
                               "convert the file")  # fmt: skip
        return _from_rows(READERS[suffix](path), path.name, path.parent, want, skip, names)
    if HUB_NAME.match(text) and not text.startswith(".") and not text.endswith((*SUFFIXES, ".txt")):
        return _from_dataset(_hub(text, split), text, want, skip, names)
    raise RequestError(f"no file or folder at '{text}'", "an existing one, or a hub name user/name[:config]",
                       "check the path")  # fmt: skip


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    """One text a line; a blank line would shift every later pair, so it is refused."""
    for number, line in enumerate(_open(path), 1):
        if not line.strip():
            raise RequestError(f"{path}, line {number}: blank", "one text a line", "fill or delete the line")
        yield {"text": line.rstrip("\r\n")}


def _from_folder(folder: Path, want: Sequence[str], skip: set[str], names: Names) -> Dataset:
    found = sorted(
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURE_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    metadata = next((folder / file for file in METADATA if (folder / file).exists()), None)
    if metadata is not None:
        rows = list(READERS[metadata.suffix](metadata))
        for index, row in enumerate(rows):
            if not isinstance(row.get("file_name"), str):
                raise RequestError(f"{metadata}, row {index}: columns {sorted(row)}", "a file_name", "add it")
        listed = {Path(row["file_name"]).as_posix() for row in rows}
        others = [path for path in found if path.as_posix() not in listed]
        if others:
            raise RequestError(f"{metadata} does not name {len(others)} pictures of the folder (first: {others[0]})",
                               "one row a picture", "add the rows, or move the pictures away")  # fmt: skip
        named = [{**row, "id": row.get("id", row["file_name"])} for row in rows]
        return _from_rows(named, str(metadata), folder, want, skip, names)
    if not found:
        raise RequestError(f"no pictures in {folder}", f"files {', '.join(PICTURE_SUFFIXES)}", "check the path")
    classes = all(len(path.parts) > 1 for path in found)
    rows = [
        {"id": path.as_posix(), "image": path.as_posix()} | ({"label": path.parent.name} if classes else {})
        for path in found
    ]
    return _from_rows(rows, str(folder), folder, want, skip, names)


# -- rows --------------------------------------------------------------------------------------------------------------


def _decoded(text: str, place: str) -> bytes:
    try:
        return base64.b64decode(re.sub(r"\s", "", text), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{place}: broken base64", "a whole picture", "encode it again") from error


def _picture(value: Any, base: Path, place: str) -> dict[str, Any]:
    """The cell of the `image` column: bytes with a name, or a path that is there."""
    if isinstance(value, dict):
        data, name = value.get("bytes"), value.get("path")
        if data is not None:
            data = _decoded(data, place) if isinstance(data, str) else bytes(data)
            return {"bytes": data, "path": str(name or place)}
        value = name
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value), "path": place}
    if not isinstance(value, str) or not value.strip():
        given = "empty" if isinstance(value, str) else type(value).__name__
        raise RequestError(f"{place}: {given}", "a path, base64 or bytes of a picture", "fill or drop the row")
    if value.startswith(("http://", "https://")):
        raise RequestError(f"{place}: the address {value[:60]}", "a picture on this machine", "download it first")
    if len(value) < 1024 and (base / value).exists():
        return {"bytes": None, "path": str((base / value).absolute())}
    encoded = BASE64.match(value)
    if encoded and (encoded[1] or len(value) >= 64):
        return {"bytes": _decoded(encoded[2], place), "path": place}
    raise RequestError(f"{place}: no picture at '{value[:120]}'", f"a path from {base}", "check the path")


def _cell(column: str, value: Any, base: Path, place: str) -> Any:
    place = f"{place}, column '{column}'"
    if column == "image":
        cell = _picture(value, base, place)
        look_at_picture(cell, place=place)
        return cell
    if column == "features":
        return _array(value, place)
    if column == "identity":
        return _identity(value, place.rpartition(",")[0], column)
    if column in ("weight", "target"):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise RequestError(f"{place}: {value!r}", "a finite number", "mend the row")
        return number
    if column == "label" and isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str) or not value.strip():
        given = "empty" if isinstance(value, str) else f"{type(value).__name__} ({str(value)[:40]!r})"
        expected = "some text" if column == "text" else "a class name or a whole number"
        raise RequestError(f"{place}: {given}", expected, "fill or drop the row")
    return value


def _columns(
    given: Iterable[str], source: str, want: Sequence[str], skip: set[str], names: Names
) -> dict[str, str]:  # fmt: skip
    """Our names to the source's names."""
    there = set(given)
    chosen = {
        column: next(name for name in options if name in there)
        for column, options in names.items()
        if column not in skip and there & set(options)
    }
    missing = [column for column in want if column not in chosen]
    content = [column for column in CONTENT if column in names and column not in skip]
    if not missing and not set(content) & set(chosen):
        missing = ["' or '".join(content)]
    if missing:
        known = " or ".join(names.get(missing[0], tuple(content)))
        raise RequestError(f"{source}: no column '{missing[0]}' (there are: {', '.join(sorted(there))})",
                           known, "add or rename the column")  # fmt: skip
    return chosen


def _identity(value: Any, place: str, column: str = "id") -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        remedy = "give each row a stable id" if column == "id" else "fill or drop the row"
        raise RequestError(f"{place}, column '{column}': {value!r}", "text or a whole number", remedy)
    return str(value)


def _array(value: Any, place: str) -> npt.NDArray[np.float32]:
    """A cell of the `features` column: finite numbers in one to four dimensions."""
    try:
        found = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        found = np.zeros((), dtype=np.float32)
    if not 1 <= found.ndim <= 4 or not found.size:
        raise RequestError(f"{place}: {str(value)[:60]!r}", "a list of numbers", "mend the row")
    if not np.isfinite(found).all():
        raise RequestError(f"{place}: NaN or infinity", "finite numbers", "mend or drop the row")
    return found


def _shape(arrays: Sequence[npt.NDArray[np.float32]], source: str) -> Any:
    """The feature of a column of arrays of one shape."""
    for index, array in enumerate(arrays):
        if array.shape != arrays[0].shape:
            raise RequestError(f"{source}, row {index}, column 'features': shape {list(array.shape)}",
                               f"{list(arrays[0].shape)}, as in row 0", "give every row the same shape")  # fmt: skip
    shape = arrays[0].shape
    if len(shape) == 1:
        return datasets.List(Value("float32"), length=shape[0])
    return {2: datasets.Array2D, 3: datasets.Array3D, 4: datasets.Array4D}[len(shape)](shape, "float32")


def _unique(ids: Sequence[str], source: str) -> None:
    seen: dict[str, int] = {}
    for index, identity in enumerate(ids):
        if identity in seen:
            raise RequestError(f"{source}, row {index}: id {identity!r} also in row {seen[identity]}", "unique ids",
                               "remove the duplicate or give it another id")  # fmt: skip
        seen[identity] = index


def _labels(values: Sequence[Any], source: str) -> tuple[list[int], Any]:
    """Whole numbers stay as they are; names become a `ClassLabel` in sorted order."""
    if all(isinstance(value, int) for value in values):
        return list(values), Value("int64")
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise RequestError(f"{source}, row {index}, column 'label': the number {value} among class names",
                               "all names or all whole numbers", "mend the row")  # fmt: skip
    names = sorted(set(values))
    place = {name: number for number, name in enumerate(names)}
    return [place[value] for value in values], ClassLabel(names=names)


def items_of(rows: Iterable[dict[str, Any]], source: str, base: Path, names: Names = NAMES) -> Dataset:
    """Rows in memory in the same form as those of a file.

    Args:
        source: what to call them in an error.
        base: where relative paths of pictures begin.
    """
    return _from_rows(rows, source, base, (), set(), names)


def _from_rows(
    rows: Iterable[dict[str, Any]], source: str, base: Path, want: Sequence[str], skip: set[str], names: Names
) -> Dataset:  # fmt: skip
    kept = list(rows)
    if not kept:
        raise RequestError(f"{source} is empty", "at least one row", "check the path or the filter that made it")
    chosen = _columns(kept[0], source, want, skip, names)
    data: dict[str, list[Any]] = {name: [] for name in ("id", *chosen)}
    for index, row in enumerate(kept):
        place = f"{source}, row {index}"
        data["id"].append(_identity(row.get("id", index), place))
        for column, name in chosen.items():
            if name not in row:
                raise RequestError(f"{place}, column '{name}': missing, while row 0 has it", "all rows or none",
                                   "fill the column everywhere or drop it")  # fmt: skip
            data[column].append(_cell(column, row[name], base, place))
        late = [name for column, options in names.items() if column not in chosen for name in options if name in row]
        if late and not skip & {column for column, options in names.items() if late[0] in options}:
            raise RequestError(f"{place}, column '{late[0]}': row 0 does not have it", "all rows or none",
                               "fill the column everywhere or drop it")  # fmt: skip
    _unique(data["id"], source)
    kinds: dict[str, Any] = {name: Value("string") for name in ("id", "text", "identity")}
    kinds |= {name: Value("float64") for name in ("weight", "target")}
    kinds["image"] = datasets.Image(decode=False)
    if "features" in data:
        kinds["features"] = _shape(data["features"], source)
    if "label" in data:
        data["label"], kinds["label"] = _labels(data["label"], source)
    return Dataset.from_dict(data, features=Features({name: kinds[name] for name in data}))


def _from_dataset(data: Dataset, source: str, want: Sequence[str], skip: set[str], names: Names) -> Dataset:
    """A ready set: columns are renamed and checked, pictures stay where they are."""
    if not len(data):
        raise RequestError(f"{source} is empty", "at least one row", "check the filter that made it")
    chosen = _columns(data.column_names, source, want, skip, names)
    identified = "id" in data.column_names
    data = data.select_columns([*(["id"] if identified else []), *chosen.values()])
    data = data.rename_columns({name: column for column, name in chosen.items() if name != column})
    if "image" in chosen:
        if isinstance(data.features["image"], datasets.Image):
            data = data.cast_column("image", datasets.Image(decode=False))
        else:  # paths or bytes in plain columns
            cells = [_picture(value, Path(), f"{source}, row {i}") for i, value in enumerate(data["image"])]
            data = data.remove_columns("image").add_column("image", cells, feature=datasets.Image(decode=False))
        for index, value in enumerate(data["image"]):
            if value is None:
                raise RequestError(f"{source}, row {index}, column 'image': missing", "a picture", "drop the row")
            look_at_picture(value, place=f"{source}, row {index}, column 'image'")
    if "features" in chosen:
        arrays = list(data.with_format("numpy")["features"])
        rows = [_array(value, f"{source}, row {i}, column 'features'") for i, value in enumerate(arrays)]
        column = Dataset.from_dict({"features": rows}, features=Features({"features": _shape(rows, source)}))
        data = datasets.concatenate_datasets([data.remove_columns("features"), column], axis=1)
    for column in ("text", "label", "weight", "target", "identity"):
        if column in chosen:
            values = [_cell(column, value, Path(), f"{source}, row {i}") for i, value in enumerate(data[column])]
            if column == "label" and not isinstance(data.features["label"], ClassLabel):
                numbers, feature = _labels(values, source)
                data = data.remove_columns("label").add_column("label", numbers, feature=feature)
            elif column == "identity":
                data = data.remove_columns(column).add_column(column, values)
    ids = data["id"] if identified else range(len(data))
    ids = [_identity(value, f"{source}, row {index}") for index, value in enumerate(ids)]
    _unique(ids, source)
    if identified:
        data = data.remove_columns("id")
    data = data.add_column("id", ids)
    return data.select_columns(["id", *chosen])
