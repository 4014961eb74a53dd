"""The figures that papers on forgetting in classifiers report, each with an interval, and their distance to retraining.

UA, the error on the forget set; RA and TA, the accuracy on the retain and the test set; MIA efficacy, the share of the forget
set that a confidence attack calls non-members; the average gap, the mean distance of the four to the retrained model's.
Source: Jia et al., arXiv 2304.04934, sections 3 and 5; Fan et al., arXiv 2310.12508.

The attack departs from the official `SVC_MIA` on purpose: members are drawn at random from the retain set, not its first
rows; and its own accuracy on rows that it was not fitted on stands beside it, since a useless attack looks like perfect
forgetting. Neither UA nor efficacy is better when higher: the retrained model's value is the aim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from efface.audit.finding import Estimate
from efface.audit.metrics.intervals import wilson
from efface.audit.metrics.roc import auc_interval
from efface.audit.predictions import Predictions
from efface.errors import InputError

Floats = npt.NDArray[np.float64]
FIGURES = ("UA", "MIA", "RA", "TA")
LEAST = 10
"""Rows on each side below which no attack is fitted."""


def accuracy(table: Predictions) -> Estimate:
    """Share of rows whose label has the largest logit, with Wilson's interval."""
    return wilson(int(table.correct.sum()), len(table))


def error(table: Predictions) -> Estimate:
    """Share of rows whose label has not the largest logit."""
    return wilson(int((~table.correct).sum()), len(table))


@dataclass(frozen=True)
class Efficacy:
    """Of a confidence attack.

    Attributes:
        nonmember: share of the forget set that is called non-member.
        own_auc: of the attack on retain and test rows that it was not fitted on: 0.5 says that it tells nothing.
    """

    nonmember: Estimate
    own_auc: Estimate


def mia_efficacy(retain: Predictions, test: Predictions, forget: Predictions, *, seed: int = 0) -> Efficacy:
    """The published confidence attack: an RBF support vector machine (C = 3) on the label's probability.

    Args:
        retain: members; as many as there are test rows are drawn by the seed.
        test: non-members. Half of both sides fit the attack that is applied to the forget set's rows; the other half
            gives its own AUC.

    Raises:
        InputError: fewer than ten rows on a side.
    """
    n = min(len(retain), len(test))
    if n < LEAST:
        raise InputError(f"{len(retain)} retain and {len(test)} test rows", f"{LEAST} or more", "give more test rows")
    rng = np.random.default_rng(seed)
    inside = np.exp(retain.own_logp)[rng.permutation(len(retain))[:n]]
    outside = np.exp(test.own_logp)[rng.permutation(len(test))[:n]]
    half = n // 2
    values = np.concatenate([inside[:half], outside[:half]])[:, None]
    if np.ptp(values) == 0:  # every row looks alike: the attack is a coin that never says member
        return Efficacy(wilson(len(forget), len(forget)), Estimate(value=0.5, n=2 * (n - half)))
    attack = make_pipeline(StandardScaler(), SVC(C=3, gamma="auto", kernel="rbf"))
    attack.fit(values, np.repeat([1, 0], half))
    called = attack.predict(np.exp(forget.own_logp)[:, None])
    sides = [attack.decision_function(side[half:, None]) for side in (inside, outside)]
    return Efficacy(
        nonmember=wilson(int((called == 0).sum()), len(forget)),
        own_auc=auc_interval(np.asarray(sides[0]), np.asarray(sides[1]), seed=seed),
    )  # fmt: skip


@dataclass(frozen=True)
class Report:
    """UA, MIA, RA and TA of one model, as shares, and the attack's own AUC."""

    figures: Mapping[str, Estimate]
    attack_auc: Estimate | None = None

    def __getitem__(self, name: str) -> float:
        return self.figures[name].value


def report(forget: Predictions, retain: Predictions, test: Predictions, *, seed: int = 0) -> Report:
    """The four figures of one model from its tables; efficacy is left out where an attack has too few rows."""
    found = {"UA": error(forget), "RA": accuracy(retain), "TA": accuracy(test)}
    try:
        attack = mia_efficacy(retain, test, forget, seed=seed)
    except InputError:
        return Report(found)
    return Report({"UA": found["UA"], "MIA": attack.nonmember, "RA": found["RA"], "TA": found["TA"]}, attack.own_auc)


def average_gap(own: Report, retrained: Report) -> float:
    """Mean over the figures that both have of the distance to the retrained model, in percent points.

    Raises:
        InputError: nothing in common.
    """
    names = [name for name in FIGURES if name in own.figures and name in retrained.figures]
    if not names:
        raise InputError("no figure that both models have", "UA, RA or TA", "score both models on the same sets")
    return 100 * float(np.mean([abs(own[name] - retrained[name]) for name in names]))


# -- scores of membership from a classifier's outputs; larger = member ----------------------------------------------


def entropy_score(table: Predictions) -> Floats:
    """[N] sum_v p_v log p_v: minus the entropy."""
    p = np.exp(table.logp)
    with np.errstate(invalid="ignore"):  # 0 log 0 = 0
        return np.asarray(np.where(p > 0, p * table.logp, 0.0).sum(1), dtype=np.float64)


def modified_entropy_score(table: Predictions) -> Floats:
    """[N] (1 - p_y) log p_y + sum over v != y of p_v log(1 - p_v): Song and Mittal's modified entropy, negated.

    The official `m_entropy` of SVC_MIA is wrong twice: it indexes `[:, labels]`, which edits every listed column of every
    row, and takes log p where log(1 - p) is meant.
    """
    logp = table.logp
    p = np.exp(logp)
    rows, y = np.arange(len(table)), table.labels
    with np.errstate(divide="ignore"):
        rest = np.log1p(-np.minimum(p, 1 - 1e-15))
    terms = p * rest
    terms[rows, y] = (1 - p[rows, y]) * np.maximum(logp[rows, y], -745.0)
    return np.asarray(terms.sum(1), dtype=np.float64)


def margin_score(table: Predictions) -> Floats:
    """[N] the label's logit minus the largest of the others."""
    rows, y = np.arange(len(table)), table.labels
    others = table.outputs.copy()
    others[rows, y] = -np.inf
    return np.asarray(table.outputs[rows, y] - others.max(1), dtype=np.float64)


__all__ = [
    "FIGURES", "Efficacy", "Report", "accuracy", "average_gap", "entropy_score", "error", "margin_score", "mia_efficacy",
    "modified_entropy_score", "report",
]  # fmt: skip
