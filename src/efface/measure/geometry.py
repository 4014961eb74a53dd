"""How a set of embeddings lies on the sphere: uniformity, alignment, tolerance, and how hard a temperature punishes.

Understanding the Behaviour of Contrastive Loss (Wang and Liu, arXiv 2012.09740, CVPR 2021); no official code was found.
The softmax loss pushes each negative away in proportion to exp(s / tau), so tau sets how few negatives it sees. Departures:
tolerance is conditional on equal labels (the paper's product with the chance of a match is `tolerance_raw`); everything is
computed on normalised rows, in float64 and in tiles over anchors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from efface.catalog import Card
from efface.errors import InputError
from efface.measure.estimate import Estimate, estimate, log_mean_estimate, mean_estimate, missing
from efface.numerics.masks import TILE, slices
from efface.numerics.sphere import FEWEST, alignment_rows, twins, uniformity_rows, unit
from efface.run.settings import Settings

CARD = Card(
    name="geometry",
    system="contrastive-loss-behaviour",
    title="Geometry of embeddings",
    summary="Uniformity, alignment, tolerance of same-class neighbours, and how many negatives a temperature really punishes.",
    paper="Wang and Liu, Understanding the behaviour of contrastive loss, arXiv 2012.09740 (CVPR 2021)",
    verb="measure",
    mechanism="measure",
    modalities=("any",),
    subjects=("encoder", "dual-encoder"),
    defaults_source="paper: t = 2, ten nearest negatives; temperature grid 0.03 to 1",
)

TAUS = (0.03, 0.07, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


class GeometryConfig(Settings):
    """What to report, and under which names."""

    t: float = Field(2.0, gt=0, description="sharpness of uniformity; Wang and Isola: 2")
    taus: tuple[float, ...] = Field(TAUS, min_length=1, description="temperatures at which the penalty is described")
    temperature: float | None = Field(None, gt=0, description="the temperature of training; joins the grid")
    nearest: int = Field(10, ge=1, description="negatives nearest to an anchor; paper: 10")
    bins: int = Field(80, ge=2, description="bins of the similarity histograms over [-1, 1]")
    feature: str = Field("unnamed", description="which layer the rows come from (projector, backbone); values differ")
    tile: int | None = Field(None, ge=1, description="anchors in one tile; default: chosen")
    resamples: int = Field(1000, ge=100, description="resamples of the bootstrap over items")
    seed: int = Field(0, ge=0, description="seed of the resampling")


class Penalty(BaseModel):
    """What the softmax loss at one temperature does to the negatives of an anchor, averaged over anchors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tau: float
    entropy: Estimate = Field(description="H in nats, 0 (one hardest negative) to log of the number of negatives")
    normalised: Estimate = Field(description="H / log of the number of negatives")
    effective: Estimate = Field(description="effective number of negatives, exp(H)")


class Histogram(BaseModel):
    """Counts of similarities between neighbouring edges."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    edges: list[float]
    counts: list[int]


class GeometryReport(BaseModel):
    """The geometry of N embeddings. Compare only reports of equal N, dimension and feature.

    `zero_distances` counts pairs closer than 1e-5, `duplicates` the rows in such pairs; both push uniformity up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int
    dimension: int
    negatives: int = Field(description="negatives of each anchor")
    keys: Literal["first", "second"] = Field(description="what the anchors of `first` are compared with")
    feature: str
    normalised: bool = Field(description="the rows given were of length one already; if not, it was done inside")
    t: float
    uniformity: Estimate
    uniformity_second: Estimate | None
    alignment: Estimate
    positive_similarity: Estimate
    nearest_similarity: Estimate = Field(description="mean similarity of the nearest negatives")
    gap: Estimate = Field(description="positive similarity minus that of the nearest negatives")
    tolerance: Estimate
    tolerance_raw: Estimate
    tolerance_macro: Estimate
    classes: int
    singletons: int = Field(description="classes with one sample, left out of tolerance")
    penalties: list[Penalty]
    positives: Histogram | None
    nearest: Histogram
    zero_distances: int
    duplicates: int
    note: str = (
        "The best temperature moves with the number of negatives, the augmentations and the classes. Intervals of penalty "
        "and nearest similarity are over anchors, the keys held."
    )


@dataclass(frozen=True)
class Tolerance:
    """Mean similarity of same-class pairs, with each item's influence on it ([N], zero for left-out items)."""

    conditional: float
    raw: float
    macro: float
    influence: Tensor
    influence_raw: Tensor
    influence_macro: Tensor
    classes: int
    singletons: int


def probabilities(s: Tensor, tau: float) -> Tensor:
    """Point 1: P [N, N], the softmax of each row of similarities s [N, N] with positives on the diagonal."""
    return (_square(s) / _tau(tau)).softmax(1)


def gradients(s: Tensor, tau: float) -> Tensor:
    """Point 2: [N, N], dL_i / ds_ij = P_ij / tau off the diagonal and -(1/tau) sum_{k != i} P_ik on it."""
    p = probabilities(s, tau).clone()
    p.fill_diagonal_(0)
    return (p - torch.diag(p.sum(1))) / tau


def relative_penalty(s: Tensor, tau: float) -> Tensor:
    """Point 3: r [N, N], |dL/ds_ij| / |dL/ds_ii|; each row sums to one, the diagonal is zero."""
    return log_penalty(_square(s), tau, 0).exp()


def log_penalty(s: Tensor, tau: float, start: int) -> Tensor:
    """log r of a block of rows, [b, N]; row i's positive stands in column start + i and gets -inf."""
    logits = (s / _tau(tau)).clone()
    logits.diagonal(start).fill_(-math.inf)
    return logits.log_softmax(1)


def entropy_of(logs: Tensor) -> Tensor:
    """[b] -sum_j r_ij log r_ij of log r [b, N], where r log r is 0 at r = 0."""
    return -(logs.exp() * logs.masked_fill(logs == -math.inf, 0.0)).sum(1)


def penalty_entropy(x: Tensor, y: Tensor, taus: tuple[float, ...], tile: int | None = None) -> Tensor:
    """Point 4: H [N, T] in nats at each temperature, tiled over anchors.

    Args:
        x, y: [N, D] unit rows; row i of both is a pair (y = x: the negatives are the other rows).
    """
    found = x.new_empty(len(x), len(taus))
    for rows in slices(len(x), tile or TILE):
        s = x[rows] @ y.T
        for k, tau in enumerate(taus):
            found[rows, k] = entropy_of(log_penalty(s, tau, rows.start))
    return found


def triplet_limit(s: Tensor, tau: float) -> Tensor:
    """Point 5, tau to 0: [N] (1/tau) max(0, hardest negative - positive)."""
    others = _square(s).clone()
    others.fill_diagonal_(-math.inf)
    return (others.amax(1) - s.diagonal()).clamp_min(0) / _tau(tau)


def simple_limit(s: Tensor, tau: float) -> Tensor:
    """Point 5, tau to infinity: [N] -(1/tau)(s_ii - mean_k s_ik) + log N."""
    return (_square(s).mean(1) - s.diagonal()) / _tau(tau) + math.log(len(s))


def nearest_negatives(x: Tensor, y: Tensor, k: int, tile: int | None = None) -> Tensor:
    """[N, k] the largest similarities of each anchor off the diagonal, falling (fewer columns when N <= k)."""
    k = min(k, len(x) - 1)
    found = x.new_empty(len(x), k)
    for rows in slices(len(x), tile or TILE):
        s = x[rows] @ y.T
        s.diagonal(rows.start).fill_(-math.inf)
        found[rows] = s.topk(k, dim=1).values
    return found


def tolerance(z: Tensor, labels: Tensor) -> Tolerance:
    """Point 7: mean z_i . z_j over pairs i != j of equal labels, in O(N D).

    Args:
        z: [N, D] unit rows.
        labels: [N] int64.

    Raises:
        InputError: labels of another shape or type, or no class with two samples.
    """
    if labels.ndim != 1 or len(labels) != len(z) or labels.dtype != torch.int64:
        raise InputError(
            f"labels of shape {list(labels.shape)}, {str(labels.dtype).removeprefix('torch.')}", f"[{len(z)}] of int64"
        )
    classes, member, size = torch.unique(labels, return_inverse=True, return_counts=True)
    kept = size >= 2
    if not bool(kept.any()):
        raise InputError(f"{len(classes)} classes with one sample each", "a class with two samples or more")
    sums = z.new_zeros(len(classes), z.shape[1]).index_add_(0, member, z)
    others = (size[member] - 1).to(z.dtype)
    a = (z * sums[member]).sum(1) - z.square().sum(1)  # [N] summed over the same-class others
    a = a.masked_fill(others == 0, 0.0)
    n, pairs = len(z), others.sum()
    conditional = a.sum() / pairs
    raw = a.sum() / (n * (n - 1))
    by_class = z.new_zeros(len(classes)).index_add_(0, member, a) / (size * (size - 1)).clamp_min(1)
    macro = by_class[kept].mean()
    in_class = (size * (size - 1)).clamp_min(1)[member].to(z.dtype)
    return Tolerance(
        float(conditional), float(raw), float(macro),
        influence=2 * n * (a - conditional * others) / pairs,
        influence_raw=2 * (a / (n - 1) - raw),
        influence_macro=2 * n * (a - by_class[member] * others) / in_class / kept.sum(),
        classes=len(classes), singletons=int((~kept).sum()),
    )  # fmt: skip


def geometry(
    first: Tensor, second: Tensor | None, labels: Tensor | None, config: GeometryConfig | None = None
) -> GeometryReport:  # fmt: skip
    """The report card of a set of embeddings.

    Args:
        first: [N, D], normalised inside.
        second: [N, D] positives, row by row, whose other rows are the negatives; None: the negatives are `first`'s others.
        labels: [N] int64, for tolerance; None leaves it out.

    Raises:
        InputError: fewer than three rows, shapes that differ, zero or non-finite rows, labels that do not fit.
    """
    config = config or GeometryConfig()
    if first.ndim != 2 or len(first) < FEWEST:
        raise InputError(f"embeddings of shape {list(first.shape)}", f"[N, D] with N of {FEWEST} or more")
    if second is not None and second.shape != first.shape:
        raise InputError(f"embeddings of shapes {list(first.shape)} and {list(second.shape)}", "one shape for both")
    given = [side for side in (first, second) if side is not None]
    was_unit = all(bool(((side.double().norm(dim=1) - 1).abs() < 1e-3).all()) for side in given)
    rng = np.random.default_rng(config.seed)
    n, tile, resamples = len(first), config.tile, config.resamples
    with torch.no_grad():
        x = unit(first.double(), "first")
        y = None if second is None else unit(second.double(), "second")
        keys = x if y is None else y

        def mean(values: Tensor) -> Estimate:
            return mean_estimate(values.numpy(force=True), rng=rng, resamples=resamples)

        def uniform(z: Tensor) -> Estimate:
            rows = uniformity_rows(z, config.t, tile).numpy(force=True)
            return log_mean_estimate(rows, rng=rng, resamples=resamples)

        near = nearest_negatives(x, keys, config.nearest, tile)
        twin = twins(x, tile=tile)
        alone = missing("no second view was given", n)
        positive = None if y is None else (x * y).sum(1)
        tolerances = _tolerances(x, labels, rng, resamples)
        return GeometryReport(
            n=n, dimension=first.shape[1], negatives=n - 1, keys="first" if y is None else "second", feature=config.feature,
            normalised=was_unit, t=config.t,
            uniformity=uniform(x), uniformity_second=None if y is None else uniform(y),
            alignment=alone if y is None else mean(alignment_rows(x, y)),
            positive_similarity=alone if positive is None else mean(positive),
            nearest_similarity=mean(near.mean(1)),
            gap=alone if positive is None else mean(positive - near.mean(1)),
            tolerance=tolerances[0], tolerance_raw=tolerances[1], tolerance_macro=tolerances[2],
            classes=tolerances[3], singletons=tolerances[4],
            penalties=_penalties(x, keys, config, mean),
            positives=None if positive is None else histogram(positive, config.bins), nearest=histogram(near, config.bins),
            zero_distances=int(twin.sum()) // 2, duplicates=int((twin > 0).sum()),
        )  # fmt: skip


def histogram(values: Tensor, bins: int) -> Histogram:
    """Counts of similarities in equal bins over [-1, 1]; rounding beyond the ends is put back."""
    counts, edges = np.histogram(values.clamp(-1, 1).numpy(force=True), bins=bins, range=(-1.0, 1.0))
    return Histogram(edges=edges.tolist(), counts=counts.tolist())


def _penalties(x: Tensor, keys: Tensor, config: GeometryConfig, mean: Callable[[Tensor], Estimate]) -> list[Penalty]:
    taus = tuple(sorted({*config.taus, *([config.temperature] if config.temperature else [])}))
    h = penalty_entropy(x, keys, taus, config.tile)
    most = math.log(len(x) - 1)
    return [
        Penalty(tau=tau, entropy=mean(h[:, k]), normalised=mean(h[:, k] / most), effective=mean(h[:, k].exp()))
        for k, tau in enumerate(taus)
    ]


def _tolerances(
    x: Tensor, labels: Tensor | None, rng: np.random.Generator, resamples: int
) -> tuple[Estimate, Estimate, Estimate, int, int]:  # fmt: skip
    if labels is None:
        none = missing("no labels were given", len(x))
        return none, none, none, 0, 0
    found = tolerance(x, labels.to(x.device))
    parts = [
        estimate(value, effect.numpy(force=True), rng=rng, resamples=resamples)
        for value, effect in (
            (found.conditional, found.influence), (found.raw, found.influence_raw), (found.macro, found.influence_macro),
        )
    ]  # fmt: skip
    return parts[0], parts[1], parts[2], found.classes, found.singletons


def _square(s: Tensor) -> Tensor:
    if s.ndim != 2 or s.shape[0] != s.shape[1] or len(s) < 2:
        raise InputError(
            f"similarities of shape {list(s.shape)}", "[N, N] with positives on the diagonal, N of 2 or more"
        )
    return s


def _tau(tau: float) -> float:
    if not (math.isfinite(tau) and tau > 0):
        raise InputError(f"a temperature of {tau}", "a number above 0")
    return tau


CONFIG = GeometryConfig
