"""A figure of a measure with its 95 % interval, from a bootstrap over items that costs nothing per resample.

Most figures here are means over pairs of items. Drawing an item twice makes a pair of equal items, which no data set
holds, and recomputing N^2 pairs a thousand times is not affordable. So the bootstrap resamples each item's first-order
effect on the figure (its influence; Hampel 1974, Efron 1982), for which a resample is a mean over N numbers. The interval
speaks of other items from the same source, not of another model or another number of items.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Floats = npt.NDArray[np.float64]

RESAMPLES = 1000
LEVEL = 0.95
CHUNK = 4_000_000  # numbers drawn at once


def _none_if_not_finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


Number = Annotated[float | None, AfterValidator(_none_if_not_finite)]
"""A float; NaN and infinity become None, which JSON can hold."""


class Estimate(BaseModel):
    """A value with its 95 % interval and the number of items behind it.

    `value` is None when it could not be computed, and then `reason` says why.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: Number
    low: Number = None
    high: Number = None
    n: int
    reason: str = Field("", description="why there is no value, or no interval")


def estimate(
    value: float, influence: npt.ArrayLike, *, rng: np.random.Generator, resamples: int = RESAMPLES, n: int | None = None
) -> Estimate:  # fmt: skip
    """Percentile interval of value + mean of resampled influences.

    Args:
        value: the figure.
        influence: [N], the figure's first-order change by an item's weight: of a mean, x_i - mean; of a mean over pairs,
            twice (the item's mean over its pairs - the mean). Only differences count.
        rng: draws the resamples.
        n: items, where the influence has fewer entries than the figure.
    """
    effects = np.asarray(influence, dtype=np.float64)
    count = len(effects) if n is None else n
    if not math.isfinite(value):
        return Estimate(value=None, n=count, reason="not a finite number")
    if len(effects) < 2 or not np.isfinite(effects).all():
        return Estimate(value=value, n=count, reason="no interval: fewer than two items, or a boundary case")
    effects = effects - effects.mean()
    draws = np.empty(resamples)
    step = max(1, CHUNK // len(effects))
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        draws[start:stop] = effects[rng.integers(0, len(effects), (stop - start, len(effects)))].mean(axis=1)
    low, high = value + np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=value, low=float(low), high=float(high), n=count)


def mean_estimate(values: npt.ArrayLike, *, rng: np.random.Generator, resamples: int = RESAMPLES) -> Estimate:
    """The mean of [N] values with its interval."""
    array = np.asarray(values, dtype=np.float64)
    return estimate(float(array.mean()), array, rng=rng, resamples=resamples)


def log_mean_estimate(
    rows: npt.ArrayLike, *, rng: np.random.Generator, degree: int = 2, resamples: int = RESAMPLES
) -> Estimate:
    """log of the mean over items of exp(rows), [N], with its interval.

    Args:
        degree: 2 when each row is itself a mean over the other items, as in uniformity.
    """
    logs = np.asarray(rows, dtype=np.float64)
    top = logs.max()
    weights = np.exp(logs - top)
    mean = weights.mean()
    return estimate(float(top + np.log(mean)), degree * weights / mean, rng=rng, resamples=resamples)


def missing(reason: str, n: int) -> Estimate:
    """A figure that could not be computed."""
    return Estimate(value=None, n=n, reason=reason)
