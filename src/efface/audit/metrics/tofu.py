"""TOFU's two scores, forget quality and model utility, and their parts (arXiv 2401.06121).

R = P(wrong answer) / P(right answer), both per token: a model that knows the answer has R < 1. Forget quality
is the p-value of a two-sample Kolmogorov-Smirnov test between R of the unlearned and of the retrained model;
model utility is the harmonic mean of probability, ROUGE-L recall and truth ratio over the retained sets.

The geometric mean over wrong answers is the default, as in the official leaderboard script and
open-unlearning; the paper prints the arithmetic one. Departures: everything stays in log space
(open-unlearning adds 1e-10 to denominators), log10 p does not underflow, and rows carry their ids.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from efface.audit.finding import Estimate
from efface.audit.metrics.intervals import RESAMPLES, bootstrap, bootstrap_mean
from efface.audit.metrics.ks import Method, ks_two_sample
from efface.audit.table import ScoreTable, TokenScores
from efface.errors import InputError, RunError

Floats = npt.NDArray[np.float64]
Mean = Literal["geometric", "arithmetic"]
PARTS = ("probability", "rouge", "truth_ratio")


@dataclass(frozen=True)
class TruthRatio:
    """log R [N] of the questions `ids`."""

    ids: tuple[str, ...]
    log_ratio: Floats
    mean: Mean = "geometric"


@dataclass(frozen=True)
class ForgetQuality:
    """The KS test between two models' truth ratios on the same questions.

    `p` depends on n: never compare it across splits. A small p says "distinguishable", not "remembered": a
    median ratio far above the retrained model's is over-unlearning.
    """

    p: float
    log10_p: float
    statistic: float
    n_unlearned: int
    n_retrained: int
    median_unlearned: Estimate
    median_retrained: Estimate
    method: Method


@dataclass(frozen=True)
class UtilityRows:
    """One set's rows [N] behind its three parts of model utility, each in [0, 1]; None where not measurable.

    A set without perturbed answers has no truth ratio, one that was not generated from no ROUGE. Model utility is
    then the harmonic mean of fewer parts, and is to be compared only with a model that has the same parts.
    """

    probability: Floats
    rouge: Floats | None
    truth_ratio: Floats | None


@dataclass(frozen=True)
class ModelUtility:
    """The harmonic mean and its parts, named `set/part`."""

    value: Estimate
    parts: dict[str, Estimate]


def probability(mean_logp: npt.ArrayLike) -> Floats:
    """[N] length-normalised probability exp(mean log-probability per token)."""
    result: Floats = np.exp(np.asarray(mean_logp, dtype=np.float64))
    return result


def probability_with_options(correct: npt.ArrayLike, wrong: Sequence[npt.ArrayLike]) -> Floats:
    """[N] P / (P + sum of P over the wrong answers), from mean log-probabilities [N] and N lists [K_i].

    Raises:
        InputError: a question without wrong answers, or a value that is not finite.
    """
    right, options = _checked(correct, wrong)
    total = np.array([special.logsumexp(row) for row in options])
    result: Floats = special.expit(right - total)
    return result


def log_truth_ratio(correct: npt.ArrayLike, wrong: Sequence[npt.ArrayLike], *, mean: Mean = "geometric") -> Floats:
    """[N] log R = log mean P(wrong) - log P(correct), from mean log-probabilities [N] and N lists [K_i].

    Raises:
        InputError: a question without wrong answers, or a value that is not finite.
    """
    right, options = _checked(correct, wrong)
    if mean == "geometric":
        above = np.array([row.mean() for row in options])
    else:
        above = np.array([special.logsumexp(row) - math.log(len(row)) for row in options])
    return above - right


def truth_ratio(table: ScoreTable, *, mean: Mean = "geometric") -> TruthRatio:
    """The truth ratio of every question of a score table.

    The right answer is `paraphrased_answer` where the table has that form, else `answer`; several
    paraphrases of one question are averaged in log space.

    Raises:
        RunError: a form is missing from the table, or a question has no perturbed answer.
    """
    form = "paraphrased_answer" if "paraphrased_answer" in table.forms() else "answer"
    ids, correct, wrong = _answers(table, form)
    return TruthRatio(tuple(ids), log_truth_ratio(correct, wrong, mean=mean), mean)


def closer_to_one_rows(log_ratio: Floats) -> Floats:
    """[N] min(R, 1/R): 1 when right and wrong answers are equally likely (the forget set's aggregation)."""
    result: Floats = np.exp(-np.abs(log_ratio))
    return result


def true_better_rows(log_ratio: Floats) -> Floats:
    """[N] max(0, 1 - R): 1 when the wrong answers are far less likely (the other sets' aggregation)."""
    result: Floats = -np.expm1(np.minimum(log_ratio, 0.0)) + 0.0  # + 0.0: no negative zero
    return result


def closer_to_one(log_ratio: Floats, *, seed: int = 0) -> Estimate:
    """Mean of min(R, 1/R) with its bootstrap interval."""
    return bootstrap_mean(closer_to_one_rows(log_ratio), seed=seed)


def true_better(log_ratio: Floats, *, seed: int = 0) -> Estimate:
    """Mean of max(0, 1 - R) with its bootstrap interval."""
    return bootstrap_mean(true_better_rows(log_ratio), seed=seed)


def forget_quality(unlearned: TruthRatio, retrained: TruthRatio, *, seed: int = 0) -> ForgetQuality:
    """Compare the truth ratios of an unlearned and a retrained model on one forget set.

    Raises:
        RunError: other questions (a 300-row against a 400-row run) or another mean over the wrong answers.
    """
    if unlearned.mean != retrained.mean:
        means = f"truth ratios with {unlearned.mean} and {retrained.mean} mean"
        raise RunError(means, "the same mean for both models")
    if len(unlearned.ids) != len(retrained.ids) or set(unlearned.ids) != set(retrained.ids):
        stray = sorted(set(unlearned.ids) ^ set(retrained.ids))
        raise RunError(
            f"{len(unlearned.ids)} questions of the unlearned and {len(retrained.ids)} of the retrained model"
            + (f", '{stray[0]}' in one only" if stray else ""),
            "the same forget set for both",
            "audit both models on the same rows",
        )
    ours, theirs = unlearned.log_ratio, retrained.log_ratio
    test = ks_two_sample(ours, theirs)
    return ForgetQuality(
        p=test.p,
        log10_p=test.log10_p,
        statistic=test.statistic,
        n_unlearned=test.n,
        n_retrained=test.m,
        median_unlearned=bootstrap(_median_ratio, ours, seed=seed),
        median_retrained=bootstrap(_median_ratio, theirs, seed=seed),
        method=test.method,
    )


def utility_rows(table: ScoreTable, *, options: bool) -> UtilityRows:
    """One set's rows of model utility, in the order of the table's `answer` form.

    Args:
        table: with form `answer`; `perturbed_answer` gives the truth ratio, a generation pass ROUGE.
        options: weigh the answer against the wrong ones (real authors, world facts), else its bare probability.

    Raises:
        RunError: `options` without perturbed answers, or an id that lacks a form or a generation.
    """
    wrong = "perturbed_answer" in table.forms()
    if wrong or options:
        ids, correct, others = _answers(table, "answer")
        values = probability_with_options(correct, others) if options else probability(correct)
    else:
        scores = table.select("answer")
        ids, values = scores.ids, probability(scores.mean_logp)
    recall = ratios = None
    if table.generations is not None:
        by_id = dict(zip(table.generated("id"), table.generated("rougeL_recall"), strict=True))
        recall = _in_order(ids, by_id, "generation")
    if wrong:
        ratio = truth_ratio(table)
        by_id = dict(zip(ratio.ids, true_better_rows(ratio.log_ratio), strict=True))
        ratios = _in_order(ids, by_id, "paraphrased answer")
    return UtilityRows(probability=values, rouge=recall, truth_ratio=ratios)


def _in_order(ids: list[str], by_id: Mapping[str, float], what: str) -> Floats:
    missing = next((identity for identity in ids if identity not in by_id), None)
    if missing is not None:
        raise RunError(f"id '{missing}' has no {what}", "one for every answer", "audit again")
    return np.array([by_id[identity] for identity in ids], dtype=np.float64)


def model_utility(sets: Mapping[str, UtilityRows], *, seed: int = 0, resamples: int = RESAMPLES) -> ModelUtility:
    """Harmonic mean of every set's parts (three where all could be measured); 0 as soon as one part is 0.

    The interval resamples each set on its own, a row's three values together. The official sets are retain,
    real authors and world facts.

    Raises:
        InputError: no set, an empty one, parts of different lengths, or a negative value.
    """
    if not sets:
        raise InputError("no sets for model utility", "retain, real authors and world facts")
    samples, parts = [], {}
    for name, rows in sets.items():
        present = [part for part in PARTS if getattr(rows, part) is not None]
        columns = [np.asarray(getattr(rows, part), dtype=np.float64) for part in present]
        lengths = [len(column) for column in columns]
        if len(set(lengths)) != 1:
            raise InputError(f"set '{name}' has parts of {lengths} rows", "equal lengths")
        for part, column in zip(present, columns, strict=True):
            if (column < 0).any():
                raise InputError(f"a negative {part} in set '{name}'", "values in [0, 1]")
            parts[f"{name}/{part}"] = bootstrap_mean(column, seed=seed, resamples=resamples)
        samples.append(np.stack(columns, axis=1))
    return ModelUtility(bootstrap(_harmonic, *samples, seed=seed, resamples=resamples), parts)


def _harmonic(*samples: Floats) -> Floats:
    """Samples [B, n_i, parts] -> [B]."""
    means = np.concatenate([sample.mean(axis=1) for sample in samples], axis=1)
    safe = np.where(means > 0, means, 1.0)
    return np.where((means > 0).all(axis=1), means.shape[1] / (1.0 / safe).sum(axis=1), 0.0)


def _median_ratio(log_ratio: Floats) -> Floats:
    result: Floats = np.exp(np.median(log_ratio, axis=1))
    return result


def _checked(correct: npt.ArrayLike, wrong: Sequence[npt.ArrayLike]) -> tuple[Floats, list[Floats]]:
    right = np.asarray(correct, dtype=np.float64)
    options = [np.asarray(row, dtype=np.float64) for row in wrong]
    if len(right) != len(options):
        given = f"{len(right)} answers and wrong answers to {len(options)} questions"
        raise InputError(given, "one list of wrong answers for every answer")
    for row, (value, others) in enumerate(zip(right, options, strict=True)):
        if not len(others):
            raise InputError(f"question {row} has no wrong answer", "one or more")
        if not (np.isfinite(value) and np.isfinite(others).all()):
            raise InputError(f"question {row} has a log-probability that is not finite", "finite numbers")
    return right, options


def _by_id(scores: TokenScores) -> dict[str, list[float]]:
    rows: dict[str, list[float]] = {}
    for identity, value in zip(scores.ids, scores.mean_logp, strict=True):
        rows.setdefault(identity, []).append(float(value))
    return rows


def _answers(table: ScoreTable, form: str) -> tuple[list[str], Floats, list[list[float]]]:
    """Ids, the mean log-probability of the right answer [N] and those of the wrong ones, by id."""
    correct, wrong = _by_id(table.select(form)), _by_id(table.select("perturbed_answer"))
    for identity, values in correct.items():
        if form == "answer" and len(values) > 1:
            raise RunError(f"id '{identity}' stands in the table {len(values)} times", "unique ids")
        if identity not in wrong:
            raise RunError(
                f"id '{identity}' has no perturbed answer",
                "one or more wrong answers to every question",
                "add a perturbed_answer column or drop the row",
            )
    return list(correct), np.array([np.mean(row) for row in correct.values()]), [wrong[i] for i in correct]
