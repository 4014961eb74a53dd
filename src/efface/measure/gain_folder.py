"""The folder of a measurement of information gain, and the comparison of two of them.

scores.parquet           one row an item: side, id, the modes, ess, k2_half, skewness, saturated
statistics.safetensors   mean and scatter of both samples with their digests; files of parts merge
measure.json             the summary (`GainSummary`)
selected.parquet         with `keep`: side, id, value and rank of the items kept
manifest.json            written last, with the digest of the inputs
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from efface.errors import InputError, RunError, StorageError
from efface.measure.gain_summary import GainSummary, correlation, relation
from efface.measure.information_gain import GainConfig, GainResult, prepare, score_prepared
from efface.measure.sides import EmbeddedSide, Values
from efface.numerics.moments import load_moments, save_moments
from efface.run.files import read_json, refuse_occupied, whole_folder, write_json, write_with
from efface.run.manifest import MANIFEST, read_manifest, write_manifest
from efface.run.record import ModelRecord

SCORES, STATISTICS, SUMMARY, SELECTED = "scores.parquet", "statistics.safetensors", "measure.json", "selected.parquet"
KIND = "information-gain"


class Comparison(BaseModel):
    """One mode of one side in two measurements of the same items; None where one of them is constant."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    side: str
    mode: str
    n: int
    spearman: float | None
    pearson: float | None
    r2: float | None
    mean_change: float | None


def measure_into(
    folder: Path, images: EmbeddedSide | Values | None, texts: EmbeddedSide | Values | None, *, scale: float,
    bias: float | None = None, model: ModelRecord | None = None, config: GainConfig | None = None,
    statistics: Sequence[Path] | None = None, work: Path | None = None, device: str = "cpu",
    finish: Callable[[Path, GainResult], object] | None = None,
) -> GainResult:  # fmt: skip
    """`measure` into a folder that is whole or absent.

    A run that was killed goes on from the parts in `work` and ends with the bits of a run that was not. A folder that this
    very measurement made is read back; any other that is not empty is refused.

    Args:
        folder: new or empty.
        work: folder of finished parts; default beside `folder`, removed when all is written.
        finish: adds files (a gallery) to the folder before it is finished; called with the folder and the result.
        images, texts, scale, bias, model, config, statistics, device: as in `measure`.

    Raises:
        InputError: as `measure`.
        StorageError: the folder is occupied or cannot be written.
    """
    folder = Path(folder)
    finished = (folder / MANIFEST).exists()
    if not finished:
        refuse_occupied(folder)
    prepared = prepare(images, texts, scale=scale, bias=bias, config=config, statistics=statistics, device=device)
    if finished:
        if read_manifest(folder).get("inputs") == prepared.inputs:
            return load_gain(folder)
        refuse_occupied(folder)
    parts = work or folder.parent / f".{folder.name}-parts"
    result = score_prepared(prepared, bias=bias, model=model, work=parts)
    with whole_folder(folder) as partial:
        _write_table(partial / SCORES, joined(result))
        save_moments(partial / STATISTICS, result.moments)
        write_json(partial / SUMMARY, result.summary.model_dump(mode="json"))
        if prepared.config.keep is not None:
            _write_table(partial / SELECTED, select(result, prepared.config))
        if finish is not None:
            finish(partial, result)
        write_manifest(partial, kind=KIND, inputs=result.inputs)
    shutil.rmtree(parts, ignore_errors=True)
    return result


def joined(result: GainResult) -> pa.Table:
    """Both sides in one table with a `side` column; a column that one side lacks is null there."""
    tables = [
        table.add_column(0, "side", pa.array([name] * len(table), pa.string())) for name, table in result.tables.items()
    ]
    metadata = {"unit": result.summary.unit, "inputs": result.inputs}
    return pa.concat_tables(tables, promote_options="default").replace_schema_metadata(metadata)


def select(result: GainResult, config: GainConfig) -> pa.Table:
    """The share `keep` of a side's items with the highest headline, highest first; ties keep the order of the rows.

    Raises:
        InputError: that side was not scored.
    """
    if config.keep_side not in result.tables:
        raise InputError(f"keep_side={config.keep_side} without {config.keep_side}", "the side that selects",
                         "give its items, or set keep_side")  # fmt: skip
    table = result.tables[config.keep_side]
    values = table.column(result.summary.headline).to_numpy()
    kept = max(1, int((config.keep or 1.0) * len(values) + 0.5))
    order = np.argsort(-values, kind="stable")[:kept]
    chosen = table.take(pa.array(order))
    return pa.table({
        "side": pa.array([config.keep_side] * kept, pa.string()), "id": chosen.column("id"),
        "value": chosen.column(result.summary.headline), "rank": pa.array(np.arange(1, kept + 1)),
    }).replace_schema_metadata({"mode": result.summary.headline, "unit": result.summary.unit})  # fmt: skip


def load_gain(folder: Path) -> GainResult:
    """Read a finished folder.

    Raises:
        RunError: not a folder of this measure.
        StorageError: a file is missing or damaged.
    """
    manifest = read_manifest(folder)
    if manifest.get("kind") != KIND:
        raise RunError(f"{folder} is of kind '{manifest.get('kind')}'", f"'{KIND}'", "give a folder of this measure")
    try:
        summary = GainSummary.model_validate(read_json(folder / SUMMARY))
    except ValueError as error:
        raise StorageError(f"{folder / SUMMARY} is not a summary; it was changed after it was written") from error
    try:
        table = pq.read_table(folder / SCORES)
        table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{folder / SCORES} cannot be read: {error}") from error
    tables = {}
    for side in summary.sides:
        part = table.filter(pa.compute.equal(table.column("side"), side.name)).drop_columns(["side"])
        tables[side.name] = part.drop_columns([name for name in part.column_names if part.column(name).null_count])
    return GainResult(tables, summary, load_moments(folder / STATISTICS), str(manifest.get("inputs", "")))


def compare(first: Path, second: Path) -> list[Comparison]:
    """How the gains of the same items agree between two measurements (two models, two checkpoints, two settings).

    Args:
        first, second: folders of `measure_into`.

    Raises:
        InputError: the samples or the items differ, or no side is common: such gains are not on one scale.
    """
    a, b = load_gain(Path(first)), load_gain(Path(second))
    sides_a, sides_b = ({side.name: side for side in found.summary.sides} for found in (a, b))
    common = [name for name in sides_a if name in sides_b]
    if not common:
        raise InputError(f"{first} scores {sorted(sides_a)} and {second} {sorted(sides_b)}", "a common side")
    found = []
    for name in common:
        one, other = sides_a[name], sides_b[name]
        if one.sample_digest != other.sample_digest:
            raise InputError(
                f"{name} measured over different samples ({one.sample_size} and {other.sample_size} {one.sample})",
                "one sample: a gain depends on it", "measure both over the same items, with content keys or texts given",
            )  # fmt: skip
        left, right = a.tables[name], b.tables[name]
        ids_a, ids_b = left.column("id").to_pylist(), right.column("id").to_pylist()
        place = {key: i for i, key in enumerate(ids_b)}
        if len(ids_a) != len(ids_b) or not all(key in place for key in ids_a):
            raise InputError(f"different {name} in {first} and {second}", "the same ids", "measure the same items")
        right = right.take(pa.array([place[key] for key in ids_a]))
        same_unit = a.summary.unit == b.summary.unit
        for mode in (mode for mode in one.modes if mode in other.modes):
            x, y = (table.column(mode).to_numpy().astype(np.float64) for table in (left, right))
            pair = relation("first", "second", {"first": x, "second": y})
            found.append(Comparison(
                side=name, mode=mode, n=len(x), spearman=pair.spearman, pearson=correlation(x, y), r2=pair.r2,
                mean_change=float(np.mean(y - x)) if same_unit else None,
            ))  # fmt: skip
    return found


def _write_table(path: Path, table: pa.Table) -> None:
    write_with(path, lambda partial: pq.write_table(table, partial))
