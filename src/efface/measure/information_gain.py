"""Information gain: how far seeing an image moves the model's distribution over texts, in nats; and the same for a text.

A contrastive model's scaled similarity estimates a log density ratio, so the gain is a softmax average over a sample of the
other side (`kl`, `klr`), and its second-order term is a norm weighted by the other side's covariance (`cov_norm`).

Paper: arXiv 2506.22881 (v1: "How semantically informative is an image?"; v2: "CLIP-like model as a foundational density ratio
estimator"); the norm's theory: arXiv 2212.09663. Departures from the official code (fumiyauchiyama/CLIP_Density_Ratio):
the covariance is divided by N and the 1/2 is kept, so that values are nats (`paper_scale` adds the code's numbers); the
product is float64; both sides are always normalised; SigLIP's tau is the training batch less one, not the size of the
evaluation sample; the query's own pair can be left out; the sample is never held against the queries as one matrix; and
each value carries diagnostics that say when it is a statement about the sample (specification, Traps).
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from efface.catalog import Card
from efface.errors import InputError
from efface.measure.gain import LOWEST_USUAL, check_scale, fixed_log_z
from efface.measure.gain_scores import Floats, Scoring, score
from efface.measure.gain_summary import GainSummary, Side, summarise
from efface.measure.sides import EmbeddedSide, SideName, Surveyed, Values, check_sides, own_pairs, survey
from efface.numerics.moments import Moments, merge_files
from efface.run.digests import digest_value
from efface.run.record import ModelRecord
from efface.run.settings import Settings

CARD = Card(
    name="information-gain",
    system="information-gain",
    title="Information gain",
    summary="How much an image tells about its texts, and a text about its images: KL divergences over a sample, and the "
    "covariance-weighted norm that approximates them.",
    paper="How semantically informative is an image?, arXiv 2506.22881 (2025); norm: arXiv 2212.09663 (EMNLP 2023)",
    verb="measure",
    mechanism="measure",
    modalities=("image", "text"),
    subjects=("dual-encoder",),
    defaults_source="clip_ig in the official code: kl over all items of the other side, own-mean centring, 30 extremes",
)

Mode = Literal["kl", "klr", "cov_norm", "cov_norm_zero", "centered_norm", "raw_norm"]
Headline = Literal[
    "kl", "klr", "kl_fixed_z", "klr_fixed_z", "cov_norm", "cov_norm_zero", "centered_norm", "raw_norm", "cov_norm_paper"
]
GAINS = ("kl", "klr", "kl_fixed_z", "klr_fixed_z", "cov_norm", "cov_norm_zero", "k2_half")
"""Columns in nats (or bits); the other norms have no unit."""

SATURATED_SHARE = 0.1
"""More saturated items than these are worth a warning."""


class GainConfig(Settings):
    """What to compute and how."""

    modes: tuple[Mode, ...] = Field(
        ("kl", "klr", "cov_norm", "cov_norm_zero", "centered_norm"), min_length=1, description="columns to compute"
    )

    @field_validator("modes", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value

    headline: Headline = Field("kl", description="the mode that orders the items and selects data; paper: kl")
    centre: Literal["own_mean", "zero"] = Field(
        "own_mean", description="c of cov_norm and centered_norm; paper: the mean of the query's own side"
    )
    normalize: bool = Field(True, description="bring every row to unit length; false only for raw norms")
    unit: Literal["nats", "bits"] = Field("nats", description="of the tables; bits = nats / ln 2")
    exclude_self: bool = Field(False, description="leave the query's own pair out of the sample; paper: left in")
    fixed_z: bool = Field(False, description="also kl_fixed_z and klr_fixed_z: SigLIP's trained normaliser")
    training_batch: int | None = Field(
        None, ge=2, description="global batch size of the model's training, for fixed_z (tau is one less)"
    )
    paper_scale: bool = Field(False, description="also cov_norm_paper: without 1/2 and 1/N, as the official clip_ig")
    top: int = Field(30, ge=1, description="items of each end in the summary; paper: 30")
    keep: float | None = Field(
        None, gt=0, le=1, description="data selection: share of items to keep, highest first; paper: 0.25"
    )
    keep_side: SideName = Field("texts", description="whose gain selects; paper: texts")
    sample_size: int | None = Field(
        None, ge=2, description="rows of each side that serve as the sample, drawn by seed; default all (COCO run)"
    )
    seed: int = Field(0, ge=0, description="of the draw of the sample")
    chunk_queries: int = Field(256, ge=1, description="queries in one tile of scores")
    chunk_sample: int = Field(2048, ge=1, description="sample rows in one tile of scores")
    part_rows: int = Field(
        8192, ge=1, description="queries in one stored part: at most this much work is lost to a kill"
    )

    @model_validator(mode="after")
    def _fits(self) -> GainConfig:
        if "raw_norm" in self.modes and self.normalize:
            raise ValueError("raw_norm is the constant a^2 on unit rows: set normalize=false for it")
        there: set[str] = set(self.modes)
        there |= {"kl_fixed_z", "klr_fixed_z"} if self.fixed_z else set()
        there |= {"cov_norm_paper"} if self.paper_scale else set()
        if self.headline not in there:
            raise ValueError(f"headline {self.headline} is not among the modes {sorted(there)}")
        if self.fixed_z and self.training_batch is None:
            raise ValueError("fixed_z needs training_batch, the global batch size of the model's training")
        return self


@dataclass(frozen=True)
class GainResult:
    """What a measurement found.

    Attributes:
        tables: by side, one row an item: id, the modes, ess, k2_half, skewness, saturated; gains in `summary.unit`.
        summary: for people, in nats.
        moments: of each side's sample, mergeable.
        inputs: digest of everything that the numbers depend on.
    """

    tables: dict[str, pa.Table]
    summary: GainSummary
    moments: dict[str, Moments]
    inputs: str


@dataclass(frozen=True)
class Prepared:
    """Checked inputs, before any scoring; `jobs` by side."""

    config: GainConfig
    sides: dict[SideName, Surveyed]
    moments: dict[str, Moments]
    jobs: dict[SideName, Scoring]
    warnings: list[str]
    inputs: str


def as_side(values: EmbeddedSide | Values | None) -> EmbeddedSide | None:
    """A bare array or tensor of embeddings as a side."""
    return values if values is None or isinstance(values, EmbeddedSide) else EmbeddedSide(values)


def prepare(
    images: EmbeddedSide | Values | None, texts: EmbeddedSide | Values | None, *, scale: float, bias: float | None = None,
    config: GainConfig | None = None, statistics: Sequence[Path] | None = None, device: str = "cpu",
) -> Prepared:  # fmt: skip
    """Check everything and read both sides once; arguments and errors as in `measure`."""
    config = config or GainConfig()
    a = check_scale(scale)
    if config.fixed_z:
        fixed_log_z(bias, config.training_batch)
    given: dict[SideName, EmbeddedSide | None] = {"images": as_side(images), "texts": as_side(texts)}
    check_sides(given["images"], given["texts"])
    if all(side is None for side in given.values()):
        raise InputError("neither images nor texts", "items to score", "give at least one side")
    if statistics is None:
        for name, side in given.items():
            if side is None:
                raise InputError(
                    f"no {name}", "both sides: one is measured against a sample of the other",
                    f"give {name}, or statistics of both sides from files",
                )  # fmt: skip
    config, log = _without_sample(config) if statistics is not None else (config, [])
    if a < LOWEST_USUAL:
        log = [
            f"the scale {a:g} is low for a trained model; if it is the logarithm that CLIP and SigLIP store, give "
            f"{math.exp(a):.4g}", *log,
        ]  # fmt: skip
    unit_needed = bool({"kl", "klr"} & set(config.modes) or config.fixed_z)
    sides = {
        name: survey(
            name, side, normalize=config.normalize, unit_needed=unit_needed, sample_size=config.sample_size,
            seed=config.seed, device=device,
        )
        for name, side in given.items() if side is not None
    }  # fmt: skip
    if len({side.digest for side in sides.values()}) < len(sides):
        raise InputError("the same embeddings as images and as texts", "two sides", "give the other side's embeddings")
    moments = {str(name): side.moments for name, side in sides.items()}
    if statistics is not None:
        moments = _statistics(statistics, sides)
    for surveyed in sides.values():
        log += surveyed.log
    key = {
        "config": config.model_dump(mode="json", exclude={"top", "keep", "keep_side", "unit", "headline"}),
        "scale": a, "bias": bias, "device": device, "rows": {name: side.digest for name, side in sides.items()},
        "moments": {name: [found.digest, found.mean.tobytes().hex(), digest_value(found.scatter.tobytes().hex())]
                    for name, found in moments.items()},
    }  # fmt: skip
    jobs = {name: _job(name, sides, moments, a, bias, config, digest_value(key), statistics is None) for name in sides}
    whole = digest_value({"scores": key, "config": config.model_dump(mode="json")})
    return Prepared(config, sides, moments, jobs, log, whole)


def _without_sample(config: GainConfig) -> tuple[GainConfig, list[str]]:
    """The settings without what needs the sample itself, and a note on it."""
    kept: tuple[Mode, ...] = tuple(mode for mode in config.modes if mode not in ("kl", "klr")) or ("cov_norm",)
    gone = sorted({"kl", "klr"} & set(config.modes)) + (["fixed_z"] if config.fixed_z else [])
    log = []
    if gone:
        log.append(
            f"{', '.join(gone)} not computed: statistics from files hold a mean and a covariance, and these modes need the "
            "sample itself"
        )
    if config.exclude_self:
        raise InputError("exclude_self with statistics from files", "the sample itself", "set exclude_self=false")
    update: dict[str, Any] = {"modes": kept, "fixed_z": False}
    if config.headline not in (*kept, *(["cov_norm_paper"] if config.paper_scale else [])):
        update["headline"] = kept[0]
        log.append(f"the headline is {kept[0]} instead of {config.headline}")
    return config.model_copy(update=update), log


def _statistics(paths: Sequence[Path], sides: dict[SideName, Surveyed]) -> dict[str, Moments]:
    """Both sides' moments from files, of the dimension of the rows."""
    found = merge_files([Path(path) for path in paths])
    if not {"images", "texts"} <= set(found):
        raise InputError(f"statistics of {sorted(found)}", "of images and texts",
                         "give files named statistics.safetensors of this measure")  # fmt: skip
    for name, side in sides.items():
        for other, moments in found.items():
            if moments.d != side.rows.d:
                raise InputError(
                    f"{name} of {side.rows.d} dimensions and statistics of {other} of {moments.d}", "one d for both",
                    "give statistics of the same model",
                )  # fmt: skip
            if moments.n < 2:
                raise InputError(f"statistics of {moments.n} {other}", "two or more", "merge more files")
    return found


def _job(
    name: SideName, sides: dict[SideName, Surveyed], moments: dict[str, Moments], scale: float, bias: float | None,
    config: GainConfig, key: str, with_sample: bool,
) -> Scoring:  # fmt: skip
    other: SideName = "texts" if name == "images" else "images"
    sample = sides[other].sample if with_sample else None
    exclude = own_pairs(sides[name], sides[other]) if config.exclude_self else None
    return Scoring(
        name=name, rows=sides[name].rows, sample=sample, exclude=exclude, own=moments[name], other=moments[other],
        scale=scale, bias=bias, modes=config.modes, own_mean=config.centre == "own_mean",
        training_batch=config.training_batch if config.fixed_z else None, paper_scale=config.paper_scale,
        chunk_queries=config.chunk_queries, chunk_sample=config.chunk_sample, part_rows=config.part_rows, key=key,
    )  # fmt: skip


def measure(
    images: EmbeddedSide | Values | None, texts: EmbeddedSide | Values | None, *, scale: float, bias: float | None = None,
    model: ModelRecord | None = None, config: GainConfig | None = None, statistics: Sequence[Path] | None = None,
    work: Path | None = None, device: str = "cpu",
) -> GainResult:  # fmt: skip
    """The information gain of every image over the texts and of every text over the images.

    Args:
        images, texts: embeddings [N, d], bare or with ids, content keys, texts and thumbnails (`EmbeddedSide`). Either may be
            None where `statistics` stand for it.
        scale: a, one over the temperature (not its logarithm).
        bias: of a sigmoid-trained model; cancels everywhere but in fixed_z.
        model: for the record.
        config: settings.
        statistics: files of moments of both sides, merged; then only the norms are computed.
        work: folder of finished parts, kept and used again while everything they depend on is the same.
        device: where the products run; results are float64 everywhere.

    Raises:
        InputError: see the specification's traps: a scale out of range or a logarithm, rows that are not finite, zero, or not
            of unit length with normalize=false, fewer than two rows, different d, swapped or equal sides, fixed_z without a
            bias, exclude_self without one-to-one pairs.
    """
    return score_prepared(
        prepare(images, texts, scale=scale, bias=bias, config=config, statistics=statistics, device=device),
        bias=bias, model=model, work=work,
    )  # fmt: skip


def score_prepared(
    prepared: Prepared, *, bias: float | None, model: ModelRecord | None, work: Path | None
) -> GainResult:  # fmt: skip
    """The second half of `measure`."""
    start = time.perf_counter()
    config, tables, found, log = prepared.config, {}, [], list(prepared.warnings)
    for name, job in prepared.jobs.items():
        columns = score(job, work)
        side = prepared.sides[name].side
        tables[str(name)] = _table(side.names(), columns, config.unit)
        found.append(_side(job, columns, side, config))
        share = found[-1].saturated_share
        if share > SATURATED_SHARE and "kl" in columns:
            log.append(
                f"{name}: {share:.0%} are saturated (k2/2 above half of log N = {found[-1].log_n:.2f}, or fewer than 50 "
                "effective samples): their kl is bounded by the sample, not by the item; take a larger sample, or read klr"
            )
    summary = GainSummary(
        created=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"), headline=config.headline,
        unit=config.unit, model=model, scale=next(iter(prepared.jobs.values())).scale, bias=bias, sides=found, warnings=log,
        config=config.model_dump(mode="json"), seconds=time.perf_counter() - start,
    )  # fmt: skip
    if model is not None:
        for moments in prepared.moments.values():
            moments.source = moments.source or model.digest
    return GainResult(tables, summary, prepared.moments, prepared.inputs)


def _side(job: Scoring, columns: dict[str, Floats], side: EmbeddedSide, config: GainConfig) -> Side:
    own, other = job.own.centre, job.other.covariance()
    mean_square = float(columns["k2_half"].mean()) * 2 / job.scale**2  # mean of u'Gu, over the sample that was summed
    n = job.other.n - config.exclude_self
    modes = [name for name in columns if name not in ("ess", "k2_half", "skewness", "saturated")]
    return summarise(
        columns, headline=config.headline, ids=side.names(), texts=side.texts, thumbnail=side.thumbnail, modes=modes,
        top=config.top, name=job.name, sample="texts" if job.name == "images" else "images", n=len(side),
        sample_size=job.other.n, sample_digest=job.other.digest, dimension=job.rows.d, scale=job.scale, log_n=math.log(n),
        centre_share=float(own @ other @ own) / mean_square if mean_square > 0 else 0.0,
    )  # fmt: skip


def _table(ids: list[str], columns: dict[str, Floats], unit: str) -> pa.Table:
    """id, the columns, and `saturated` as a truth value; gains in `unit`, which the schema's metadata names."""
    factor = 1 / math.log(2) if unit == "bits" else 1.0
    arrays: dict[str, Any] = {"id": pa.array(ids, pa.string())}
    for name, values in columns.items():
        if name == "saturated":
            arrays[name] = pa.array(values > 0)
        else:
            arrays[name] = pa.array(np.asarray(values * factor if name in GAINS else values, dtype=np.float64))
    return pa.table(arrays).replace_schema_metadata({"unit": unit})


CONFIG = GainConfig
