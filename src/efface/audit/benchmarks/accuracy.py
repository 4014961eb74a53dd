"""Accuracy of a classifier on what was to be forgotten and on what was to be kept, and errors of a regressor.

The four figures of papers on forgetting in classifiers (UA, MIA efficacy, RA, TA; arXiv 2304.04934) and the average gap; for
regressors the error on each set, a membership attack on it, and two distances to the retrained model's predictions: of the
distributions (Wasserstein-1) and of the pairs, since a model with the right predictions for the wrong rows has a distance of
distributions of 0 (arXiv 2210.08196, its metrics).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from efface.audit.evidence import ROLES, Evidence, compare
from efface.audit.finding import Direction, Estimate, Finding, Threshold
from efface.audit.metrics.classification import Report, accuracy, average_gap, error, report
from efface.audit.metrics.distances import wasserstein
from efface.audit.metrics.intervals import bootstrap, bootstrap_mean
from efface.audit.metrics.regression import LEAST, LossAttack, RegressionReport, mae
from efface.audit.metrics.regression import report as regression_report
from efface.audit.predictions import Predictions

Floats = npt.NDArray[np.float64]
RESAMPLES = 1000
NEEDS_TEST = "needs rows that the model has never seen (--holdout)"
NEEDS_SIDES = f"needs {LEAST} or more rows to keep and as many that the model has never seen (--holdout)"
NEEDS_RETRAINED = "needs a retrained model (--against)"


def findings(evidence: Evidence) -> list[Finding]:
    """All figures that the model's task has."""
    return regression(evidence) if evidence.predictor == "regression" else classification(evidence)


def of(evidence: Evidence, name: str, figure: Callable[[Predictions], Estimate]) -> Callable[[str], Estimate | None]:
    """role -> a figure of its predictions on a set, or None where there are none."""

    def value(role: str) -> Estimate | None:
        own = evidence.prediction(role, name)
        return None if own is None else figure(own)

    return value


def reports(evidence: Evidence) -> dict[str, Report]:
    """The four figures of every model that has all three tables."""
    found = {}
    for role in ("unlearned", "original", "retrained"):
        tables = [evidence.prediction(role, "forget"), evidence.prediction(role, "retain"), evidence.test_part(role)]
        if all(table is not None for table in tables):
            found[role] = report(*tables, seed=evidence.config.seed)  # type: ignore[arg-type]
    return found


def classification(evidence: Evidence) -> list[Finding]:
    """UA, confidence, RA, TA, MIA efficacy, the average gap, and the accuracy on every other set."""
    limits, seed = evidence.config.thresholds, evidence.config.seed
    gap = Threshold(quantity="gap", relation="<=", bound=limits.accuracy_gap)
    share = Threshold(quantity="ratio", relation=">=", bound=limits.utility_share)
    made = reports(evidence)

    def confidence(table: Predictions) -> Estimate:
        return bootstrap_mean(np.exp(table.own_logp), seed=seed)

    def four(name: str) -> Callable[[str], Estimate | None]:
        return lambda role: made[role].figures.get(name) if role in made else None

    def test(*, forgotten: bool) -> Callable[[str], Estimate | None]:
        def value(role: str) -> Estimate | None:
            own = evidence.test_part(role, forgotten=forgotten)
            return None if own is None else accuracy(own)

        return value

    def attack(role: str) -> Estimate | None:
        return made[role].attack_auc if role in made else None

    def distance(role: str) -> Estimate | None:
        if role not in made or "retrained" not in made:
            return None
        if role == "retrained":
            return Estimate(value=0.0, n=made[role].figures["UA"].n)
        return _gap(evidence, role, made)

    found = [
        compare(evidence, "classifier/ua", "Error on the forget set (UA)",
                "Share of the rows to be forgotten whose label the model gets wrong. Not better when higher: a model that never "
                "saw them is the aim.", "forgetting", "retrained", of(evidence, "forget", error), threshold=gap),
        compare(evidence, "classifier/forget_confidence", "Confidence in the forgotten labels",
                "Mean probability of the labels to be forgotten.", "forgetting", "retrained",
                of(evidence, "forget", confidence)),
        compare(evidence, "classifier/ra", "Accuracy on the retain set (RA)", "Share of the rows to be kept that are right.",
                "utility", "higher", of(evidence, "retain", accuracy), threshold=share, reason="no retain set"),
        compare(evidence, "classifier/ta", "Accuracy on the test set (TA)",
                "Share of unseen rows that are right, of the classes that are kept.",
                "utility", "higher", test(forgotten=False), threshold=share, reason=NEEDS_TEST),
        compare(evidence, "classifier/mia", "MIA efficacy",
                "Share of the forget set that a confidence attack, fitted on retain against test rows, calls unseen. The "
                "retrained model's share is the aim; where the attack's own AUC is near 0.5 it says nothing.",
                "privacy", "retrained", four("MIA"), threshold=gap, reason=NEEDS_TEST),
        compare(evidence, "classifier/mia_own_auc", "The confidence attack's own AUC",
                "How well the attack tells retain rows from test rows that it was not fitted on: 0.5 is a coin.",
                "privacy", "none", attack, reason=NEEDS_TEST),
        compare(evidence, "classifier/average_gap", "Average gap to retraining",
                "Mean distance of UA, MIA, RA and TA to the retrained model's, in percent points.",
                "forgetting", "lower", distance, unit="points", reason=f"{NEEDS_RETRAINED} and a holdout set"),
    ]  # fmt: skip
    if evidence.test_part("unlearned", forgotten=True) is not None:
        found.append(compare(
            evidence, "classifier/forget_test", "Accuracy on unseen rows of forgotten classes",
            "Share of unseen rows of classes that are not kept which still get their label.", "forgetting", "retrained",
            test(forgotten=True), threshold=gap,
        ))  # fmt: skip
    for name in evidence.sets():
        if name not in ("forget", "retain", "holdout", "forget_test") and not name.startswith("downstream"):
            direction: Direction = "retrained" if name.startswith("forget") else "higher"
            found.append(compare(
                evidence, f"classifier/accuracy/{name}", f"Accuracy on {name.replace('_', ' ')}",
                f"Share of the set '{name}' that is right.", "forgetting" if name.startswith("forget") else "utility",
                direction, of(evidence, name, accuracy), threshold=gap if name.startswith("forget") else share,
            ))  # fmt: skip
    return found


def _gap(evidence: Evidence, role: str, made: dict[str, Report]) -> Estimate:
    """The average gap with an interval: rows are drawn again, the same ones for both models; the attack stays as fitted."""
    own, other = made[role], made["retrained"]
    plain = average_gap(own, other)
    sets = {}
    for name in ("forget", "retain", "holdout"):
        tables = [
            evidence.test_part(r) if name == "holdout" else evidence.prediction(r, name) for r in (role, "retrained")
        ]
        assert all(table is not None for table in tables)
        sets[name] = np.stack([table.correct.astype(np.float64) for table in tables], axis=1)  # type: ignore[union-attr]
    rng = np.random.default_rng(evidence.config.seed)
    drawn = np.zeros(RESAMPLES)
    count = 3 + ("MIA" in own.figures and "MIA" in other.figures)
    for values in sets.values():
        picks = rng.integers(0, len(values), (RESAMPLES, len(values)))
        means = values[picks].mean(1)  # [B, 2]
        drawn += np.abs(means[:, 0] - means[:, 1])
    if count == 4:
        n = own.figures["MIA"].n
        shares = [rng.binomial(n, report["MIA"], RESAMPLES) / n for report in (own, other)]
        drawn += np.abs(shares[0] - shares[1])
    low, high = np.quantile(100 * drawn / count, (0.025, 0.975))
    return Estimate(value=plain, low=min(float(low), plain), high=max(float(high), plain), n=len(sets["forget"]))


def regression_reports(evidence: Evidence) -> dict[str, RegressionReport]:
    """The figures of every regressor that has all three tables."""
    found: dict[str, RegressionReport] = {}
    for role in ROLES:
        tables = [evidence.prediction(role, name) for name in ("forget", "retain", "holdout")]
        if all(table is not None for table in tables):
            found[role] = regression_report(*tables, seed=evidence.config.seed)  # type: ignore[arg-type]
    return found


def regression(evidence: Evidence) -> list[Finding]:
    """Errors on every set, the fit of what was to be forgotten, and two distances to the retrained model's predictions."""
    seed, limits = evidence.config.seed, evidence.config.thresholds
    kept = Threshold(quantity="ratio", relation="<=", bound=limits.error_ratio)

    made = regression_reports(evidence)

    def absolute(table: Predictions) -> Estimate:
        return mae(table, seed=seed)

    def attack(figure: Callable[[LossAttack], Estimate]) -> Callable[[str], Estimate | None]:
        def value(role: str) -> Estimate | None:
            own = made[role].attack if role in made else None
            return None if own is None else figure(own)

        return value

    def fit(table: Predictions) -> Estimate:
        return bootstrap_mean(np.exp(table.own_logp), seed=seed)

    def between(figure: Callable[[Floats, Floats], Floats]) -> Callable[[str], Estimate | None]:
        def value(role: str) -> Estimate | None:
            own, other = evidence.prediction(role, "forget"), evidence.prediction("retrained", "forget")
            if own is None or other is None or role == "retrained":
                return None
            return bootstrap(figure, own.outputs[:, 0], other.outputs[:, 0], seed=seed, resamples=500)

        return value

    def distribution(ours: Floats, theirs: Floats) -> Floats:
        return np.array([wasserstein(a, b) for a, b in zip(ours, theirs, strict=True)])

    def paired(ours: Floats, theirs: Floats) -> Floats:
        return np.asarray(np.abs(ours - theirs).mean(1), dtype=np.float64)

    found = [
        compare(evidence, "regressor/forget_fit", "Fit of the forgotten targets",
                "Mean of exp(-error^2 / 2) on the rows to be forgotten, in the target's units: 1 is exact.",
                "forgetting", "retrained", of(evidence, "forget", fit)),
        compare(evidence, "regressor/fit/holdout", "Fit of unseen rows", "The same on rows that no model has seen.",
                "utility", "higher", of(evidence, "holdout", fit), reason=NEEDS_TEST),
        compare(evidence, "regressor/w1", "Distance of the predictions' distributions",
                "Wasserstein-1 distance between the predictions on the forget set and the retrained model's.",
                "forgetting", "lower", between(distribution), reason=NEEDS_RETRAINED),
        compare(evidence, "regressor/paired", "Distance of the predictions, row by row",
                "Mean distance to the retrained model's prediction of the same row.",
                "forgetting", "lower", between(paired), reason=NEEDS_RETRAINED),
        compare(evidence, "regressor/mia", "Rows that an attack on the error calls members",
                "Share of the forget set that an attack on the absolute error, fitted on retain against test rows, calls "
                "training rows. The retrained model's share is the aim; where the attack's own AUC is near 0.5 it says nothing.",
                "privacy", "retrained", attack(lambda own: own.member), reason=NEEDS_SIDES,
                threshold=Threshold(quantity="gap", relation="<=", bound=limits.accuracy_gap)),
        compare(evidence, "regressor/mia_own_auc", "The error attack's own AUC",
                "How well the attack tells retain rows from test rows that it was not fitted on: 0.5 is a coin.",
                "privacy", "none", attack(lambda own: own.own_auc), reason=NEEDS_SIDES),
    ]  # fmt: skip
    for name in evidence.sets():
        gone = name.startswith("forget")
        found.append(compare(
            evidence, f"regressor/error/{name}", f"Mean absolute error on {name.replace('_', ' ')}",
            f"Mean distance of prediction and target on the set '{name}'.", "forgetting" if gone else "utility",
            "retrained" if gone else "lower", of(evidence, name, absolute), threshold=None if gone else kept,
        ))  # fmt: skip
    return found
