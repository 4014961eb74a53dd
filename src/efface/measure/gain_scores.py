"""The scores of one side in parts of rows: each part is stored when it is done, and taken back when its key fits.

A part's key is the digest of everything that its numbers depend on (rows, sample, settings), so that a run that was killed
goes on to the same bits, and a run with anything changed computes afresh.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from efface.measure.gain import centered_norm, cov_norm, fixed_z, gain_sums, raw_norm
from efface.measure.sides import UnitRows, aligned
from efface.numerics.moments import Moments
from efface.run.digests import digest_tensors, digest_value
from efface.run.files import write_with
from efface.run.progress import track

Floats = npt.NDArray[np.float64]

COLUMNS = (
    "kl", "klr", "kl_fixed_z", "klr_fixed_z", "cov_norm", "cov_norm_zero", "cov_norm_paper", "centered_norm", "raw_norm",
    "ess", "k2_half", "skewness", "saturated",
)  # fmt: skip
"""Every column there is, in the order of the tables."""


@dataclass(frozen=True)
class Scoring:
    """How the rows of one side are scored.

    Attributes:
        name: of the side.
        rows: B queries.
        sample: the other side's sample, or None where only its moments are known: then the norms alone.
        exclude: [B] each query's own row of the sample (-1: none), or None.
        own: moments of the queries' side; its mean is c.
        other: moments of the sample; its covariance is G.
        scale, bias: of the model.
        modes: `GainConfig.modes`.
        own_mean: c is the mean of the queries' side; otherwise 0.
        training_batch: for fixed_z, or None without it.
        paper_scale: also the official code's norm.
        chunk_queries, chunk_sample, part_rows: sizes.
        key: digest of rows, sample and settings.
    """

    name: str
    rows: UnitRows
    sample: UnitRows | None
    exclude: Tensor | None
    own: Moments
    other: Moments
    scale: float
    bias: float | None
    modes: tuple[str, ...]
    own_mean: bool
    training_batch: int | None
    paper_scale: bool
    chunk_queries: int
    chunk_sample: int
    part_rows: int
    key: str


def score(job: Scoring, work: Path | None) -> dict[str, Floats]:
    """All columns of a side, [B] each, in nats; finished parts in `work` are taken from there."""
    total = len(job.rows)
    parts = []
    with track(f"score {job.name}", total) as advance:
        for start in range(0, total, job.part_rows):
            stop = min(start + job.part_rows, total)
            path = None if work is None else work / f"{job.name}-{start:09d}.safetensors"
            key = digest_value({"key": job.key, "rows": [start, stop]})
            found = None if path is None else _stored(path, key)
            if found is None:
                found = _part(job, start, stop)
                if path is not None:
                    _store(path, key, found)
            parts.append(found)
            advance(stop - start)
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in COLUMNS if name in parts[0]}


def _part(job: Scoring, start: int, stop: int) -> dict[str, Tensor]:
    queries = job.rows[start:stop]
    device = queries.device
    G = aligned(job.other.covariance(), device)
    mean = aligned(job.own.centre, device)
    centre = mean if job.own_mean else None
    zero = cov_norm(queries, G, None, job.scale)
    columns: dict[str, Tensor] = {}
    if job.sample is not None:
        sums = gain_sums(
            queries, job.sample, job.scale, exclude=None if job.exclude is None else job.exclude[start:stop],
            sample_mean=aligned(job.other.centre, device), chunk_queries=job.chunk_queries,
            chunk_sample=job.chunk_sample,
        )  # fmt: skip
        columns |= {name: getattr(sums, name) for name in ("kl", "klr") if name in job.modes}
        if job.training_batch is not None:
            columns["kl_fixed_z"], columns["klr_fixed_z"] = fixed_z(sums, job.bias, job.training_batch)
        columns |= {name: getattr(sums, name) for name in ("ess", "k2_half", "skewness")}
        columns["saturated"] = sums.saturated.to(torch.float64)
    else:
        columns["k2_half"] = zero
        columns["saturated"] = (zero > 0.5 * np.log(job.other.n)).to(torch.float64)
    if "cov_norm" in job.modes:
        columns["cov_norm"] = cov_norm(queries, G, centre, job.scale)
    if "cov_norm_zero" in job.modes:
        columns["cov_norm_zero"] = zero
    if job.paper_scale:
        columns["cov_norm_paper"] = cov_norm(
            queries, G, centre, job.scale, paper_scale=True, sample_size=job.other.n
        )  # fmt: skip
    if "centered_norm" in job.modes:
        columns["centered_norm"] = centered_norm(queries, centre, job.scale)
    if "raw_norm" in job.modes:
        columns["raw_norm"] = raw_norm(queries, job.scale)
    return {name: values.cpu().contiguous() for name, values in columns.items()}


def _store(path: Path, key: str, columns: dict[str, Any]) -> None:
    tensors = {name: values.clone() for name, values in columns.items()}  # two columns may share memory
    metadata = {"key": key, "digest": digest_tensors(tensors)}
    write_with(path, lambda partial: save_file(tensors, partial, metadata=metadata))


def _stored(path: Path, key: str) -> dict[str, Tensor] | None:
    """A finished part; one that is damaged or belongs to other inputs counts as absent."""
    if not path.exists():
        return None
    try:
        with safe_open(str(path), framework="pt") as handle:
            metadata = handle.metadata() or {}
            columns = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError):
        return None
    whole = metadata.get("key") == key and metadata.get("digest") == digest_tensors(columns)
    return columns if whole else None
