"""What a measurement of information gain leaves for people: `measure.json`, from which the gallery is drawn.

All gains are in nats, whatever `unit` says; `unit` is what to show them in (bits = nats / ln 2) and what the tables of
scores are in.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import rankdata

from efface.run.record import ModelRecord

Floats = npt.NDArray[np.float64]

POINTS = 1500
BINS = 40
RELATIONS = (
    ("cov_norm_zero", "kl"), ("cov_norm", "kl"), ("cov_norm_zero", "klr"), ("cov_norm", "klr"), ("centered_norm", "kl"),
    ("klr", "kl"),
)  # fmt: skip


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Statistics(_Record):
    """One mode over all items of a side."""

    mean: float
    std: float = Field(description="divided by n")
    low: float = Field(description="smallest value")
    median: float
    high: float = Field(description="largest value")


class Item(_Record):
    """One item with its gains in nats; None for what was not computed."""

    id: str
    text: str | None = None
    thumbnail: str | None = Field(None, description="base64 PNG, at most 96 px a side")
    kl: float | None = None
    klr: float | None = None
    cov_norm: float | None = None
    ess: float | None = None
    saturated: bool = False


class Relation(_Record):
    """How one mode follows another over the items of a side."""

    x: str
    y: str
    r2: float | None = Field(description="share of the variance of y that a line in x explains; None: one is constant")
    pearson: float | None
    spearman: float | None
    n: int


class Histogram(_Record):
    """Equal-width bins: one edge more than counts."""

    edges: list[float]
    counts: list[int]


class Side(_Record):
    """The gains of one side's items."""

    name: str = Field(description="images or texts")
    sample: str = Field(description="the other side, over whose distribution the gain is taken")
    n: int = Field(description="items scored")
    sample_size: int = Field(description="N, rows of the sample")
    sample_digest: str = Field(
        description="digest of the sample, whatever its order; gains of two samples do not compare"
    )
    dimension: int
    scale: float
    log_n: float = Field(description="log of the rows summed over: no kl can be larger")
    modes: dict[str, Statistics]
    histogram: Histogram = Field(description="of the headline mode")
    deciles: list[float] = Field(
        description="11 edges of ten equal-count bins of the headline mode, smallest to largest"
    )
    ngram_coverage: list[float] = Field(
        default_factory=list,
        description="share of all distinct word pairs of the side that the texts of each decile hold; empty without texts",
    )
    relations: list[Relation]
    scatter: list[tuple[float, float, bool]] = Field(description="(cov_norm_zero, kl, saturated) of at most 1500 items")
    k2_half_mean: float = Field(description="mean of k2/2 in nats; an R^2 means little without it")
    skewness_mean: float | None
    ess_median: float | None
    saturated_share: float
    centre_share: float = Field(description="c'Gc over the mean of u'Gu, c the mean of this side")
    lowest: list[Item] = Field(description="of the headline mode, lowest first")
    highest: list[Item] = Field(description="highest first")


class GainSummary(_Record):
    """measure.json."""

    created: str
    headline: str
    unit: Literal["nats", "bits"]
    model: ModelRecord | None = None
    scale: float
    bias: float | None = None
    sides: list[Side]
    warnings: list[str]
    config: dict[str, Any]
    seconds: float


def relation(x: str, y: str, columns: dict[str, Floats]) -> Relation:
    """R^2, Pearson and Spearman of two columns; None where one of them does not vary."""
    first, second = columns[x], columns[y]
    pearson = correlation(first, second)
    spearman = None if pearson is None else correlation(rankdata(first), rankdata(second))
    r2 = None if pearson is None else pearson**2
    return Relation(x=x, y=y, r2=r2, pearson=pearson, spearman=spearman, n=len(first))


def correlation(first: Floats, second: Floats) -> float | None:
    """Pearson's correlation; None where one side does not vary beyond rounding."""
    a, b = first - first.mean(), second - second.mean()
    for centred, values in ((a, first), (b, second)):
        if float(np.abs(centred).max()) <= 1e-12 * float(np.abs(values).max()):
            return None
    found = float((a @ b) / np.sqrt((a @ a) * (b @ b)))
    return max(-1.0, min(1.0, found))


def summarise(
    columns: dict[str, Floats], *, headline: str, ids: Sequence[str], texts: Sequence[str] | None,
    thumbnail: Callable[[int], str | None] | None, modes: Sequence[str], top: int, **facts: Any,
) -> Side:  # fmt: skip
    """One side's summary.

    Args:
        columns: [n] arrays by name, gains in nats; `saturated` as 0 and 1.
        headline: the mode that orders the items; ties keep the order of the rows.
        modes: columns to give statistics of.
        top: items of each end.
        facts: the remaining fields of `Side` that no column gives.
    """
    values = columns[headline]
    order = np.argsort(values, kind="stable")
    saturated = columns["saturated"] > 0
    edges, counts = _histogram(values)
    picked = np.unique(np.linspace(0, len(values) - 1, min(POINTS, len(values))).astype(int))
    scatter = []
    if "kl" in columns and "cov_norm_zero" in columns:
        scatter = [(float(columns["cov_norm_zero"][i]), float(columns["kl"][i]), bool(saturated[i])) for i in picked]

    def item(i: int) -> Item:
        shown = {name: float(columns[name][i]) for name in ("kl", "klr", "cov_norm", "ess") if name in columns}
        return Item(
            id=ids[i], text=None if texts is None else texts[i], thumbnail=None if thumbnail is None else thumbnail(i),
            saturated=bool(saturated[i]), **shown,
        )  # fmt: skip

    return Side(
        modes={name: _statistics(columns[name]) for name in modes},
        histogram=Histogram(edges=edges, counts=counts), deciles=np.quantile(values, np.linspace(0, 1, 11)).tolist(),
        ngram_coverage=[] if texts is None else ngram_coverage(texts, order),
        relations=[relation(x, y, columns) for x, y in RELATIONS if x in columns and y in columns],
        scatter=scatter, k2_half_mean=float(columns["k2_half"].mean()),
        skewness_mean=float(columns["skewness"].mean()) if "skewness" in columns else None,
        ess_median=float(np.median(columns["ess"])) if "ess" in columns else None,
        saturated_share=float(saturated.mean()), lowest=[item(int(i)) for i in order[:top]],
        highest=[item(int(i)) for i in order[::-1][:top]], **facts,
    )  # fmt: skip


def _histogram(values: Floats) -> tuple[list[float], list[int]]:
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-12 * max(abs(low), abs(high), 1.0):  # nothing but rounding: one bin that can be drawn
        return [low - 0.5, high + 0.5], [len(values)]
    counts, edges = np.histogram(values, bins=BINS)
    return edges.tolist(), counts.tolist()


def _statistics(values: Floats) -> Statistics:
    return Statistics(
        mean=float(values.mean()), std=float(values.std()), low=float(values.min()), median=float(np.median(values)),
        high=float(values.max()),
    )  # fmt: skip


def ngram_coverage(texts: Sequence[str], order: npt.NDArray[np.int64]) -> list[float]:
    """For ten equal-count bins of texts in this order: the share of all distinct word pairs that a bin holds.

    Informative texts say many different things, so the share rises with the gain. One-word texts count their word.
    """
    found: list[set[tuple[str, ...]]] = []
    for part in np.array_split(order, 10):
        pairs: set[tuple[str, ...]] = set()
        for i in part:
            words = texts[i].lower().split()
            pairs.update(itertools.pairwise(words) if len(words) > 1 else [tuple(words)])
        found.append(pairs)
    every = len(set().union(*found)) or 1
    return [len(pairs) / every for pairs in found]
