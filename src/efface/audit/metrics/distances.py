"""How far two samples of truth ratios lie apart, beside the KS statistic: Jensen-Shannon, Wasserstein-1, entropy.

DP2Unlearning (arXiv 2504.13774) reports them between the unlearned and the retrained model. Its script hands two unpaired
lists to a function that wants two probability vectors, so that its figure hangs on the order of the rows. Here both samples
are counted in the same bins of log R: twenty of equal width over the pooled range, without regard to order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import entropy, wasserstein_distance

from efface.errors import InputError

Floats = npt.NDArray[np.float64]
BINS = 20


def histograms(first: npt.ArrayLike, second: npt.ArrayLike, *, bins: int = BINS) -> tuple[Floats, Floats]:
    """Shares [bins] of both samples in bins of equal width over the pooled range.

    Raises:
        InputError: an empty sample, a value that is not finite, or fewer than two bins.
    """
    a, b = (np.asarray(sample, dtype=np.float64).reshape(-1) for sample in (first, second))
    if not a.size or not b.size or bins < 2:
        raise InputError(f"samples of {a.size} and {b.size} in {bins} bins", "one value or more each, two bins or more")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("a sample with a value that is not finite", "numbers")
    low, high = float(min(a.min(), b.min())), float(max(a.max(), b.max()))
    edges = np.linspace(low, high if high > low else low + 1.0, bins + 1)
    return tuple(np.histogram(sample, edges)[0] / sample.size for sample in (a, b))  # type: ignore[return-value]


def jensen_shannon(first: npt.ArrayLike, second: npt.ArrayLike, *, bins: int = BINS) -> float:
    """Jensen-Shannon divergence of the histograms in bits: 0 identical, 1 apart."""
    p, q = histograms(first, second, bins=bins)
    middle = (p + q) / 2
    return float((entropy(p, middle, base=2) + entropy(q, middle, base=2)) / 2)


def wasserstein(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
    """Wasserstein-1 distance of the samples, in their own unit."""
    histograms(first, second)  # the same refusals
    return float(wasserstein_distance(np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)))


def entropy_difference(first: npt.ArrayLike, second: npt.ArrayLike, *, bins: int = BINS) -> float:
    """Entropy of the first sample's histogram minus that of the second's, in bits."""
    p, q = histograms(first, second, bins=bins)
    return float(entropy(p, base=2) - entropy(q, base=2))
