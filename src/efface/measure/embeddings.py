"""Embed a column of a data set in parts: each part is stored when it is done, so that a killed run goes on.

A part's key holds the model's digest and the digests of its items' contents; a part of another model, other items or another
batch size is made anew. The finished array is one memory-mapped `.npy`, so that a corpus need not fit into memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from efface.data.pictures import open_picture, picture_key, text_key
from efface.errors import EffaceError, InputError
from efface.run.digests import digest_file, digest_tensors, digest_value
from efface.run.files import read_json, write_json, write_with
from efface.run.progress import SHOW, track

ARRAY, KEY = "embeddings.npy", "embeddings.json"
NAMED = 5
"""Items that cannot be opened are named, up to this many of a part."""


class Embedder(Protocol):
    """What a tower promises (see `efface.subjects.tower`)."""

    @property
    def modality(self) -> Any: ...

    def embed(self, items: Sequence[Any], batch_size: int = 64) -> Tensor: ...


@dataclass(frozen=True)
class EmbeddedColumn:
    """A column as embeddings.

    Attributes:
        values: [N, D] float32, memory-mapped and read-only.
        ids: N ids of the data set.
        keys: N content keys, the same for every model.
        modality: of the tower.
    """

    values: npt.NDArray[np.float32]
    ids: list[str]
    keys: list[str]
    modality: str


def embed_in_parts(
    tower: Embedder,
    data: Dataset,
    column: str,
    folder: Path,
    *,
    model: str,
    part_rows: int = 2048,
    batch_size: int = 64,
) -> EmbeddedColumn:
    """Embed `data[column]`, going on from the parts that are in `folder`.

    Args:
        tower: one modality of a model.
        data: rows with an `id` and the column: texts, or pictures as `open_picture` takes them.
        column: which one.
        folder: for parts and the finished array; parts are removed when that is there.
        model: digest of the model's weights.
        part_rows: items of a part; at most this much work is lost to a kill.
        batch_size: items of one pass.

    Raises:
        InputError: no such column, no rows, or items that cannot be opened (named by id).
    """
    for name in ("id", column):
        if name not in data.column_names:
            raise InputError(f"data with columns {data.column_names}", f"a column '{name}'", "rename the column")
    if len(data) == 0:
        raise InputError(f"no rows to embed in column '{column}'", "at least one", "check the source")
    if part_rows < 1 or batch_size < 1:
        raise InputError(f"part_rows={part_rows}, batch_size={batch_size}", "at least 1 each", "choose larger ones")
    folder = Path(folder)
    ids = [str(name) for name in data["id"]]
    keys = _keys(tower, data, column, ids, part_rows)
    facts = {
        "model": model, "modality": str(tower.modality), "batch_size": batch_size, "part_rows": part_rows,
        "items": digest_value(keys), "rows": len(keys),
    }  # fmt: skip
    values = _finished(folder, facts)
    if values is None:
        values = _embed(tower, data, column, ids, keys, folder, facts)
    return EmbeddedColumn(values, ids, keys, str(tower.modality))


def _keys(tower: Embedder, data: Dataset, column: str, ids: list[str], part_rows: int) -> list[str]:
    """Content keys of all items; what cannot be read is named by id."""
    key = text_key if tower.modality == "text" else picture_key
    found: list[str] = []
    for start in range(0, len(ids), part_rows):
        items = data[start : start + part_rows][column]
        found.extend(_each(items, ids[start:], column, key))
    return found


def _each(items: Sequence[Any], ids: Sequence[str], column: str, work: Any) -> list[Any]:
    """`work` on every item.

    Raises:
        InputError: it failed on some of them; they are named by id, with the first one's reason.
    """
    done, bad = [], []
    reason = ""
    for name, item in zip(ids, items, strict=False):
        try:
            done.append(work(item))
        except (EffaceError, OSError, ValueError, TypeError, AttributeError) as error:
            bad.append(name)
            reason = reason or str(error)
    if bad:
        more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        named = ", ".join(repr(name) for name in bad[:NAMED])
        raise InputError(f"{column} of {named}{more} cannot be opened ({reason})", None, "mend or drop these items")
    return done


def _embed(
    tower: Embedder, data: Dataset, column: str, ids: list[str], keys: list[str], folder: Path, facts: dict[str, Any]
) -> npt.NDArray[np.float32]:
    total, step = len(ids), int(facts["part_rows"])
    paths = []
    with track(f"embed {column}", total) as advance:
        for start in range(0, total, step):
            stop = min(start + step, total)
            path = folder / f"part-{start:09d}.safetensors"
            own = digest_value({**facts, "items": digest_value(keys[start:stop]), "rows": [start, stop]})
            if _part(path, own) is None:
                items = data[start:stop][column]
                if tower.modality == "image":
                    items = _each(items, ids[start:stop], column, open_picture)
                with _quiet():
                    rows = tower.embed(items, batch_size=int(facts["batch_size"])).to(torch.float32).contiguous()
                _store(path, own, rows)
            paths.append((path, own))
            advance(stop - start)
    return _join(folder, paths, total, facts)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """One bar at a time: the tower's own would stand in this one's line."""
    token = SHOW.set(False)
    try:
        yield
    finally:
        SHOW.reset(token)


def _store(path: Path, key: str, rows: Tensor) -> None:
    metadata = {"key": key, "digest": digest_tensors({"rows": rows})}
    write_with(path, lambda partial: save_file({"rows": rows}, partial, metadata=metadata))


def _part(path: Path, key: str) -> Tensor | None:
    """A finished part; one that is damaged or of other items counts as absent."""
    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as handle:
            metadata = handle.metadata() or {}
            rows: Tensor = handle.get_tensor("rows")
    except (OSError, SafetensorError):
        return None
    fits = metadata.get("key") == key and metadata.get("digest") == digest_tensors({"rows": rows})
    return rows if fits else None


def _join(
    folder: Path, paths: Sequence[tuple[Path, str]], total: int, facts: dict[str, Any]
) -> npt.NDArray[np.float32]:  # fmt: skip
    """All parts in one file, then its key, then the parts go."""

    def writer(partial: Path) -> None:
        place, out = 0, None
        for path, key in paths:
            rows = _part(path, key)
            if rows is None:
                raise InputError(f"{path} changed while it was in use", "the part", "run the same command again")
            if out is None:
                shape = (total, int(rows.shape[1]))
                out = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
            out[place : place + len(rows)] = rows.numpy()
            place += len(rows)
        assert out is not None
        out.flush()

    write_with(folder / ARRAY, writer)
    write_json(folder / KEY, {**facts, "array": digest_file(folder / ARRAY)})
    for path, _ in paths:
        path.unlink(missing_ok=True)
    values = _finished(folder, facts)
    assert values is not None
    return values


def _finished(folder: Path, facts: dict[str, Any]) -> npt.NDArray[np.float32] | None:
    """The array of these facts, where it is there and whole."""
    if not (folder / KEY).exists() or not (folder / ARRAY).exists():
        return None
    try:
        stored = read_json(folder / KEY)
    except EffaceError:
        return None
    if stored != {**facts, "array": digest_file(folder / ARRAY)}:
        return None
    values: npt.NDArray[np.float32] = np.load(folder / ARRAY, mmap_mode="r", allow_pickle=False)
    return values
