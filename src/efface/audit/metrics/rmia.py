"""RMIA: the relative membership inference attack. Is this example likelier here, against examples that were never seen?

An example's probability under the audited model is set against its probability under reference models, and that ratio
against the same ratio of many examples z that the model never saw. Works with few reference models, even with one.
Larger score = member.

Source: Zarifzadeh, Liu and Shokri, Low-cost high-power membership inference attacks, arXiv 2312.03262 (ICML 2024).
With theta the audited model, x the example [n], z the population [m]:

    LR(x, z) = (Pr(x | theta) / Pr(x)) / (Pr(z | theta) / Pr(z))
    score(x) = share of z with LR(x, z) >= gamma
    Pr(x)    = (mean over IN models + mean over OUT models) / 2          online
    Pr(x)    = ((1 + a) * mean over OUT models + (1 - a)) / 2            offline: Pr_IN is taken to be a Pr_OUT + (1 - a)

LR(x, z) >= gamma says that log ratio(z) <= log ratio(x) - log gamma, so the score is the empirical distribution of the
population's ratios, read at the example's own: one sort instead of n m comparisons. For one gamma the population fixes
where a threshold lies; it does not change the order of the examples, except that it makes ties.

Departures from the official code (ml_privacy_meter), on purpose:
- Every mean runs over the models that are IN or OUT for that example. The official one takes the N/2 largest entries of a
  table in which an IN model counts as 0. So an example with fewer OUT models gets zeros into its mean, and a z, for which
  all models are OUT, the mean of its largest half: a population that looks more familiar to the references than it is.
- An example is never compared with itself. The official research code takes one comparison off a negated score, and at
  gamma = 2, where an example never beats itself.
- Logarithms throughout: a probability that rounds to 0 is an order, no division by zero.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from efface.audit.metrics.roc import auc
from efface.errors import ConfigError, InputError

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

GAMMA = 1.0
"""Official library, on plain softmax probabilities; the paper's 2 goes with its Taylor soft-margin softmax."""

A = 0.3
"""Official library and the paper's CIFAR-10 runs; `choose_a` finds it on the reference models."""


def log_ratio(logp: npt.ArrayLike, references: npt.ArrayLike, keep: npt.ArrayLike, *, a: float | None = None) -> Floats:
    """log Pr(x | theta) - log Pr(x).

    Args:
        logp: [n] log-probability of the label under the audited model; minus infinity is allowed.
        references: [N, n] the same under the reference models.
        keep: [N, n] true where the reference model was trained on the example.
        a: None for the online attack, which needs IN and OUT models of every example; otherwise that of the offline one,
            from 0 to 1, which needs OUT models only.

    Returns:
        [n].

    Raises:
        InputError: shapes that do not fit, NaN or positive values, an example without the models that it needs, or to which
            no reference model gives any probability.
        ConfigError: a outside [0, 1].
    """
    values, table, kept = _checked(logp, references, keep)
    outside = _mean(table, ~kept, "out")
    if a is None:
        expected = np.logaddexp(_mean(table, kept, "in"), outside) - math.log(2)
    elif 0 <= a <= 1:
        floor = math.log((1 - a) / 2) if a < 1 else -math.inf
        expected = np.logaddexp(outside + math.log((1 + a) / 2), floor)
    else:
        raise ConfigError(f"a = {a}", "a number from 0 to 1", f"the official code takes {A}")
    if np.isneginf(expected).any():
        row = int(np.argmax(np.isneginf(expected)))
        raise InputError(
            f"the reference models give example {row} the probability 0",
            "a positive one",
            "take the offline attack, a < 1",
        )
    result: Floats = values - expected
    return result


def score(
    ratio: npt.ArrayLike, population: npt.ArrayLike, *, gamma: float = GAMMA, own: npt.ArrayLike | None = None
) -> Floats:
    """Share of the population with LR(x, z) >= gamma.

    Args:
        ratio: [n] of `log_ratio`.
        population: [m] log ratios of the z, which the audited model never saw.
        gamma: how much likelier than z an example must be.
        own: [n] which z an example is, -1 for none: it is not compared with itself.

    Returns:
        [n] from 0 to 1.

    Raises:
        InputError: shapes that do not fit, NaN, no z, or a population of nothing but the example itself.
        ConfigError: gamma that is not positive.
    """
    values, others = np.asarray(ratio, dtype=np.float64), np.asarray(population, dtype=np.float64)
    if values.ndim != 1 or others.ndim != 1 or not len(others) or np.isnan(values).any() or np.isnan(others).any():
        raise InputError(
            f"ratios {list(values.shape)} against a population {list(others.shape)}", "[n] and [m >= 1] numbers"
        )
    if not gamma > 0:
        raise ConfigError(f"gamma = {gamma}", "a positive number", f"the official code takes {GAMMA:g}")
    limit = values - math.log(gamma)
    below = np.searchsorted(np.sort(others), limit, side="right").astype(np.float64)
    if own is None:
        shares: Floats = below / len(others)
        return shares
    index = np.asarray(own)
    if index.shape != values.shape or not np.issubdtype(index.dtype, np.integer) or (index >= len(others)).any():
        raise InputError(
            f"own {list(index.shape)} for ratios {list(values.shape)}", f"-1 or a place below {len(others)}"
        )
    itself = index >= 0
    if itself.any() and len(others) < 2:
        raise InputError("an example that is the whole population", "another z", "give more examples never seen")
    counted = itself & (others[np.maximum(index, 0)] <= limit)
    result: Floats = (below - counted) / (len(others) - itself)
    return result


def attack(
    logp: npt.ArrayLike, references: npt.ArrayLike, keep: npt.ArrayLike, population: npt.ArrayLike, *,
    a: float | None = None, gamma: float = GAMMA,
) -> Floats:  # fmt: skip
    """RMIA of n examples, some of which are the population.

    Args:
        logp, references, keep, a: as in `log_ratio`.
        population: [n] true for the examples that the audited model never saw.

    Returns:
        [n] from 0 to 1.

    Raises:
        InputError, ConfigError: as in `log_ratio` and `score`.
    """
    ratio = log_ratio(logp, references, keep, a=a)
    chosen = np.asarray(population)
    if chosen.dtype != np.bool_ or chosen.shape != ratio.shape:
        raise InputError(f"a population of {chosen.dtype} {list(chosen.shape)}", f"true and false, [{len(ratio)}]")
    own = np.where(chosen, np.cumsum(chosen) - 1, -1)
    return score(ratio, ratio[chosen], gamma=gamma, own=own)


def choose_a(
    references: npt.ArrayLike, keep: npt.ArrayLike, *, apart: int = 2, grid: tuple[float, ...] = tuple(np.arange(11) / 10)
) -> float:  # fmt: skip
    """The offline a that works best where membership is known: on the reference models themselves, never on the audited one.

    The first model is attacked with the others, as in the paper's tuning; ties go to the smaller a.

    Args:
        references: [N, n]; keep: [N, n].
        apart: that many models, counted from the first, are not used as references for it: a model that was trained on
            exactly what the first one was not trained on would tell its members.

    Raises:
        InputError: as in `log_ratio`, or a first model that saw everything or nothing.
    """
    table, kept = np.asarray(references, dtype=np.float64), np.asarray(keep)
    if table.ndim != 2 or len(table) <= apart:
        raise InputError(f"{len(table)} reference models", f"more than {apart}", "train more")
    best = [
        auc(ratio[kept[0]], ratio[~kept[0]])
        for ratio in (log_ratio(table[0], table[apart:], kept[apart:], a=float(a)) for a in grid)
    ]
    return float(grid[int(np.argmax(best))])


def _mean(table: Floats, chosen: Flags, name: str) -> Floats:
    """[n] logarithm of the mean probability over the chosen models."""
    counts = chosen.sum(axis=0)
    if (counts < 1).any():
        row = int(np.argmax(counts < 1))
        raise InputError(
            f"example {row} has no '{name}' model",
            "one for every example",
            "train more reference models, on random halves",
        )
    masked = np.where(chosen, table, -np.inf)
    with np.errstate(divide="ignore"):
        result: Floats = np.asarray(logsumexp(masked, axis=0), dtype=np.float64) - np.log(counts)
    return result


def _checked(logp: npt.ArrayLike, references: npt.ArrayLike, keep: npt.ArrayLike) -> tuple[Floats, Floats, Flags]:
    values, table = np.asarray(logp, dtype=np.float64), np.asarray(references, dtype=np.float64)
    kept = np.asarray(keep)
    if (
        values.ndim != 1
        or not len(values)
        or table.ndim != 2
        or kept.shape != table.shape
        or table.shape[1] != len(values)
    ):
        raise InputError(
            f"logp {list(values.shape)}, references {list(table.shape)}, keep {list(kept.shape)}",
            "[n], [N, n] and [N, n]",
        )
    if kept.dtype != np.bool_:
        raise InputError(f"a keep matrix of {kept.dtype}", "true and false")
    if np.isnan(values).any() or np.isnan(table).any() or (values > 1e-9).any() or (table > 1e-9).any():
        raise InputError("a log-probability that is NaN or above 0", "log-probabilities", "take them from the logits")
    return values, table, kept


__all__ = ["GAMMA", "A", "attack", "choose_a", "log_ratio", "score"]
