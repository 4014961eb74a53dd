"""RMIA against plain loops over pairs, against what its population may and may not do, and against published slips."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.audit.metrics import rmia
from efface.audit.metrics.roc import auc
from efface.errors import ConfigError, InputError


def world(seed: int = 0, models: int = 7, examples: int = 9) -> tuple[Any, Any, Any]:
    """Log-probabilities of an audited model and of references; every example has 2 or more models on each side."""
    rng = np.random.default_rng(seed)
    keep = np.zeros((models, examples), dtype=bool)
    for example in range(examples):
        keep[rng.permutation(models)[: rng.integers(2, models - 1)], example] = True
    hard = rng.normal(0, 1.5, examples)
    phi = hard + rng.normal(size=(models, examples)) + 1.5 * keep
    return -np.logaddexp(0, -(hard + rng.normal(size=examples))), -np.logaddexp(0, -phi), keep


def slow(logp: Any, references: Any, keep: Any, population: Any, a: float | None, gamma: float) -> list[float]:
    """Every pair, in probabilities, as the paper writes it."""

    def expected(i: int) -> float:
        inside = [math.exp(references[k, i]) for k in range(len(keep)) if keep[k, i]]
        outside = [math.exp(references[k, i]) for k in range(len(keep)) if not keep[k, i]]
        out = sum(outside) / len(outside)
        return ((1 + a) * out + (1 - a)) / 2 if a is not None else (sum(inside) / len(inside) + out) / 2

    found = []
    for x in range(len(logp)):
        wins, pairs = 0, 0
        for z in range(len(logp)):
            if not population[z] or z == x:
                continue
            ratio = (math.exp(logp[x]) / expected(x)) / (math.exp(logp[z]) / expected(z))
            wins += ratio >= gamma
            pairs += 1
        found.append(wins / pairs)
    return found


@pytest.mark.parametrize("a", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_equal_to_loops_over_pairs(a: float | None, gamma: float) -> None:
    for seed in range(4):
        logp, references, keep = world(seed)
        population = np.arange(len(logp)) % 2 == 0
        found = rmia.attack(logp, references, keep, population, a=a, gamma=gamma)
        assert found == pytest.approx(slow(logp, references, keep, population, a, gamma), abs=1e-12)


def test_a_planted_member_scores_above_a_planted_non_member() -> None:
    """One sign convention: larger = member."""
    references = np.log(
        np.array([[0.9, 0.2, 0.5, 0.5], [0.9, 0.2, 0.5, 0.5], [0.9, 0.2, 0.5, 0.5], [0.9, 0.2, 0.5, 0.5]])
    )
    keep = np.array([[True] * 4, [True] * 4, [False] * 4, [False] * 4])
    logp = np.log(np.array([0.9, 0.8, 0.5, 0.5]))  # the second is four times as likely as elsewhere; the first is easy
    for a in (None, 0.3):
        found = rmia.attack(logp, references, keep, np.array([False, False, True, True]), a=a, gamma=1.5)
        assert found[:2].tolist() == [0.0, 1.0]


@given(st.integers(0, 10**6), st.floats(0.1, 4.0))
@settings(deadline=None, max_examples=25)
def test_the_population_makes_ties_but_no_other_order(seed: int, gamma: float) -> None:
    logp, references, keep = world(seed, examples=14)
    ratio = rmia.log_ratio(logp, references, keep)
    found = rmia.score(ratio, ratio[:6], gamma=gamma)
    order = np.argsort(ratio)
    assert (np.diff(found[order]) >= 0).all()


def test_with_as_many_z_as_examples_the_auc_is_that_of_the_ratio() -> None:
    logp, references, keep = world(3, models=9, examples=200)
    ratio = rmia.log_ratio(logp, references, keep, a=0.3)
    member = np.random.default_rng(0).random(200) < 0.5
    dense = np.linspace(ratio.min() - 1, ratio.max() + 1, 20001)  # a population that resolves every difference
    found = rmia.score(ratio, dense)
    assert auc(found[member], found[~member]) == pytest.approx(auc(ratio[member], ratio[~member]), abs=2e-3)


def test_means_run_over_the_models_of_that_side_only() -> None:
    """Published slip: with IN models counted as 0, an example with one OUT model of four would get a quarter of its mean."""
    references = np.log(np.array([[0.8, 0.8], [0.8, 0.8], [0.8, 0.8], [0.8, 0.8]]))
    keep = np.array([[True, False], [True, False], [True, False], [False, False]])
    found = rmia.log_ratio(np.log([0.8, 0.8]), references, keep, a=1.0)
    assert found == pytest.approx([0.0, 0.0], abs=1e-12)


def test_a_population_example_uses_all_of_its_models() -> None:
    """Published slip: for z, which all models are OUT for, the official mean takes the largest half of the models.

    An example and a z about which OUT models say the same have the same ratio; under the slip, z would have a smaller one.
    """
    half = np.log(np.random.default_rng(0).uniform(0.05, 0.95, 4))
    column = np.concatenate([half, half])
    references = np.stack([column, column], axis=1)
    keep = np.array([[k < 4, False] for k in range(8)])  # the example was in four models, z in none
    found = rmia.log_ratio(np.log([0.5, 0.5]), references, keep, a=0.3)
    assert found[0] == pytest.approx(found[1], abs=1e-12)
    assert np.sort(np.exp(column))[-4:].mean() > np.exp(column).mean() + 0.05


def test_an_example_is_not_compared_with_itself() -> None:
    ratio = np.array([0.0, 1.0, 2.0])
    assert rmia.score(ratio, ratio, own=np.arange(3)).tolist() == [0.0, 0.5, 1.0]
    assert rmia.score(ratio, ratio, own=np.full(3, -1)) == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert rmia.score(ratio, ratio, gamma=2.0, own=np.arange(3)).tolist() == [
        0.0,
        0.5,
        1.0,
    ]
    with pytest.raises(InputError, match="whole population"):
        rmia.score(ratio[:1], ratio[:1], own=np.zeros(1, dtype=int))


def test_probabilities_that_round_to_nothing_are_an_order() -> None:
    references = np.array([[-1.0, -2000.0], [-1.0, -2001.0]])
    keep = np.array([[True, True], [False, False]])
    found = rmia.log_ratio(np.array([-np.inf, -1990.0]), references, keep)
    assert found[0] == -np.inf
    assert found[1] == pytest.approx(-1990 + 2000 - math.log((1 + math.exp(-1)) / 2))
    offline = rmia.log_ratio(np.array([-1.0, -1990.0]), np.full((2, 2), -np.inf), keep, a=0.3)
    assert offline == pytest.approx([-1 - math.log(0.35), -1990 - math.log(0.35)])
    with pytest.raises(InputError, match="probability 0"):
        rmia.log_ratio(np.array([-1.0, -1.0]), np.full((2, 2), -np.inf), keep)


def test_a_is_chosen_where_membership_is_known() -> None:
    """References built so that Pr_IN = 0.8 Pr_OUT + 0.2: an a far from 0.8 ranks easy non-members above hard members."""
    rng = np.random.default_rng(1)
    out = rng.uniform(0.05, 0.95, 4000)
    halves = rng.random((4, 4000)) < 0.5
    keep = np.stack([halves, ~halves], axis=1).reshape(8, 4000)  # in pairs that share nothing
    noise = np.exp(rng.normal(0, 0.02, keep.shape))
    chances = np.clip(np.where(keep, 0.8 * out + 0.2, out) * noise, 0, 1)
    chosen = rmia.choose_a(np.log(chances), keep)
    ratios = {a: rmia.log_ratio(np.log(chances[0]), np.log(chances[2:]), keep[2:], a=a) for a in (chosen, 0.0)}
    aucs = {a: auc(ratio[keep[0]], ratio[~keep[0]]) for a, ratio in ratios.items()}
    assert chosen >= 0.5
    assert aucs[chosen] > aucs[0.0] + 0.1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"keep": np.ones((2, 3), dtype=bool)}, "no 'out' model"),
        ({"keep": np.zeros((2, 3), dtype=bool)}, "no 'in' model"),
        ({"keep": np.ones((2, 3))}, "keep matrix of float64"),
        ({"logp": np.array([-1.0, np.nan, -1.0])}, "NaN"),
        ({"logp": np.array([-1.0, 0.5, -1.0])}, "above 0"),
        ({"references": np.zeros((2, 4))}, "references"),
    ],
)
def test_bad_tables_are_refused(change: dict[str, Any], words: str) -> None:
    given = {"logp": np.full(3, -1.0), "references": np.full((2, 3), -1.0), "keep": np.array([[True] * 3, [False] * 3])}
    with pytest.raises(InputError, match=words):
        rmia.log_ratio(**{**given, **change})


def test_bad_settings_are_refused() -> None:
    given = (np.full(3, -1.0), np.full((2, 3), -1.0), np.array([[True] * 3, [False] * 3]))
    with pytest.raises(ConfigError, match="from 0 to 1"):
        rmia.log_ratio(*given, a=1.5)
    with pytest.raises(ConfigError, match="gamma"):
        rmia.score(np.zeros(2), np.zeros(2), gamma=0.0)
    with pytest.raises(InputError, match="population"):
        rmia.attack(*given, np.array([1, 0, 1]))
    with pytest.raises(InputError, match="reference models"):
        rmia.choose_a(given[1], given[2])
