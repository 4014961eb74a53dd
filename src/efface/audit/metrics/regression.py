"""The figures of forgetting in a regressor: errors, the distance to the retrained model's predictions, a membership attack.

Source: Tarun et al., Deep regression unlearning, arXiv 2210.08196. With f_u and f_r the predictions of the unlearned
and of the retrained model on the N rows to forget, in units of the data (a model's unit times `scale`),

    W1 = the 1-Wasserstein distance of the two samples, which forgets which prediction belongs to which row
    paired = mean over rows of |f_u(x_i) - f_r(x_i)|,   W1 <= paired

W1 alone is met by a model that says the right numbers about the wrong rows, so the two always come together. The membership
attack departs from the official one (a support vector machine on the absolute error): errors are standardised, so that the
unit of the targets does not matter, and its own AUC on rows that it was not fitted on stands beside its verdict. Models of
several quantiles are refused: choose the median's column first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from efface.audit.finding import Estimate
from efface.audit.metrics.distances import wasserstein
from efface.audit.metrics.intervals import bootstrap_mean, wilson
from efface.audit.metrics.roc import auc_interval
from efface.audit.predictions import Predictions
from efface.errors import InputError

Floats = npt.NDArray[np.float64]
LEAST = 10
"""Rows on each side below which no attack is fitted."""


def predicted_values(table: Predictions) -> Floats:
    """[N] the number that the model says about each row, in its own unit.

    Raises:
        InputError: the table is of a classifier, or has several numbers a row.
    """
    if table.task != "regression":
        raise InputError("predictions of a classifier", "predictions of a regressor", "use the figures of classifiers")
    if table.outputs.ndim != 2 or table.outputs.shape[1] != 1:
        raise InputError(
            f"outputs {list(table.outputs.shape)}", "one number a row, [N, 1]", "of a quantile model, keep the median's column"
        )  # fmt: skip
    return np.asarray(table.outputs[:, 0], dtype=np.float64)


def absolute_errors(table: Predictions, *, scale: float = 1.0) -> Floats:
    """[N] |prediction - target| in units of the data.

    Args:
        scale: what a unit of the model's target is in units of the data.

    Raises:
        InputError: see `predicted_values`; a scale that is not positive; targets of another shape.
    """
    if not (np.isfinite(scale) and scale > 0):
        raise InputError(
            f"a scale of {scale}", "a positive number", "give the deviation that the targets were divided by"
        )
    said = predicted_values(table)
    if table.targets.shape != said.shape:
        raise InputError(f"targets {list(table.targets.shape)} for {len(said)} predictions", "one target a row")
    return np.asarray(scale * np.abs(said - table.targets), dtype=np.float64)


def mae(table: Predictions, *, scale: float = 1.0, seed: int = 0) -> Estimate:
    """Mean absolute error in units of the data, with a bootstrap interval."""
    return bootstrap_mean(absolute_errors(table, scale=scale), seed=seed)


def mse(table: Predictions, *, scale: float = 1.0, seed: int = 0) -> Estimate:
    """Mean squared error in squared units of the data, with a bootstrap interval."""
    return bootstrap_mean(np.square(absolute_errors(table, scale=scale)), seed=seed)


# -- distance to the retrained model -------------------------------------------------------------------------------


@dataclass(frozen=True)
class PredictionDistance:
    """Of two models' predictions on one set, in units of the data; the first is at most the second.

    Attributes:
        wasserstein: of the two samples, whichever row a prediction belongs to.
        paired: mean difference row by row.
    """

    wasserstein: float
    paired: Estimate


def distance(own: Predictions, retrained: Predictions, *, scale: float = 1.0, seed: int = 0) -> PredictionDistance:
    """How far a model's predictions lie from the retrained model's.

    Raises:
        InputError: the tables are of other rows, or in another order; see `absolute_errors`.
    """
    if own.ids != retrained.ids:
        raise InputError(
            f"tables of {len(own)} and {len(retrained)} rows with other ids", "the same rows in the same order",
            "score both models on one set",
        )  # fmt: skip
    absolute_errors(own, scale=scale)  # the same refusals
    f_u, f_r = scale * predicted_values(own), scale * predicted_values(retrained)
    return PredictionDistance(wasserstein(f_u, f_r), bootstrap_mean(np.abs(f_u - f_r), seed=seed))


# -- membership ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LossAttack:
    """Of a membership attack on the absolute error.

    Attributes:
        member: share of the forget set that is called member; the retrained model's is the aim.
        own_auc: of the attack on retain and test rows that it was not fitted on: 0.5 says that it tells nothing.
    """

    member: Estimate
    own_auc: Estimate


def loss_attack(retain: Predictions, test: Predictions, forget: Predictions, *, seed: int = 0) -> LossAttack:
    """The published attack: an RBF support vector machine (C = 3) on the absolute error.

    Args:
        retain: members; as many as there are test rows are drawn by the seed, and the other way round.
        test: non-members. Half of both sides fit the attack; the other half gives its own AUC.

    Raises:
        InputError: fewer than ten rows on a side; see `absolute_errors`.
    """
    n = min(len(retain), len(test))
    if n < LEAST or not len(forget):
        raise InputError(
            f"{len(retain)} retain, {len(test)} test and {len(forget)} forget rows", f"{LEAST} or more to learn from, one to "
            "attack", "give more test rows",
        )  # fmt: skip
    rng = np.random.default_rng(seed)
    inside, outside = (absolute_errors(side)[rng.permutation(len(side))[:n]] for side in (retain, test))
    half = n // 2
    values = np.concatenate([inside[:half], outside[:half]])[:, None]
    if np.ptp(values) == 0:  # every row looks alike: the attack is a coin that never says member
        return LossAttack(wilson(0, len(forget)), Estimate(value=0.5, n=2 * (n - half)))
    attack = make_pipeline(StandardScaler(), SVC(C=3, gamma="auto", kernel="rbf"))
    attack.fit(values, np.repeat([1, 0], half))
    called = attack.predict(absolute_errors(forget)[:, None])
    sides = [np.asarray(attack.decision_function(side[half:, None])) for side in (inside, outside)]
    return LossAttack(wilson(int((called == 1).sum()), len(forget)), auc_interval(*sides, seed=seed))


def loss_auc(members: Predictions, nonmembers: Predictions, *, seed: int = 0) -> Estimate:
    """AUC of the attack that needs no fitting, minus the absolute error; larger speaks for membership.

    Ask it about rows to forget and unseen rows of the same kind: other kinds differ in error without any memory.
    """
    return auc_interval(-absolute_errors(members), -absolute_errors(nonmembers), seed=seed)


# -- all of them ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RegressionReport:
    """Of one model, in units of the data: mean absolute errors, distances to the retrained model, the attack."""

    forget: Estimate
    retain: Estimate
    test: Estimate
    to_retrained: PredictionDistance | None = None
    attack: LossAttack | None = None


def report(
    forget: Predictions, retain: Predictions, test: Predictions, *, retrained: Predictions | None = None, scale: float = 1.0,
    seed: int = 0,
) -> RegressionReport:  # fmt: skip
    """The figures of one model from its tables; the attack is left out where it has too few rows.

    Args:
        retrained: the retrained model's predictions on the forget rows.
    """
    on_forget, on_retain, on_test = (mae(table, scale=scale, seed=seed) for table in (forget, retain, test))
    enough = min(len(retain), len(test)) >= LEAST
    return RegressionReport(
        forget=on_forget, retain=on_retain, test=on_test,
        to_retrained=None if retrained is None else distance(forget, retrained, scale=scale, seed=seed),
        attack=loss_attack(retain, test, forget, seed=seed) if enough else None,
    )  # fmt: skip


__all__ = [
    "LossAttack", "PredictionDistance", "RegressionReport", "absolute_errors", "distance", "loss_attack", "loss_auc", "mae",
    "mse", "predicted_values", "report",
]  # fmt: skip
