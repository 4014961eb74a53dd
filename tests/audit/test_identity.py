"""NoMUS: the published attack against sklearn's own cross-validation, groups that never straddle, and parts that are shown."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score

from efface.audit.metrics.identity import (
    against,
    badly_trained,
    grouped_attack,
    nomus,
    nomus_of,
    person_folds,
    published_attack,
)
from efface.audit.predictions import Predictions
from efface.errors import InputError


def table(losses: np.ndarray, who: str, each: int = 6, wrong: float = 0.0, classes: int = 4) -> Predictions:
    """Rows whose cross-entropy is `losses`; label 0 or 1, a share of them not the first choice."""
    n = len(losses)
    labels = np.arange(n) % 2
    p = np.exp(-losses)
    outputs = np.full((n, classes), 0.0)
    outputs[:] = np.log(np.maximum((1 - p) / (classes - 1), 1e-300))[:, None]
    outputs[np.arange(n), labels] = -losses
    flip = np.arange(n) < wrong * n
    outputs[flip] = np.roll(outputs[flip], 1, axis=1)
    return Predictions([f"{who}{i}" for i in range(n)], labels.astype(float), outputs, np.ones((n, 3)),
                       [f"{who}{i // each}" for i in range(n)])  # fmt: skip


def losses(n: int, mean: float, seed: int, person: float = 0.0, each: int = 6) -> np.ndarray:
    """Positive losses; those of a person share an offset of standard deviation `person`."""
    rng = np.random.default_rng(seed)
    own = rng.normal(0, person, n // each + 1).repeat(each)[:n]
    return np.abs(rng.normal(mean, 0.3, n) + own)


def test_the_published_attack_is_sklearns_cross_validation() -> None:
    forget, unseen = table(losses(150, 0.4, 0), "f"), table(losses(90, 0.9, 1), "u")
    found = published_attack(forget, unseen)
    order = np.random.default_rng(42).permutation(150)[:90]
    values = np.concatenate([-forget.own_logp[order], -unseen.own_logp])[:, None]
    expected = cross_val_score(
        LogisticRegression(), values, np.repeat([1, 0], 90), scoring="accuracy",
        cv=StratifiedShuffleSplit(n_splits=10, random_state=0),
    ).mean()  # fmt: skip
    assert found.accuracy.value == pytest.approx(expected)
    assert found.accuracy.low is not None
    assert found.accuracy.high is not None
    assert found.accuracy.low < expected < found.accuracy.high
    assert found.rows == (90, 90)
    assert found.signed == pytest.approx(expected - 0.5)


def test_a_grouped_attack_never_has_a_person_on_both_sides() -> None:
    rng = np.random.default_rng(0)
    inside = [f"a{int(i)}" for i in rng.integers(0, 13, 100)]
    outside = [f"b{int(i)}" for i in rng.integers(0, 7, 61)]
    who = np.asarray(inside + outside)
    folds = person_folds(inside, outside)
    assert len(folds) == 5
    for train, held in folds:
        assert not set(who[train]) & set(who[held]), "a person stands on both sides"
        assert sorted([*train, *held]) == list(range(161))
        assert {name[0] for name in who[held]} == {"a", "b"}
    assert sorted(np.concatenate([held for _, held in folds])) == list(range(161)), "each row is tested once"
    assert len(person_folds(["a", "b", "c"], ["d", "d", "e"])) == 2
    with pytest.raises(InputError, match="1 person on a side"):
        person_folds(["a", "a"], ["b", "c"])


def test_grouped_attack_by_a_loop() -> None:
    forget, unseen = table(losses(60, 0.4, 0), "f"), table(losses(90, 0.8, 1), "u")
    x = np.concatenate([-forget.own_logp, -unseen.own_logp])
    y = np.repeat([1, 0], [60, 90])
    right = np.zeros(150)
    for train, held in person_folds(forget.identities, unseen.identities):
        z = (x - x[train].mean()) / x[train].std()
        fitted = LogisticRegression(class_weight="balanced").fit(z[train, None], y[train])
        right[held] = fitted.predict(z[held, None]) == y[held]
    expected = (right[y == 1].mean() + right[y == 0].mean()) / 2
    assert grouped_attack(forget, unseen).accuracy.value == pytest.approx(expected)


def test_rows_split_at_random_leak_persons() -> None:
    """Persons with losses of their own and no membership at all: two persons a side, far apart."""
    values = np.concatenate([losses(30, 0.5, 0), losses(30, 2.5, 1)])
    forget = table(values, "f", each=30)
    unseen = table(np.concatenate([losses(30, 3.5, 2), losses(30, 4.5, 3)]), "u", each=30)
    rows, persons = published_attack(forget, unseen), grouped_attack(forget, unseen)
    assert rows.accuracy.value > persons.accuracy.value
    assert persons.accuracy.high is not None
    assert rows.accuracy.low is not None
    assert persons.persons == (2, 2)


def test_intervals_resample_persons() -> None:
    """Twenty rows a person that agree: by rows the interval would be far too narrow."""
    forget, unseen = (table(losses(120, 0.8, s, person=0.6, each=20), w, each=20) for s, w in ((0, "f"), (1, "u")))
    whose = grouped_attack(forget, unseen).accuracy
    rows = [Predictions(t.ids, t.targets, t.outputs, t.features, t.ids) for t in (forget, unseen)]
    alone = grouped_attack(*rows).accuracy
    assert whose.low is not None
    assert whose.high is not None
    assert alone.low is not None
    assert alone.high is not None
    assert whose.high - whose.low > 1.5 * (alone.high - alone.low)


def test_a_streisand_effect_is_seen_by_its_sign() -> None:
    """The regression learns either direction: a is above 1/2 both for remembered rows and for rows driven away."""
    low, high = table(losses(60, 0.3, 0), "f"), table(losses(60, 1.5, 1), "u")
    remembered = published_attack(low, high)
    away = published_attack(table(losses(60, 1.5, 2), "f"), table(losses(60, 0.3, 3), "u"))
    assert remembered.signed > 0.3
    assert away.signed > 0.3
    assert remembered.auc > 0.9
    assert away.auc < 0.1


def test_tiny_losses_hide_from_the_published_attack_and_not_from_the_standardised_one() -> None:
    forget, unseen = table(losses(60, 1e-4, 0) * 1e-3, "f"), table(losses(60, 1.5, 1) * 1e-3, "u")
    assert grouped_attack(forget, unseen).accuracy.value > published_attack(forget, unseen).accuracy.value + 0.05


def test_the_score_and_its_parts() -> None:
    assert nomus_of(0.7, 0.5) == pytest.approx(0.85)
    assert nomus_of(0.7, 0.8) == pytest.approx(nomus_of(0.7, 0.2)) == pytest.approx(0.55)
    assert nomus_of(0.7, 0.8, weight=0.25) == pytest.approx(0.25 * 0.7 + 0.75 * 0.4)
    with pytest.raises(InputError, match=r"accuracy 1\.2"):
        nomus_of(1.2, 0.5)
    test, forget = table(losses(120, 0.3, 4), "t", wrong=0.3), table(losses(60, 0.3, 0), "f")
    unseen = table(losses(60, 0.9, 1), "u")
    found = nomus(test, forget, unseen)
    assert found.value.value == pytest.approx(nomus_of(found.task.value, found.attack.accuracy.value))
    assert found.value.value == pytest.approx(sum(found.parts.values()))
    assert found.value.low is not None
    assert found.value.high is not None
    assert found.value.low < found.value.value < found.value.high
    assert found.task.value == pytest.approx(test.correct.mean())
    assert found.grouped is not None


def test_a_useless_model_scores_about_half_and_its_parts_say_so() -> None:
    rng = np.random.default_rng(0)

    def guesses(n: int, who: str) -> Predictions:
        return Predictions([f"{who}{i}" for i in range(n)], rng.integers(0, 2, n).astype(float), rng.normal(0, 1, (n, 2)),
                           np.ones((n, 3)), [f"{who}{i // 6}" for i in range(n)])  # fmt: skip

    found = nomus(guesses(600, "t"), guesses(120, "f"), guesses(120, "u"))
    assert found.value.value > 0.6, "a high score"
    assert found.parts["forgetting"] > 0.4
    assert found.parts["task"] < 0.3
    assert found.useless
    good = nomus(table(losses(120, 0.3, 4), "t"), table(losses(60, 0.5, 0), "f"), table(losses(60, 0.5, 1), "u"))
    assert not good.useless


def test_against_the_retrained_model_and_its_training() -> None:
    test = table(losses(120, 0.3, 4), "t")
    own = nomus(test, table(losses(60, 0.2, 0), "f"), table(losses(60, 0.9, 1), "u"))
    other = nomus(test, table(losses(60, 0.8, 2), "f"), table(losses(60, 0.9, 3), "u"))
    beside = against(own, other)
    assert beside.gap == pytest.approx(own.value.value - other.value.value)
    assert beside.attack == pytest.approx(own.attack.accuracy.value - other.attack.accuracy.value)
    assert beside.task == 0
    assert beside.attack_grouped is not None
    assert badly_trained(test, test) == ""
    assert "not trained to its end" in badly_trained(test, table(losses(120, 0.3, 4), "t", wrong=0.2))


def test_what_is_refused() -> None:
    forget, unseen = table(losses(60, 0.4, 0), "f"), table(losses(60, 0.8, 1), "u")
    with pytest.raises(InputError, match="identity 'f0' is forgotten and unseen"):
        published_attack(forget, forget)
    with pytest.raises(InputError, match="6 forgotten and 60 unseen rows"):
        grouped_attack(forget.part(range(6)), unseen)
    bare = Predictions(forget.ids, forget.targets, forget.outputs, forget.features)
    with pytest.raises(InputError, match="do not say whose rows"):
        grouped_attack(bare, unseen)
    assert nomus(forget, bare, unseen).grouped is None
    number = Predictions(["a"], np.zeros(1), np.zeros((1, 1)), np.zeros((1, 2)), task="regression")
    with pytest.raises(InputError, match="regressor"):
        nomus(number, forget, unseen)
