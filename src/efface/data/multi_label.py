"""Rows with several right labels each: queries, label texts, and which belong together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from efface.data.items import READERS
from efface.errors import RequestError


@dataclass(frozen=True)
class LabelledQueries:
    """What is to be learnt.

    Attributes:
        rows: places of the kept queries in the data; those without labels are dropped.
        relevant: for each kept query the places of its labels, sorted, none twice.
        texts: [L] label texts, all different.
        dropped: queries without labels.
        merged: labels whose text another label has too; they became one.
    """

    rows: list[int]
    relevant: list[list[int]]
    texts: list[str]
    dropped: int
    merged: int


def read_multi_label(source: str | Path | Dataset) -> Dataset:
    """Rows with `text` or `image`, and `labels`: a list of label texts or ids. A label may be named alone, without a list.

    Args:
        source: a JSONL, JSON or Parquet file, or a data set with these columns.

    Raises:
        RequestError: a missing column, an unknown kind of file, labels that are no texts.
    """
    if isinstance(source, Dataset):
        data = source
    else:
        path = Path(source).expanduser()
        reader = READERS.get(path.suffix)
        if reader is None or path.suffix == ".csv" or not path.is_file():
            raise RequestError(f"'{source}'", "a JSONL, JSON or Parquet file with lists of labels", "convert it")
        data = Dataset.from_list(list(reader(path)))
    names = data.column_names
    if "labels" not in names or not {"text", "image"} & set(names):
        raise RequestError(
            f"the columns {', '.join(names) or 'none'}", "'text' or 'image', and 'labels'", "rename a column"
        )
    if "id" not in names:
        data = data.add_column("id", [str(i) for i in range(len(data))])
    return data


def read_labels(file: str | Path) -> dict[str, str]:
    """Label texts by id, from a JSON object, or a JSONL file of rows with `id` and `text`.

    Raises:
        RequestError: no such file, or another form.
    """
    path = Path(file).expanduser()
    try:
        if path.suffix == ".jsonl":
            found = {str(row["id"]): row["text"] for row in READERS[".jsonl"](path)}
        else:
            found = {str(name): text for name, text in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise RequestError(
            f"label file '{file}' ({type(error).__name__}: {error})", "a JSON object id: text, or JSONL with id and text",
            "mend the file",
        ) from error  # fmt: skip
    return found


def label_queries(columns: Sequence[Any], texts: dict[str, str] | None = None) -> LabelledQueries:
    """Number the labels.

    Args:
        columns: the labels of each row: a list, one label, or None.
        texts: label texts by id; every one of them is a label, whether a row has it or not. Default: labels are texts.

    Raises:
        RequestError: a label without a text, an empty text, a label that is neither text nor whole number, no labels at all.
    """
    lists = [[] if value is None else [value] if isinstance(value, (str, int)) else list(value) for value in columns]
    for row, line in enumerate(lists):
        for label in line:
            if isinstance(label, bool) or not isinstance(label, (str, int)):
                raise RequestError(f"row {row}: the label {label!r}", "a text or an id", "mend the row")
            if texts is not None and str(label) not in texts:
                raise RequestError(f"row {row}: the label '{label}' has no text", "a text of every label",
                                   "add it to label_file")  # fmt: skip
    known = texts if texts is not None else {str(label): str(label) for line in lists for label in line}
    for name, text in known.items():
        if not isinstance(text, str) or not text.strip():
            raise RequestError(f"the label '{name}' has the text {text!r}", "some text", "describe the label")
    order = {text: place for place, text in enumerate(sorted({text.strip() for text in known.values()}))}
    if len(order) < 2:
        raise RequestError(f"{len(order)} labels", "two or more", "give rows with labels")
    relevant = [sorted({order[known[str(label)].strip()] for label in line}) for line in lists]
    rows = [row for row, line in enumerate(relevant) if line]
    return LabelledQueries(
        rows=rows, relevant=[relevant[row] for row in rows], texts=list(order), dropped=len(lists) - len(rows),
        merged=len(known) - len(order),
    )  # fmt: skip


__all__ = ["LabelledQueries", "label_queries", "read_labels", "read_multi_label"]
