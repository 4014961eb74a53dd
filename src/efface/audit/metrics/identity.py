"""NoMUS: how well a model forgot persons and kept its task, in one number that is never shown without its parts.

Choi and Na, Towards machine unlearning benchmarks, arXiv 2311.02240 (2023), section 4. With acc the accuracy on test persons and
a the accuracy of a logistic regression that tells forgotten from unseen persons' rows by their loss l_i = -log p(y_i | x_i),

    NoMUS = w acc + (1 - w) (1 - 2 |a - 1/2|),   w = 1/2, in [0, 1]

Published attack: the larger side is shuffled (seed 42) and cut to the smaller; ten stratified shuffle splits, 10 % tested each
(random state 0). Departures, each beside the published figure and not in its place:

- `grouped_attack`: rows of one person never stand on both sides of a split (GroupKFold by person within each side), losses are
  standardised, sides weigh alike. Losses of a person are alike, so that row splits leak; and on plain losses below 0.01 the
  regression's own penalty hides what there is to see.
- a is also given signed, a - 1/2, and with it `auc`, the chance that a forgotten row has a lower loss than an unseen one. Only
  that tells a remembered row from a Streisand effect: the regression learns either direction, so a > 1/2 for both.
- Intervals resample persons, not rows, with the fitted attacks held.
- A model that learnt nothing scores about 0.5 by its forgetting half alone; retraining need not score highest. So the halves,
  the commonest label's share and the distance to the retrained model (`against`) belong to every report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, StratifiedShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from efface.audit.finding import Estimate
from efface.audit.metrics.intervals import Statistic, bootstrap
from efface.audit.metrics.roc import auc
from efface.audit.predictions import Predictions
from efface.errors import InputError

Floats = npt.NDArray[np.float64]

SPLITS, TESTED, SPLIT_SEED, CUT_SEED = 10, 0.1, 0, 42
"""Of the published attack: splits, share that is tested, seed of the splits, seed of the cut."""

FOLDS = 5
LEAST = 10
"""Rows on each side below which no attack is fitted: 10 % of twice as many must hold one of each side."""


@dataclass(frozen=True)
class Attack:
    """A loss attack on forgotten against unseen persons.

    Attributes:
        accuracy: a, with its interval over persons; 0.5 is ideal.
        auc: chance that a forgotten row's loss is below an unseen row's: above 0.5 remembered, below it driven away.
        rows: forgotten and unseen rows that were used.
        persons: forgotten and unseen persons; rows where the sets do not say.
    """

    accuracy: Estimate
    auc: float
    rows: tuple[int, int]
    persons: tuple[int, int]

    @property
    def signed(self) -> float:
        """a - 1/2."""
        return self.accuracy.value - 0.5

    @property
    def forgetting(self) -> float:
        """1 - 2 |a - 1/2|: 1 where the attack is a coin."""
        return 1 - 2 * abs(self.signed)


@dataclass(frozen=True)
class NoMUS:
    """The score with its parts.

    Attributes:
        value: NoMUS by the published attack, with its interval over persons.
        task: accuracy on the test set, interval over persons.
        attack: as published.
        grouped: by person; None where the sets do not say whose rows they are.
        commonest: share of the commonest label in the test set: what a model that knows nothing can reach.
        weight: w.
    """

    value: Estimate
    task: Estimate
    attack: Attack
    grouped: Attack | None
    commonest: float
    weight: float = 0.5

    @property
    def parts(self) -> dict[str, float]:
        """What the value is the sum of: w acc and (1 - w)(1 - 2 |a - 1/2|)."""
        return {"task": self.weight * self.task.value, "forgetting": (1 - self.weight) * self.attack.forgetting}

    @property
    def useless(self) -> bool:
        """Whether the task's interval reaches down to the commonest label's share: the score is its forgetting half."""
        low = self.task.value if self.task.low is None else self.task.low
        return low <= self.commonest


@dataclass(frozen=True)
class AgainstRetrained:
    """A model beside the retrained one.

    Attributes:
        gap: NoMUS minus the retrained model's.
        task: the same of the accuracy on the test set.
        attack: the same of a: the retrained model's a is the zero point, forgotten and unseen persons being other people.
        attack_grouped: the same of a by person; None where either lacks it.
    """

    gap: float
    task: float
    attack: float
    attack_grouped: float | None


def nomus_of(accuracy: float, a: float, weight: float = 0.5) -> float:
    """w acc + (1 - w)(1 - 2 |a - 1/2|).

    Raises:
        InputError: a share outside [0, 1].
    """
    for name, share in (("accuracy", accuracy), ("a", a), ("weight", weight)):
        if not 0 <= share <= 1:
            raise InputError(f"{name} {share}", "a share between 0 and 1")
    return weight * accuracy + (1 - weight) * (1 - 2 * abs(a - 0.5))


def published_attack(forget: Predictions, unseen: Predictions, *, seed: int = 0) -> Attack:
    """The attack as published, on rows.

    Args:
        forget: rows to forget, under the model that is judged.
        unseen: rows of persons that it was never trained on.
        seed: of the bootstrap.

    Raises:
        InputError: fewer than ten rows on a side, or a person on both sides.
    """
    forget, unseen, calls = _published_calls(forget, unseen)
    return _attack(forget, unseen, calls, _pooled, seed)


def grouped_attack(forget: Predictions, unseen: Predictions, *, folds: int = FOLDS, seed: int = 0) -> Attack:
    """The attack by person: each fold leaves out some persons of either side; a is the mean of both sides' shares.

    Args:
        folds: at most the number of persons of the smaller side.
        seed: of the bootstrap.

    Raises:
        InputError: no identities, fewer than two persons or ten rows on a side, or a person on both sides.
    """
    calls = _grouped_calls(forget, unseen, folds)
    return _attack(forget, unseen, calls, _balanced, seed)


def _attack(
    forget: Predictions, unseen: Predictions, calls: tuple[Floats, Floats], share: Statistic, seed: int
) -> Attack:  # fmt: skip
    people = (_by_person(calls[0], forget.identities), _by_person(calls[1], unseen.identities))
    return Attack(
        bootstrap(share, *people, seed=seed), auc(forget.own_logp, unseen.own_logp), (len(forget), len(unseen)),
        (len(people[0]), len(people[1])),
    )  # fmt: skip


def person_folds(
    identities: Sequence[str], others: Sequence[str], folds: int = FOLDS
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Train and test rows of each fold: first the rows of `identities`, then those of `others`.

    A person's rows are all in the train part or all in the test part, and each fold tests persons of both sides.
    """
    sides = (np.asarray(identities), np.asarray(others))
    fewest = min(len(set(side.tolist())) for side in sides)
    if fewest < 2:
        raise InputError(f"{fewest} person on a side", "two or more", "use the attack on rows, or more persons")
    parts = [
        GroupKFold(n_splits=min(folds, fewest)).split(np.zeros((len(side), 1)), groups=side) for side in sides
    ]  # fmt: skip
    return [
        (np.concatenate([a, b + len(sides[0])]), np.concatenate([held, other + len(sides[0])]))
        for (a, held), (b, other) in zip(*parts, strict=True)
    ]


def nomus(
    test: Predictions, forget: Predictions, unseen: Predictions, *, weight: float = 0.5, seed: int = 0
) -> NoMUS:  # fmt: skip
    """The score of one model from its tables on three sets of disjoint persons.

    Args:
        test: rows on which the task is judged.
        weight: w.
        seed: of the bootstrap.

    Raises:
        InputError: a regressor's tables, an empty test set, or what the attacks refuse.
    """
    if test.task != "classification":
        raise InputError("the tables of a regressor", "those of a classifier: NoMUS needs an accuracy")
    cut, outside, calls = _published_calls(forget, unseen)
    right = np.stack([test.correct, np.ones(len(test))], axis=1)
    judged = _by_person(right, test.identities)

    def statistic(task: Floats, inside: Floats, out: Floats) -> Floats:
        found: Floats = weight * _share(task) + (1 - weight) * (1 - 2 * np.abs(_pooled(inside, out) - 0.5))
        return found

    sides = (_by_person(calls[0], cut.identities), _by_person(calls[1], outside.identities))
    known = bool(forget.identities and unseen.identities)
    counts = np.bincount(test.labels)
    return NoMUS(
        value=bootstrap(statistic, judged, *sides, seed=seed), task=bootstrap(_share, judged, seed=seed),
        attack=_attack(cut, outside, calls, _pooled, seed),
        grouped=grouped_attack(forget, unseen, seed=seed) if known else None, commonest=float(counts.max() / len(test)),
        weight=weight,
    )  # fmt: skip


def against(own: NoMUS, retrained: NoMUS) -> AgainstRetrained:
    """The distances to the retrained model that stand beside every NoMUS."""
    grouped = None
    if own.grouped is not None and retrained.grouped is not None:
        grouped = own.grouped.signed - retrained.grouped.signed
    return AgainstRetrained(
        gap=own.value.value - retrained.value.value, task=own.task.value - retrained.task.value,
        attack=own.attack.signed - retrained.attack.signed, attack_grouped=grouped,
    )  # fmt: skip


def badly_trained(original: Predictions, retrained: Predictions, *, tolerance: float = 0.02) -> str:
    """Why the retrained model is no reference, or nothing: it fits the retain set worse than the original does.

    On MUCAC "smiling" a badly trained retrained model (accuracy 0.652 against 0.947) scores below the original.

    Args:
        original, retrained: tables of both on the retain set.
        tolerance: difference in accuracy that is let pass.
    """
    first, second = float(original.correct.mean()), float(retrained.correct.mean())
    if second >= first - tolerance:
        return ""
    return f"the retrained model fits {second:.1%} of the retain set, the original {first:.1%}: it is not trained to its end"


# -- calls: [N, 2] how often each row was called right, and how often it was tested -----------------------------------


def _published_calls(
    forget: Predictions, unseen: Predictions
) -> tuple[Predictions, Predictions, tuple[Floats, Floats]]:  # fmt: skip
    """Both sides after the cut, and the calls on them."""
    _refuse(forget, unseen)
    n = min(len(forget), len(unseen))
    rng = np.random.default_rng(CUT_SEED)
    forget, unseen = (
        side.part(rng.permutation(len(side))[:n]) if len(side) > n else side for side in (forget, unseen)
    )  # fmt: skip
    loss = -np.concatenate([forget.own_logp, unseen.own_logp])[:, None]
    member = np.repeat([1, 0], n)
    calls = np.zeros((2 * n, 2))
    for train, held in StratifiedShuffleSplit(SPLITS, test_size=TESTED, random_state=SPLIT_SEED).split(loss, member):
        said = LogisticRegression().fit(loss[train], member[train]).predict(loss[held])
        calls[held] += np.stack([said == member[held], np.ones(len(held))], axis=1)
    return forget, unseen, (calls[:n], calls[n:])


def _grouped_calls(forget: Predictions, unseen: Predictions, folds: int) -> tuple[Floats, Floats]:
    _refuse(forget, unseen)
    if not forget.identities or not unseen.identities:
        raise InputError("sets that do not say whose rows they are", "identities on both sides", "use published_attack")
    loss = -np.concatenate([forget.own_logp, unseen.own_logp])[:, None]
    member = np.repeat([1, 0], [len(forget), len(unseen)])
    calls = np.zeros((len(loss), 2))
    for train, held in person_folds(forget.identities, unseen.identities, folds):
        attack = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
        said = attack.fit(loss[train], member[train]).predict(loss[held])
        calls[held] += np.stack([said == member[held], np.ones(len(held))], axis=1)
    return calls[: len(forget)], calls[len(forget) :]


def _refuse(forget: Predictions, unseen: Predictions) -> None:
    both = sorted(set(forget.identities) & set(unseen.identities))
    if both:
        raise InputError(f"identity '{both[0]}' is forgotten and unseen", "persons on one side", "cut on identities")
    if min(len(forget), len(unseen)) < LEAST:
        raise InputError(
            f"{len(forget)} forgotten and {len(unseen)} unseen rows", f"{LEAST} or more of each", "give more rows"
        )


def _by_person(calls: Floats, identities: Sequence[str]) -> Floats:
    """[P, 2] sums of [N, 2] over the rows of each person; of a row each where nobody is named."""
    if not identities:
        return calls
    _, index = np.unique(np.asarray(identities), return_inverse=True)
    found = np.zeros((index.max() + 1, 2))
    np.add.at(found, index, calls)
    return found


def _share(people: Floats) -> Floats:
    """[B, P, 2] -> [B] right calls over tested rows."""
    right, tested = people.sum(1).T
    return np.asarray(right / tested, dtype=np.float64)


def _pooled(inside: Floats, outside: Floats) -> Floats:
    """Both sides' calls together: the mean over splits of equal size."""
    return _share(np.concatenate([inside, outside], axis=1))


def _balanced(inside: Floats, outside: Floats) -> Floats:
    """The mean of both sides' shares."""
    return np.asarray((_share(inside) + _share(outside)) / 2, dtype=np.float64)


__all__ = [
    "AgainstRetrained", "Attack", "NoMUS", "against", "badly_trained", "grouped_attack", "nomus", "nomus_of", "person_folds",
    "published_attack",
]  # fmt: skip
