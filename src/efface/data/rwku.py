"""RWKU's published data (arXiv 2406.10890), from the hub or from a folder of the same layout.

Configs: `forget_level1..3`, `neighbor_level1..2` {subject, query, answer, level, type}; `mia_forget`, `mia_retain` {subject,
text}; `utility_general` (MMLU), `utility_reason` (BBH), `utility_truthfulness` (TruthfulQA), `utility_factuality` (TriviaQA),
`utility_fluency` (instructions). A folder holds CONFIG.json, .jsonl or .parquet, CONFIG/*.parquet as on the hub, or one folder
a target as the official script writes them. Neither data nor biographies are shipped with efface: its targets are living people.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from efface.data.readers import HUB_NAME
from efface.errors import RequestError

HUB = "jinzhuoran/RWKU"
COLUMNS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("forget_level1", "forget_level2", "forget_level3", "neighbor_level1", "neighbor_level2"),
        ("subject", "query", "answer"),
    ),
    **dict.fromkeys(("mia_forget", "mia_retain"), ("text",)),
    "utility_general": ("question", "choices", "answer"),
    "utility_reason": ("question", "answer", "cot"),
    "utility_truthfulness": ("question", "mc1_targets", "mc2_targets"),
    "utility_factuality": ("question", "answers"),
    "utility_fluency": ("instruction",),
}
"""Columns that a config must have."""

OFFICIAL_NAMES = {
    "utility_general": "retain_mmlu", "utility_reason": "retain_bbh", "utility_truthfulness": "truthful",
    "utility_factuality": "triviaqa", "utility_fluency": "fluency",
}  # fmt: skip
"""What the official script calls a config in the folder of a target."""

TYPES = {
    "prefix injection": "prefix-injection", "affirmative suffix": "affirmative-suffix", "role playing": "role-playing",
    "multiple choice": "multiple-choice", "reverse query": "reverse-query",
    "synonym manipulation": "synonym-manipulation", "background hint": "background-hint",
    "incontext learning": "in-context-learning", "in-context learning": "in-context-learning",
    "cross lingual": "cross-lingual", "cross-lingual": "cross-lingual",
}  # fmt: skip
"""Published names of the attack types -> efface's; another one keeps its name, with hyphens."""


def attack_type(name: str) -> str:
    """The type of a level 3 row as efface calls it."""
    plain = " ".join(name.lower().replace("_", " ").split())
    return TYPES.get(plain, re.sub(r"[^a-z0-9]+", "-", plain).strip("-") or "other")


def read_config(
    source: str, config: str, subjects: Sequence[str] = (), *, optional: bool = False
) -> list[dict[str, Any]]:
    """Rows of one config.

    Args:
        source: a folder, or a hub name `user/name[@revision]`.
        config: a key of `COLUMNS`.
        subjects: only rows of these targets, where rows name one; empty: all.
        optional: a folder without this config gives no rows. (Of a hub name every config is expected.)

    Raises:
        RequestError: no such source or config, an unreadable file, a missing column, no row of the asked subjects.
    """
    if config not in COLUMNS:
        raise RequestError(f"config '{config}'", f"one of {', '.join(COLUMNS)}")
    folder = Path(source).expanduser()
    if folder.is_dir():
        rows = _of_folder(folder, config)
        if rows is None and optional:
            return []
        if rows is None:
            raise RequestError(
                f"no {config} in '{source}'", f"{config}.json, .jsonl or .parquet", "give the data's folder"
            )
    elif HUB_NAME.match(source) and not source.startswith("."):
        rows = _of_hub(source, config)
    else:
        raise RequestError(f"no folder at '{source}'", f"a folder or a hub name such as {HUB}", "check the path")
    found = _checked(rows, config, source)
    kept = [row for row in found if not subjects or "subject" not in row or row["subject"] in set(subjects)]
    if not kept:
        raise RequestError(
            f"{source}, {config}: no row of {', '.join(subjects)[:80] or 'any subject'}", "targets as the data name them",
            "check the concepts of the request, or the setting 'subjects'",
        )  # fmt: skip
    return kept


def _of_folder(folder: Path, config: str) -> list[Any] | None:
    readers: dict[str, Callable[[Path], Iterable[Any]]] = {".json": _json, ".jsonl": _lines, ".parquet": _parquet}
    try:
        for suffix, read in readers.items():
            if (path := folder / f"{config}{suffix}").exists():
                return list(read(path))
        parts = sorted((folder / config).glob("*.parquet"))
        if not parts:
            names = (config, OFFICIAL_NAMES.get(config, config))
            parts = sorted({path for name in names for path in folder.glob(f"*/{name}.json")}, key=_number)
            return [row for path in parts for row in _json(path)] if parts else None
        return [row for path in parts for row in _parquet(path)]
    except (ValueError, TypeError, OSError, pa.ArrowException) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RequestError(f"{folder}, {config} cannot be read ({first[:160]})", None, "download it again") from error


def _number(path: Path) -> tuple[int, str]:
    """Folders of targets are numbered: 2_... comes before 10_..."""
    head = path.parent.name.split("_")[0]
    return (int(head) if head.isdigit() else 10**9, str(path))


def _json(path: Path) -> list[Any]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list):
        raise ValueError(f"{path.name} holds a {type(rows).__name__}, not a list")
    return rows


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _parquet(path: Path) -> list[Any]:
    rows: list[Any] = pa.parquet.read_table(path).to_pylist()
    return rows


def _of_hub(source: str, config: str) -> list[Any]:
    import datasets

    name, _, revision = source.partition("@")
    try:
        return list(datasets.load_dataset(name, config, split="test", revision=revision or None))
    except Exception as error:
        said = str(error).strip()
        raise RequestError(
            f"cannot load {config} of '{source}' from the hub ({(said.splitlines() or [type(error).__name__])[0][:160]})",
            "data in RWKU's layout", "check the name and the network, or give a folder",
        ) from error  # fmt: skip


def _checked(rows: Sequence[Any], config: str, source: str) -> list[dict[str, Any]]:
    if not rows:
        raise RequestError(f"{source}, {config} is empty", "one row or more", "download it again")
    found = []
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise RequestError(f"{source}, {config}, row {index}: {type(row).__name__}", "an object")
        for column in COLUMNS[config]:
            if row.get(column) is None or row[column] in ("", []):
                raise RequestError(
                    f"{source}, {config}, row {index}, column '{column}': {row.get(column)!r}", "a value"
                )
        found.append(dict(row))
    return found


__all__ = ["COLUMNS", "HUB", "TYPES", "attack_type", "read_config"]
