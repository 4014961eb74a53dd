"""MUSE's corpora (arXiv 2407.06460), read from the hub or from a folder of the same layout, and forget sets cut as its.

Splits are named CONFIG/SPLIT: `verbmem/forget` {prompt, gt}; `knowmem/{forget,retain}_qa` and `_qa_icl` {question, answer};
`privleak/{forget,retain,holdout}` {text}; `scal/forget_1..4` (each holds the one before), `sust/forget_1..4` (disjoint), of the
News corpus only. A folder holds CONFIG/SPLIT.json (the official download), .jsonl, .csv, or the hub's Parquet files. Revisions
differ in one name: `retain` is called `retain2` in some.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from datasets import Dataset, concatenate_datasets

from efface.data.columns import canonical
from efface.data.readers import HUB_NAME
from efface.errors import ConfigError, RequestError

COLUMNS = {"verbmem": ("prompt", "gt"), "knowmem": ("question", "answer")}
"""Columns of a config; every other one has `text`."""

PARTS = 4
"""Forget sets of `scal` and folds of `sust`."""


def read_split(source: str, config: str, split: str) -> list[dict[str, str]]:
    """The rows of a published split, with the columns of its config.

    Args:
        source: a folder, or a hub name `user/name[@revision]`.
        config: `verbmem`, `knowmem`, `privleak`, `raw`, `train`, `scal` or `sust`.
        split: as in the module's first lines; `retain...` is also looked for as `retain2...`.

    Raises:
        RequestError: no such source or split, a missing column, or an empty text.
    """
    folder = Path(source).expanduser()
    names = [split, split.replace("retain", "retain2", 1)] if split.startswith("retain") else [split]
    if folder.is_dir():
        rows = _of_folder(folder / config, names)
    elif HUB_NAME.match(source) and not source.startswith("."):
        rows = _of_hub(source, config, names)
    else:
        raise RequestError(f"no folder at '{source}'", "a folder or a hub name user/name", "check the path")
    return _checked(rows, COLUMNS.get(config, ("text",)), f"{source}, {config}/{split}")


def _of_folder(folder: Path, names: Sequence[str]) -> list[Any]:
    for name in names:
        parts = sorted(folder.glob(f"{name}-[0-9]*.parquet")) or [folder / f"{name}.parquet"]
        try:
            if parts[0].exists():
                return [row for part in parts for row in pa.parquet.read_table(part).to_pylist()]
            if (path := folder / f"{name}.json").exists():
                return list(json.loads(path.read_text(encoding="utf-8")))
            if (path := folder / f"{name}.jsonl").exists():
                lines = path.read_text(encoding="utf-8").splitlines()
                return [json.loads(line) for line in lines if line.strip()]
            if (path := folder / f"{name}.csv").exists():
                with path.open(encoding="utf-8", newline="") as file:
                    return list(csv.DictReader(file))
        except (ValueError, TypeError, OSError, pa.ArrowException) as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RequestError(f"{folder / name} cannot be read ({first[:160]})", None, "download it again") from error
    raise RequestError(
        f"no {names[0]} in '{folder}'", f"{names[0]}.json, .jsonl, .csv or .parquet", "give the folder of one corpus"
    )


def _of_hub(source: str, config: str, names: Sequence[str]) -> list[Any]:
    import datasets

    name, _, revision = source.partition("@")
    for split in names[:-1]:
        with contextlib.suppress(ValueError):  # no split of that name: the other revision's may be there
            return list(datasets.load_dataset(name, config, split=split, revision=revision or None))
    try:
        return list(datasets.load_dataset(name, config, split=names[-1], revision=revision or None))
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RequestError(
            f"cannot load {config}/{names[0]} of '{source}' from the hub ({first[:160]})", "a corpus of MUSE's layout",
            "check the name and the network, or give a folder",
        ) from error  # fmt: skip


def _checked(rows: list[Any], columns: tuple[str, ...], place: str) -> list[dict[str, str]]:
    found = []
    for index, row in enumerate(rows):
        given = {"text": row} if isinstance(row, str) else row
        if not isinstance(given, dict):
            raise RequestError(f"{place}, row {index}: {type(row).__name__}", "an object or a text", "mend the row")
        for column in columns:
            value = given.get(column)
            if not isinstance(value, str) or not value.strip():
                raise RequestError(f"{place}, row {index}, column '{column}': {value!r}", "a text that is not empty")
        found.append({column: given[column] for column in columns})
    if not found:
        raise RequestError(f"{place} is empty", "one row or more", "download it again")
    return found


def few_shot(question: str, examples: Sequence[tuple[str, str]]) -> str:
    """The prompt of a question after worked examples; it ends where the answer begins."""
    shown = "".join(f"Question: {q}\nAnswer: {a}\n\n" for q, a in examples)
    return f"{shown}Question: {question}\nAnswer: "


def folds(data: Dataset, parts: int = PARTS, *, seed: int | None = None) -> list[Dataset]:
    """Disjoint parts of a forget set, for requests that come one after another (`sust`); sizes differ by one at most.

    Args:
        data: rows; a part keeps their order.
        parts: how many.
        seed: rows are dealt out at random; None: runs of neighbouring rows.

    Raises:
        ConfigError: fewer rows than parts.
    """
    if parts < 1 or len(data) < parts:
        raise ConfigError(f"{parts} parts of {len(data)} rows", "one row or more in each part", "ask for fewer parts")
    order = np.arange(len(data)) if seed is None else np.random.default_rng(seed).permutation(len(data))
    return [data.select(sorted(part.tolist())) for part in np.array_split(order, parts)]


def nested(data: Dataset, parts: int = PARTS, *, seed: int | None = None) -> list[Dataset]:
    """Growing forget sets, each of which holds the one before; the last is the whole (`scal`). Raises as `folds` does."""
    single = folds(data, parts, seed=seed)
    return [concatenate_datasets(single[: count + 1]) for count in range(parts)]


def documents(source: str, config: str, split: str) -> Dataset:
    """A split of texts as canonical rows without questions, for `--forget` and `--retain` in Python."""
    return canonical(read_split(source, config, split), f"{config}/{split}")


__all__ = ["documents", "few_shot", "folds", "nested", "read_split"]
