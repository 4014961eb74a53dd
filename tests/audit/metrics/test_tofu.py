"""TOFU's metrics against loops, a hand-computed table, and the direction of every ratio."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from efface.audit.metrics import tofu
from efface.audit.table import ScoreTable, build_generations, build_scores
from efface.errors import InputError, RunError


def row(identity: str, form: str, logp: list[float], variant: int = 0) -> dict[str, Any]:
    zeros = [0.0] * len(logp)
    return {
        "id": identity, "form": form, "variant": variant, "n_bytes": 1, "zlib_bytes": 1,
        "logp": logp, "rank": [0] * len(logp), "mean": zeros, "var": zeros,
    }  # fmt: skip


def two_questions() -> list[dict[str, Any]]:
    """P(answer) = 1/2 and 1/4, P(paraphrase) = 1/4 and 1/8, P(wrong) = {1/16, 1/4} and {1/2, 1/2}."""
    log2 = math.log(2)
    rows = []
    for identity, answer, paraphrase, wrong in (("q1", 1, 2, (4, 2)), ("q2", 2, 3, (1, 1))):
        rows.append(row(identity, "answer", [-0.5 * answer * log2, -1.5 * answer * log2]))
        rows.append(row(identity, "paraphrased_answer", [-paraphrase * log2]))
        rows += [row(identity, "perturbed_answer", [-w * log2] * 3, i) for i, w in enumerate(wrong)]
    return rows


def generations(recalls: dict[str, float]) -> Any:
    blank = {"n_tokens": 1, "stopped": True, "rouge1_recall": 0.0, "rougeL_f1": 0.0, "exact": False,
             "distinct": 1.0, "text": None}  # fmt: skip
    return build_generations([{**blank, "id": i, "rougeL_recall": value} for i, value in recalls.items()])


def test_the_truth_ratio_of_two_questions_by_hand() -> None:
    table = ScoreTable(build_scores(two_questions()), None)
    geometric, arithmetic = tofu.truth_ratio(table), tofu.truth_ratio(table, mean="arithmetic")
    assert geometric.ids == ("q1", "q2")
    assert np.exp(geometric.log_ratio) == pytest.approx([(1 / 8) / (1 / 4), (1 / 2) / (1 / 8)], abs=1e-6)
    assert np.exp(arithmetic.log_ratio) == pytest.approx([(5 / 32) / (1 / 4), 4.0], abs=1e-6)
    assert tofu.closer_to_one(geometric.log_ratio).value == pytest.approx((1 / 2 + 1 / 4) / 2, abs=1e-6)
    assert tofu.true_better(geometric.log_ratio).value == pytest.approx((1 / 2 + 0) / 2, abs=1e-6)


def test_without_a_paraphrase_the_answer_itself_is_used() -> None:
    rows = [r for r in two_questions() if r["form"] != "paraphrased_answer"]
    ratio = tofu.truth_ratio(ScoreTable(build_scores(rows), None))
    assert np.exp(ratio.log_ratio) == pytest.approx([(1 / 8) / (1 / 2), (1 / 2) / (1 / 4)], abs=1e-6)


def test_a_model_that_knows_the_answer_has_a_ratio_below_one() -> None:
    assert tofu.log_truth_ratio([-0.1], [[-3.0, -4.0]])[0] < 0
    assert tofu.true_better_rows(tofu.log_truth_ratio([-0.1], [[-3.0]]))[0] > 0.9


def test_a_missing_perturbed_answer_names_the_id() -> None:
    rows = [r for r in two_questions() if (r["id"], r["form"]) != ("q2", "perturbed_answer")]
    with pytest.raises(RunError, match="q2"):
        tofu.truth_ratio(ScoreTable(build_scores(rows), None))
    rows = [r for r in rows if r["form"] != "perturbed_answer"]
    with pytest.raises(RunError, match="perturbed_answer"):
        tofu.truth_ratio(ScoreTable(build_scores(rows), None))


def test_several_paraphrases_are_averaged_and_double_ids_refused() -> None:
    rows = [row("q", "paraphrased_answer", [-1.0]), row("q", "paraphrased_answer", [-3.0], 1),
            row("q", "perturbed_answer", [-2.5])]  # fmt: skip
    assert tofu.truth_ratio(ScoreTable(build_scores(rows), None)).log_ratio == pytest.approx([-0.5])
    double = [row("q", "answer", [-1.0]), row("q", "answer", [-3.0]), row("q", "perturbed_answer", [-2.5])]
    with pytest.raises(RunError, match="2 times"):
        tofu.truth_ratio(ScoreTable(build_scores(double), None))


questions = st.lists(
    st.tuples(st.floats(-20, 0), st.lists(st.floats(-20, 0), min_size=1, max_size=5)), min_size=1, max_size=6
)


@given(questions)
@settings(deadline=None)
def test_ratios_and_probabilities_equal_loops(data: list[tuple[float, list[float]]]) -> None:
    correct, wrong = [c for c, _ in data], [w for _, w in data]
    geometric, arithmetic, options = [], [], []
    for c, others in data:
        geometric.append(math.prod(math.exp(w) for w in others) ** (1 / len(others)) / math.exp(c))
        arithmetic.append(sum(math.exp(w) for w in others) / len(others) / math.exp(c))
        options.append(math.exp(c) / (math.exp(c) + sum(math.exp(w) for w in others)))
    log_r = tofu.log_truth_ratio(correct, wrong)
    assert np.exp(log_r) == pytest.approx(geometric, rel=1e-6)
    assert np.exp(tofu.log_truth_ratio(correct, wrong, mean="arithmetic")) == pytest.approx(arithmetic, rel=1e-6)
    assert tofu.probability_with_options(correct, wrong) == pytest.approx(options, abs=1e-6)
    assert tofu.probability(correct) == pytest.approx([math.exp(c) for c in correct])
    assert tofu.closer_to_one_rows(log_r) == pytest.approx([min(r, 1 / r) for r in geometric], abs=1e-6)
    assert tofu.true_better_rows(log_r) == pytest.approx([max(0, 1 - r) for r in geometric], abs=1e-6)


def test_extreme_losses_stay_finite() -> None:
    log_r = tofu.log_truth_ratio([-900.0, -1.0], [[-1.0], [-900.0]])
    assert log_r.tolist() == [899.0, -899.0]
    assert tofu.closer_to_one_rows(log_r).tolist() == [0.0, 0.0]
    assert tofu.true_better_rows(log_r).tolist() == [0.0, 1.0]
    assert tofu.probability_with_options([-900.0], [[-900.0, -900.0]]) == pytest.approx([1 / 3])


@pytest.mark.parametrize("wrong", [[[]], [[-math.inf]], []])
def test_unusable_wrong_answers_raise(wrong: list[list[float]]) -> None:
    with pytest.raises(InputError):
        tofu.log_truth_ratio([-1.0], wrong)


def ratio_of(values: Any, prefix: str = "q") -> tofu.TruthRatio:
    return tofu.TruthRatio(tuple(f"{prefix}{i}" for i in range(len(values))), np.asarray(values, dtype=np.float64))


def test_forget_quality_is_the_ks_test_on_the_ratios() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 50))
    quality = tofu.forget_quality(ratio_of(a - 0.6), ratio_of(b))
    expected = stats.ks_2samp(np.exp(a - 0.6), np.exp(b))
    assert quality.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert quality.log10_p == pytest.approx(math.log10(expected.pvalue))
    assert quality.statistic == expected.statistic
    assert (quality.n_unlearned, quality.n_retrained) == (50, 50)
    assert quality.median_unlearned.value == pytest.approx(np.median(np.exp(a - 0.6)), rel=0.1)
    assert quality.median_unlearned.low < quality.median_unlearned.value < quality.median_unlearned.high


def test_forget_quality_of_a_model_against_itself_is_one_and_separation_is_exact() -> None:
    a = np.random.default_rng(1).normal(size=400)
    assert tofu.forget_quality(ratio_of(a), ratio_of(a)).p == 1.0
    apart = tofu.forget_quality(ratio_of(a + 50), ratio_of(a))
    assert apart.log10_p == pytest.approx(math.log10(2) - math.log10(math.comb(800, 400)), abs=1e-8)
    assert apart.median_unlearned.value > 1e15  # over-unlearned, and the medians show it


def test_forget_quality_refuses_other_rows_and_other_means() -> None:
    with pytest.raises(RunError, match="q3"):
        tofu.forget_quality(ratio_of([0.0] * 4), ratio_of([0.0] * 3))
    with pytest.raises(RunError, match="same forget set"):
        tofu.forget_quality(ratio_of([0.0] * 3), ratio_of([0.0] * 3, "r"))
    other = tofu.TruthRatio(("q0",), np.zeros(1), "arithmetic")
    with pytest.raises(RunError, match="mean"):
        tofu.forget_quality(ratio_of([0.0]), other)


def test_utility_rows_come_from_the_table_by_id() -> None:
    table = ScoreTable(build_scores(two_questions()), generations({"q2": 0.25, "q1": 1.0}))
    bare, weighed = tofu.utility_rows(table, options=False), tofu.utility_rows(table, options=True)
    assert bare.probability == pytest.approx([1 / 2, 1 / 4], abs=1e-6)
    assert weighed.probability == pytest.approx([0.5 / (0.5 + 5 / 16), 0.25 / 1.25], abs=1e-6)
    assert bare.rouge.tolist() == [1.0, 0.25]
    assert bare.truth_ratio == pytest.approx([0.5, 0.0], abs=1e-6)
    with pytest.raises(RunError, match="q2"):
        tofu.utility_rows(ScoreTable(table.scores, generations({"q1": 1.0})), options=False)
    assert tofu.utility_rows(ScoreTable(table.scores, None), options=False).rouge is None, "not measured, never a zero"


def test_a_set_without_wrong_answers_has_fewer_parts() -> None:
    plain = [row for row in two_questions() if row["form"] == "answer"]
    rows = tofu.utility_rows(ScoreTable(build_scores(plain), generations({"q2": 0.25, "q1": 1.0})), options=False)
    assert rows.truth_ratio is None
    found = tofu.model_utility({"retain": rows}, resamples=10)
    assert set(found.parts) == {"retain/probability", "retain/rouge"}
    p, r = rows.probability.mean(), 0.625
    assert found.value.value == pytest.approx(2 / (1 / p + 1 / r))


def random_sets(seed: int = 0) -> dict[str, tofu.UtilityRows]:
    rng = np.random.default_rng(seed)
    sizes = {"retain": 30, "real_authors": 20, "world_facts": 25}
    return {name: tofu.UtilityRows(*rng.uniform(0.1, 1, (3, n))) for name, n in sizes.items()}


def test_model_utility_is_the_harmonic_mean_of_nine_parts() -> None:
    sets = random_sets()
    utility = tofu.model_utility(sets)
    means = [getattr(rows, part).mean() for rows in sets.values() for part in tofu.PARTS]
    assert utility.value.value == pytest.approx(stats.hmean(means), abs=1e-12)
    assert [part.value for part in utility.parts.values()] == pytest.approx(means)
    assert "world_facts/truth_ratio" in utility.parts
    assert utility.value.n == 75
    assert utility.value.low < utility.value.value < utility.value.high


def test_the_interval_of_model_utility_equals_a_loop() -> None:
    sets = random_sets(1)
    utility = tofu.model_utility(sets, seed=4, resamples=60)
    rng = np.random.default_rng(4)
    picks = {name: rng.integers(0, len(rows.rouge), (60, len(rows.rouge))) for name, rows in sets.items()}
    values = [
        stats.hmean([getattr(rows, p)[picks[name][b]].mean() for name, rows in sets.items() for p in tofu.PARTS])
        for b in range(60)
    ]
    assert utility.value.low == pytest.approx(np.quantile(values, 0.025), abs=1e-9)
    assert utility.value.high == pytest.approx(np.quantile(values, 0.975), abs=1e-9)


def test_one_part_of_zero_gives_zero_and_a_negative_one_raises() -> None:
    sets = random_sets()
    zero = tofu.UtilityRows(sets["retain"].probability, np.zeros(30), sets["retain"].truth_ratio)
    utility = tofu.model_utility({**sets, "retain": zero})
    assert (utility.value.value, utility.value.low, utility.value.high) == (0.0, 0.0, 0.0)
    assert utility.parts["retain/probability"].value > 0
    with pytest.raises(InputError, match="negative rouge"):
        tofu.model_utility({"retain": tofu.UtilityRows(np.ones(2), -np.ones(2), np.ones(2))})
    with pytest.raises(InputError, match="rows"):
        tofu.model_utility({"retain": tofu.UtilityRows(np.ones(2), np.ones(3), np.ones(2))})
    with pytest.raises(InputError, match="no sets"):
        tofu.model_utility({})
