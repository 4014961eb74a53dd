"""How far apart two encoders place what belongs together: distance, separability, uniformity, alignment, retrieval.

It's Not a Modality Gap: Characterizing and Addressing the Contrastive Gap (Fahim, Murphy and Fyshe, arXiv 2405.18570);
the authors' code carries no licence that we know of and was not copied. Departures: figures have intervals over pairs;
ties in retrieval count by the chance of a random order, not by the order of the columns; everything in float64.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from efface.catalog import Card
from efface.errors import InputError
from efface.measure.estimate import Estimate, estimate, log_mean_estimate, mean_estimate, missing
from efface.numerics.masks import TILE, slices
from efface.numerics.sphere import alignment_rows, cross_uniformity_rows, twins, uniformity_rows, unit
from efface.run.settings import Settings

CARD = Card(
    name="modality-gap",
    system="contrastive-gap",
    title="Modality gap",
    summary="How far apart two encoders place what belongs together, how much of the sphere each uses, and what it costs.",
    paper="Fahim, Murphy and Fyshe, It's not a modality gap, arXiv 2405.18570 (2024)",
    verb="measure",
    mechanism="measure",
    modalities=("image", "text"),
    subjects=("dual-encoder",),
    defaults_source="authors' evaluator: t = 2, separability trained on 20 % of the pairs, recall at 1, 3, 5, 10",
)

FEWEST = 10
TIE = 1e-9


class ModalityGapConfig(Settings):
    """How to measure."""

    t: float = Field(2.0, gt=0, description="sharpness of uniformity; Wang and Isola: 2")
    train_share: float = Field(
        0.2, gt=0, lt=1, description="share of the pairs that separability trains on; paper: 0.2"
    )
    ks: tuple[int, ...] = Field((1, 3, 5, 10), min_length=1, description="ranks of recall")
    tile: int | None = Field(None, ge=1, description="rows in one tile; default: chosen")
    resamples: int = Field(1000, ge=100, description="resamples of the bootstrap over pairs")
    seed: int = Field(0, ge=0, description="seed of the split and of the resampling")


class Recall(BaseModel):
    """Share of queries whose right key is among the first k."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    k: int
    first_to_second: Estimate
    second_to_first: Estimate


class SideReport(BaseModel):
    """One encoder's half of the report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uniformity: Estimate
    cosine_within: Estimate = Field(description="mean cosine of two different rows")
    participation_ratio: Estimate = Field(description="(sum of variances)^2 / sum of squares: dimensions in use")
    explained_variance: list[float] = Field(description="cumulative share of the variance by principal component")
    duplicate_share: Estimate = Field(description="rows closer than 1e-5 to another row; they push uniformity up")


class ModalityGapReport(BaseModel):
    """The gap between two encoders over N pairs. Do not judge it by the centroid distance alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int
    dimension: int
    t: float
    centroid_distance: Estimate
    separability: Estimate = Field(description="accuracy on held-out pairs: 1 = apart, 0.5 = mixed")
    cross_uniformity: Estimate
    alignment: Estimate
    cosine_matched: Estimate
    cosine_across: Estimate = Field(description="mean cosine of unmatched rows of the two sides")
    first: SideReport
    second: SideReport
    recall: list[Recall]
    warnings: list[str]


@dataclass(frozen=True)
class Statistic:
    """A value and each pair's influence on it, [N] (see `measure.estimate`)."""

    value: float
    influence: Tensor


def centroid_distance(x: Tensor, y: Tensor) -> Statistic:
    """||mean x - mean y||, in [0, 2] for unit rows x, y [N, D]."""
    differences = x - y
    middle = differences.mean(0)
    size = middle.norm()
    direction = middle / size if float(size) > 0 else torch.zeros_like(middle)
    return Statistic(float(size), differences @ direction - size)


def linear_separability(x: Tensor, y: Tensor, *, train_share: float, seed: int) -> npt.NDArray[np.float64]:
    """Accuracy per held-out pair, [held out] of 0, 0.5 or 1, of a logistic regression that tells x from y.

    The split is over pairs: both members of a pair stand on one side of it.

    Args:
        x, y: [N, D].
        train_share: share of the pairs that train.
        seed: of the split.

    Raises:
        InputError: fewer than ten pairs, or a share that leaves none to train on or to test.
    """
    from sklearn.linear_model import LogisticRegression

    n = len(x)
    train = round(train_share * n)
    if n < FEWEST or not 0 < train < n:
        raise InputError(f"{n} pairs of which {train} train", f"{FEWEST} pairs or more, some to train and some to test")
    order = np.random.default_rng(seed).permutation(n)
    first, second = x.numpy(force=True), y.numpy(force=True)

    def stacked(index: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        return np.concatenate([first[index], second[index]]), np.repeat([0, 1], len(index))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a slow end of the solver does not move the accuracy
        model = LogisticRegression(max_iter=1000).fit(*stacked(order[:train]))
    features, labels = stacked(order[train:])
    right = (model.predict(features) == labels).astype(np.float64)
    found: npt.NDArray[np.float64] = right.reshape(2, -1).mean(axis=0)
    return found


def mean_cosine_within(x: Tensor) -> Statistic:
    """Mean x_i . x_j over i != j, in O(N D)."""
    n = len(x)
    a = (x @ x.sum(0) - x.square().sum(1)) / (n - 1)
    return Statistic(float(a.mean()), 2 * a)


def mean_cosine_across(x: Tensor, y: Tensor) -> Statistic:
    """Mean x_i . y_j over i != j, in O(N D)."""
    n, matched = len(x), (x * y).sum(1)
    a = (x @ y.sum(0) + y @ x.sum(0) - 2 * matched) / (n - 1)
    return Statistic(float(a.mean() / 2), a)


def explained_variance(x: Tensor) -> Tensor:
    """[min(N, D)] cumulative share of the variance by principal component; NaN when nothing varies."""
    variance = torch.linalg.svdvals(_centred(x)).square()
    shares: Tensor = variance.cumsum(0) / variance.sum()
    return shares


def participation_ratio(x: Tensor) -> Statistic:
    """(sum of eigenvalues)^2 / (sum of their squares) of the covariance, from 1 to D; NaN when nothing varies."""
    rows = _centred(x)
    if not bool(rows.any()):
        return Statistic(float("nan"), torch.zeros(len(x)))
    covariance = rows.T @ rows / len(rows)
    total, squares = covariance.diagonal().sum(), covariance.square().sum()
    effect = 2 * (rows.square().sum(1) / total - ((rows @ covariance) * rows).sum(1) / squares)
    return Statistic(float(total.square() / squares), total.square() / squares * effect)


def recall_hits(
    queries: Tensor, keys: Tensor, ks: tuple[int, ...], ids: Tensor | None = None, tile: int | None = None
) -> Tensor:
    """[N, K] chance that a right key is among the first k, for each query; 0 or 1 where nothing ties.

    A key is right when it stands in the query's row, or carries the same id. Wrong keys that tie with the best right one
    (to 1e-9) are ordered at random, so that collapsed embeddings score chance.

    Args:
        queries, keys: [N, D] unit rows.
        ids: [N] int64: rows with equal ids are the same thing (equal captions).

    Raises:
        InputError: ids that do not fit.
    """
    n = len(queries)
    if ids is not None and (ids.shape != (n,) or ids.is_floating_point()):
        raise InputError(f"ids of shape {list(ids.shape)}", f"[{n}] integers")
    marks = torch.arange(n, device=queries.device) if ids is None else ids.to(queries.device)
    wanted = torch.tensor(ks, dtype=queries.dtype, device=queries.device)
    found = queries.new_empty(n, len(ks))
    for rows in slices(n, tile or TILE):
        s = queries[rows] @ keys.T
        right = marks[rows, None] == marks[None, :]
        best = s.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
        ahead = ((s > best + TIE) & ~right).sum(1, keepdim=True)
        tied = ((s - best).abs() <= TIE).logical_and(~right).sum(1, keepdim=True)
        found[rows] = ((wanted - ahead) / (tied + 1)).clamp(0, 1)
    return found


def modality_gap(
    first: Tensor, second: Tensor, *, ids: Tensor | None = None, config: ModalityGapConfig | None = None
) -> ModalityGapReport:  # fmt: skip
    """The report of two encoders on N pairs.

    Args:
        first, second: [N, D], normalised inside; row i of both is a pair.
        ids: [N] int64; pairs with equal ids count as right answers for each other in retrieval.

    Raises:
        InputError: shapes that differ, fewer than ten pairs, zero or non-finite rows, ids that do not fit.
    """
    config = config or ModalityGapConfig()
    if first.ndim != 2 or first.shape != second.shape:
        raise InputError(
            f"embeddings of shapes {list(first.shape)} and {list(second.shape)}", "one shape [N, D] for both"
        )
    if len(first) < FEWEST:
        raise InputError(f"{len(first)} pairs", f"{FEWEST} or more")
    rng = np.random.default_rng(config.seed)
    n, d = first.shape
    with torch.no_grad():
        x, y = unit(first.double(), "first"), unit(second.double(), "second")

        def of(found: Statistic) -> Estimate:
            return estimate(found.value, found.influence.numpy(force=True), rng=rng, resamples=config.resamples)

        def mean(values: Any) -> Estimate:
            array = values.numpy(force=True) if isinstance(values, Tensor) else values
            return mean_estimate(array, rng=rng, resamples=config.resamples)

        def spread(rows: Tensor, degree: int = 2) -> Estimate:
            return log_mean_estimate(rows.numpy(force=True), rng=rng, degree=degree, resamples=config.resamples)

        def side(z: Tensor) -> SideReport:
            ratio = participation_ratio(z)
            still = ratio.value != ratio.value
            return SideReport(
                uniformity=spread(uniformity_rows(z, config.t, config.tile)),
                cosine_within=of(mean_cosine_within(z)),
                participation_ratio=missing("nothing varies: all rows are equal", n) if still else of(ratio),
                explained_variance=[] if still else explained_variance(z).tolist(),
                duplicate_share=mean((twins(z, tile=config.tile) > 0).double()),
            )

        cross = (cross_uniformity_rows(x, y, config.t, config.tile), cross_uniformity_rows(y, x, config.t, config.tile))
        both = torch.stack(cross).logsumexp(0) - np.log(2)  # each pair's mean over its row and its column
        forth = recall_hits(x, y, config.ks, ids, config.tile)
        back = recall_hits(y, x, config.ks, ids, config.tile)
        separable = linear_separability(x, y, train_share=config.train_share, seed=config.seed)
        report = ModalityGapReport(
            n=n, dimension=d, t=config.t,
            centroid_distance=of(centroid_distance(x, y)), separability=mean(separable),
            cross_uniformity=spread(both), alignment=mean(alignment_rows(x, y)),
            cosine_matched=mean((x * y).sum(1)), cosine_across=of(mean_cosine_across(x, y)),
            first=side(x), second=side(y),
            recall=[
                Recall(k=k, first_to_second=mean(forth[:, i]), second_to_first=mean(back[:, i]))
                for i, k in enumerate(config.ks)
            ],
            warnings=[],
        )  # fmt: skip
    return report.model_copy(update={"warnings": _warnings(report, round(config.train_share * n))})


def _warnings(report: ModalityGapReport, train: int) -> list[str]:
    found = []
    if train < 2 * report.dimension:
        found.append(
            f"separability trained on {train} pairs in {report.dimension} dimensions: give {10 * report.dimension} pairs or more"
        )
    for name, side in (("first", report.first), ("second", report.second)):
        share = side.duplicate_share.value or 0.0
        if share > 0:
            found.append(f"{share:.1%} of the {name} rows have a twin: uniformity is pushed up, recall@1 capped")
    return found


def _centred(x: Tensor) -> Tensor:
    rows = x - x.mean(0)
    still = rows.square().sum() <= (16 * torch.finfo(x.dtype).eps) ** 2 * x.square().sum()
    return torch.zeros_like(rows) if bool(still) else rows


CONFIG = ModalityGapConfig
