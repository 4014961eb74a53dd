"""Few-shot episodes over any encoder's embeddings, with and without OpTA, and their accuracy with a 95 % interval.

An episode draws N classes, S labelled rows of each (the support) and some unlabelled ones (the queries); a logistic
regression on the N class means reads the queries. OpTA (BECLR, Poulakakis-Daktylidis and Jamali-Rad, arXiv 2402.02444,
section 4.2) first moves the means on to the queries by optimal transport.

OpTA is transductive: it looks at all queries of an episode together and takes their classes to be equally frequent. It is no
fair rival of an inductive method, may lower accuracy where the classes are not balanced (give `masses` if they are known),
and cannot serve a single query.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field
from sklearn.linear_model import LogisticRegression

from efface.errors import InputError
from efface.numerics.transport import entropic_plan
from efface.run.settings import Settings

FLAT = 1e-12
"""Standard deviation below which a row counts as constant; it becomes a row of zeros."""


class EpisodeConfig(Settings):
    """Episodes and OpTA; defaults are the official evaluation's."""

    ways: int = Field(5, ge=2, description="N, classes of an episode")
    shots: int = Field(1, ge=1, description="S, labelled rows of each class")
    queries: int | tuple[int, ...] = Field(
        15, description="queries of each class, or a count for each of the N classes"
    )
    episodes: int = Field(2000, ge=2, description="drawn one after another; official: 2000")
    passes: int | None = Field(
        None, ge=1, description="times that OpTA moves; default: 5 at one shot, else 1 (official)"
    )
    eps: float = Field(
        0.05, gt=0, description="entropy of the transport, of a cost whose largest entry is 1; official: 0.05"
    )
    keep: float = Field(0.3, ge=0, le=1, description="share of the class mean that stays, with two or more shots")
    penalty: float = Field(1.0, gt=0, description="C of the logistic regression; official: 1")
    seed: int = Field(0, ge=0, description="of the episodes")

    @property
    def counts(self) -> tuple[int, ...]:
        """Queries of each class."""
        return (self.queries,) * self.ways if isinstance(self.queries, int) else self.queries


@dataclass(frozen=True)
class Episode:
    """Rows of the data, and their places among the episode's classes.

    Attributes:
        support, support_classes: [N S].
        queries, query_classes: [sum of the counts].
    """

    support: np.ndarray
    support_classes: np.ndarray
    queries: np.ndarray
    query_classes: np.ndarray


@dataclass(frozen=True)
class EpisodeScore:
    """Mean accuracy over episodes.

    Attributes:
        method: `prototypes` or `opta`.
        kind: whether the queries were looked at together (`transductive`) or one by one (`inductive`).
        accuracy, half_width: mean, and half of its 95 % interval (normal approximation over episodes).
        episodes: accuracies of each.
    """

    method: Literal["prototypes", "opta"]
    kind: Literal["inductive", "transductive"]
    accuracy: float
    half_width: float
    episodes: tuple[float, ...]

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.accuracy - self.half_width

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.accuracy + self.half_width


def draw_episode(labels: np.ndarray, config: EpisodeConfig, rng: np.random.Generator) -> Episode:
    """One episode; no row is in it twice.

    Args:
        labels: [n] the class of each row.

    Raises:
        InputError: counts that do not fit the classes, fewer classes than `ways`, or a class with too few rows.
    """
    counts = config.counts
    if len(counts) != config.ways or min(counts) < 1:
        raise InputError(f"query counts {list(counts)}", f"{config.ways} positive numbers, one a class")
    names, sizes = np.unique(labels, return_counts=True)
    if len(names) < config.ways:
        raise InputError(f"{len(names)} classes for {config.ways} ways", "as many classes or more", "lower ways")
    most = config.shots + max(counts)
    if sizes.min() < most:
        raise InputError(
            f"class {names[sizes.argmin()]} has {sizes.min()} rows", f"{most} or more of each (shots and queries)",
            "lower shots or queries, or leave small classes out",
        )  # fmt: skip
    chosen = rng.permutation(names)[: config.ways]
    support, queries = [], []
    for name, count in zip(chosen, counts, strict=True):
        rows = rng.permutation(np.flatnonzero(labels == name))[: config.shots + count]
        support.append(rows[: config.shots])
        queries.append(rows[config.shots :])
    return Episode(
        np.concatenate(support), np.repeat(np.arange(config.ways), config.shots), np.concatenate(queries),
        np.repeat(np.arange(config.ways), counts),
    )  # fmt: skip


def standardised(rows: np.ndarray) -> np.ndarray:
    """[n, D] float64, each row minus its mean and over its standard deviation; a constant row becomes zeros.

    Raises:
        InputError: no matrix, or values that are not finite.
    """
    wide = np.asarray(rows, dtype=np.float64)
    if wide.ndim != 2 or not np.isfinite(wide).all():
        raise InputError(f"features of shape {list(wide.shape)}", "finite numbers [n, D]")
    centred = wide - wide.mean(1, keepdims=True)
    spread = centred.std(1, ddof=1, keepdims=True) if wide.shape[1] > 1 else np.zeros((len(wide), 1))
    found: np.ndarray = np.where(spread > FLAT, centred / np.maximum(spread, FLAT), 0.0)
    return found


def class_means(support: np.ndarray, classes: np.ndarray, ways: int) -> np.ndarray:
    """[N, D] mean of the support rows [N S, D] of each class.

    Raises:
        InputError: a class without a row.
    """
    missing = sorted(set(range(ways)) - set(classes.tolist()))
    if missing:
        raise InputError(f"no labelled row of class {missing[0]}", f"one or more of each of {ways} classes")
    return np.stack([support[classes == place].mean(0) for place in range(ways)])


def opta(
    prototypes: np.ndarray, queries: np.ndarray, *, shots: int, passes: int | None = None, eps: float = 0.05,
    keep: float = 0.3, masses: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Class means moved on to the queries by optimal transport, [N, D].

    Args:
        prototypes: [N, D] class means of the support.
        queries: [m, D], m of N or more.
        shots: S; with one the moved means are returned, with more a share of the old ones stays.
        passes: how often they are moved; default: 5 at one shot, else 1.
        eps: entropy, of a cost (squared distance) whose largest entry is 1.
        keep: the share that stays, with two shots or more.
        masses: [N] how frequent the classes are among the queries; default: equally.

    Raises:
        InputError: fewer queries than classes (a single query cannot be transported to), or shapes that do not fit.
    """
    if prototypes.ndim != 2 or queries.ndim != 2 or prototypes.shape[1] != queries.shape[1]:
        raise InputError(
            f"prototypes {list(prototypes.shape)} and queries {list(queries.shape)}", "[N, D] and [m, D] of one width"
        )
    if len(queries) < len(prototypes):
        raise InputError(
            f"{len(queries)} queries for {len(prototypes)} classes", "as many queries or more",
            "OpTA needs a balanced set of queries: read single ones from the class means",
        )  # fmt: skip
    if shots < 1:
        raise InputError(f"{shots} shots", "1 or more")
    moved = prototypes
    for _ in range(passes or (5 if shots == 1 else 1)):
        cost = np.square(moved[:, None] - queries[None]).sum(2)
        plan = entropic_plan(cost / max(cost.max(), FLAT), eps=eps, rows=masses)
        moved = (plan / plan.sum(1, keepdims=True)) @ queries
    return moved if shots == 1 else (1 - keep) * moved + keep * prototypes


def episode_scores(
    features: Any, labels: Sequence[int] | np.ndarray, config: EpisodeConfig, *, masses: np.ndarray | None = None
) -> dict[str, EpisodeScore]:
    """Accuracy of both methods on the same episodes, by method.

    Args:
        features: [n, D] embeddings of rows that no training saw, of any encoder; they are standardised row by row.
        labels: [n].
        config: the episodes.
        masses: see `opta`; where `queries` differ, in the order of their counts.

    Raises:
        InputError: see `draw_episode`, `standardised` and `opta`.
    """
    rows, classes = standardised(np.asarray(features)), np.asarray(labels)
    if classes.shape != (len(rows),):
        raise InputError(f"{classes.size} labels for {len(rows)} rows", "a label for each row")
    rng = np.random.default_rng(np.random.SeedSequence([config.seed, 0xE915]))
    found: dict[str, list[float]] = {"prototypes": [], "opta": []}
    for _ in range(config.episodes):
        episode = draw_episode(classes, config, rng)
        means = class_means(rows[episode.support], episode.support_classes, config.ways)
        queries = rows[episode.queries]
        moved = opta(
            means, queries, shots=config.shots, passes=config.passes, eps=config.eps, keep=config.keep, masses=masses
        )
        for method, prototypes in (("prototypes", means), ("opta", moved)):
            model = LogisticRegression(C=config.penalty, max_iter=1000).fit(prototypes, np.arange(config.ways))
            found[method].append(float(model.score(queries, episode.query_classes)))
    return {
        "prototypes": _score("prototypes", "inductive", found["prototypes"]),
        "opta": _score("opta", "transductive", found["opta"]),
    }


def _score(method: Any, kind: Any, values: list[float]) -> EpisodeScore:
    half = 1.96 * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return EpisodeScore(method, kind, float(np.mean(values)), half, tuple(values))
