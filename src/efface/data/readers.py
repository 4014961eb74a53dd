"""Read a data set from a file (JSONL, JSON, CSV, Parquet; also gzip) or from the hub (`name` or `name:config`).

Local files are read with the standard library, so that a broken line is named by its number.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from datasets import Dataset

from efface.data.columns import canonical
from efface.data.joined import JOIN, join
from efface.errors import RequestError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz")
HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+(:[\w.-]+)?(@[\w.-]+)?$")


def _open(path: Path) -> io.StringIO:
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        return io.StringIO(data.decode("utf-8-sig"), newline="")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RequestError(f"{path} is not a whole gzip file ({error})", None, "copy or download it again") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 text (byte {error.start})", None, "save it as UTF-8") from error
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror or error}", None, "check the path") from error


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_open(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RequestError(
                f"{path}, line {number}: not JSON ({error})", "one JSON object a line", "mend the line"
            ) from error
        if not isinstance(row, dict):
            raise RequestError(
                f"{path}, line {number}: {type(row).__name__}", "one JSON object a line", "mend the line"
            )
        yield row


def _json(path: Path) -> Iterator[dict[str, Any]]:
    try:
        rows = json.load(_open(path))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: not JSON ({error})", "a list of objects", "mend the file") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RequestError(f"{path}: {type(rows).__name__}", "a JSON list of objects", "use one object a row")
    yield from rows


def _lines(reader: csv.DictReader[str], path: Path) -> Iterator[dict[str | Any, Any]]:
    try:
        yield from reader
    except csv.Error as error:  # a field beyond the limit, a zero byte
        raise RequestError(
            f"{path}, line {reader.line_num + 1}: {error}", "fields of ordinary length", "mend the line, or use JSONL"
        ) from error


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(_open(path))
    for row in _lines(reader, path):
        if None in row or None in row.values():
            raise RequestError(
                f"{path}, line {reader.line_num}: {'more' if None in row else 'fewer'} fields than the header",
                "as many fields as the header names", "quote fields that contain commas",
            )  # fmt: skip
        plain: dict[str, Any] = dict(row)
        if "perturbed_answer" in plain:  # a JSON list within the field
            try:
                plain["perturbed_answer"] = json.loads(plain["perturbed_answer"])
            except ValueError:
                plain["perturbed_answer"] = [plain["perturbed_answer"]]
        yield plain


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        yield from pa.parquet.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise RequestError(f"{path} is not a Parquet file ({error})", None, "export it again") from error


def _hub(source: str, split: str) -> Dataset:
    import datasets

    name, _, revision = source.partition("@")
    name, _, config = name.partition(":")
    try:
        return datasets.load_dataset(name, config or None, split=split, revision=revision or None)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RequestError(
            f"cannot load '{source}' from the hub ({first[:160]})", "a data set name, optionally name:config@revision",
            "check the name and the network, or give a local file",
        ) from error  # fmt: skip


def read_dataset(source: str | Path, *, split: str = "train") -> Dataset:
    """Read and canonicalise a data set.

    Args:
        source: a local file (JSONL, JSON, CSV, Parquet, gzip) or a hub name `user/name[:config][@revision]`; several
            joined by " + " are requests that come one after another (`efface.data.joined`).
        split: the split, for hub names.

    Returns:
        columns `id`, `question`, `answer`, and `paraphrased_answer`, `perturbed_answer` where present.

    Raises:
        RequestError: missing or broken file, unknown format, bad rows; one line that says where.
    """
    path = Path(source).expanduser()
    text = str(source)
    if JOIN in text and not path.exists():
        sources = text.split(JOIN)
        return join([read_dataset(part, split=split) for part in sources], sources)
    if path.is_dir():
        raise RequestError(f"{path} is a folder", f"a file ({', '.join(SUFFIXES)})", "name the file in it")
    if path.exists():
        name = path.name.removesuffix(".gz")
        readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}
        suffix = Path(name).suffix
        if suffix not in readers:
            raise RequestError(
                f"{path}: unknown format '{suffix}'", f"one of {', '.join(SUFFIXES)}", "convert the file"
            )
        return canonical(readers[suffix](path), path.name)
    if HUB_NAME.match(text) and not text.startswith(".") and not any(text.endswith(end) for end in SUFFIXES):
        return canonical(_hub(text, split), text)
    raise RequestError(f"no file at '{text}'", "an existing file or a hub name user/name[:config]", "check the path")
