"""Membership scores against loops, their sign on a planted member, PrivLeak, and the blind baseline."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.audit.metrics import membership
from efface.audit.metrics.roc import auc
from efface.audit.table import ScoreTable, TokenScores, build_scores
from efface.errors import InputError


def scores_of(
    logp: list[list[float]],
    mean: list[list[float]] | None = None,
    var: list[list[float]] | None = None,
    ids: list[str] | None = None,
    size: int = 20,
) -> TokenScores:
    names = ids or [f"t{i}" for i in range(len(logp))]
    return TokenScores(
        ids=names,
        variants=[0] * len(logp),
        logp=[np.array(row, dtype=np.float64) for row in logp],
        rank=[np.zeros(len(row), dtype=np.int64) for row in logp],
        mean=[np.array(row, dtype=np.float64) for row in (mean or [[-3.0] * len(row) for row in logp])],
        var=[np.array(row, dtype=np.float64) for row in (var or [[1.0] * len(row) for row in logp])],
        n_bytes=np.full(len(logp), 2 * size, dtype=np.int64),
        zlib_bytes=np.full(len(logp), size, dtype=np.int64),
    )


def slow_lowest(values: list[float], k: float) -> float:
    count = max(1, math.floor(k * len(values) + 1e-9))
    return sum(sorted(values)[:count]) / count


texts = st.lists(st.lists(st.floats(-30, 0), min_size=1, max_size=12), min_size=1, max_size=6)


@given(texts, st.sampled_from([0.01, 0.2, 0.4, 0.5, 1.0]))
@settings(deadline=None)
def test_scores_equal_plain_loops(logp: list[list[float]], k: float) -> None:
    rng = np.random.default_rng(0)
    mean = [(-5 * rng.random(len(row))).tolist() for row in logp]
    var = [(0.01 + 4 * rng.random(len(row))).tolist() for row in logp]
    scores = scores_of(logp, mean, var)
    means = [sum(row) / len(row) for row in logp]
    assert membership.loss(scores) == pytest.approx(means, abs=1e-6)
    assert membership.zlib(scores) == pytest.approx([value / 20 for value in means], abs=1e-6)
    assert membership.min_k(scores, k, min_tokens=1) == pytest.approx([slow_lowest(row, k) for row in logp], abs=1e-6)
    standard = [
        [(x - m) / math.sqrt(v) for x, m, v in zip(*rows, strict=True)] for rows in zip(logp, mean, var, strict=True)
    ]
    result = membership.min_k_plus_plus(scores, k, min_tokens=1)
    assert result.scores == pytest.approx([slow_lowest(row, k) for row in standard], abs=1e-6)
    assert (result.hits, result.tokens) == (0, sum(map(len, logp)))


def test_min_k_takes_floor_kt_tokens_despite_rounding() -> None:
    assert membership.min_k(scores_of([[-1.0, -2.0, -3.0, -4.0, -5.0]]), 0.6)[0] == pytest.approx(-4.0)


def test_a_deviation_near_zero_is_clamped_and_counted() -> None:
    scores = scores_of([[-1.0, -2.0], [-1.0, -2.0]], var=[[0.0, -1e-9], [1.0, 1.0]], mean=[[-1.0, -1.5]] * 2)
    result = membership.min_k_plus_plus(scores, 1.0)
    assert (result.hits, result.tokens) == (2, 4)
    assert result.scores == pytest.approx([-0.25e6, -0.25])


def test_short_texts_raise_with_their_id() -> None:
    for attack in (membership.min_k, membership.min_k_plus_plus):
        with pytest.raises(InputError, match="t1"):
            attack(scores_of([[-1.0, -1.0], [-1.0]]))
    for attack in (membership.loss, membership.zlib):
        with pytest.raises(InputError, match="t0"):
            attack(scores_of([[]]))


@pytest.mark.parametrize("k", [0.0, 1.1])
def test_k_outside_its_range_raises(k: float) -> None:
    with pytest.raises(InputError):
        membership.min_k(scores_of([[-1.0, -2.0]]), k)


def test_a_missing_compressed_size_raises() -> None:
    with pytest.raises(InputError, match="compressed"):
        membership.zlib(scores_of([[-1.0]], size=0))


def test_reference_scores_are_differences_and_ids_are_checked() -> None:
    ours, theirs = scores_of([[-1.0, -2.0], [-4.0]]), scores_of([[-2.0, -4.0], [-3.0]])
    assert membership.reference_calibrated(ours, theirs).tolist() == [1.5, -1.0]
    with pytest.raises(InputError, match="same ids"):
        membership.reference_calibrated(ours, scores_of([[-1.0, -2.0], [-4.0]], ids=["t1", "t0"]))
    with pytest.raises(InputError, match="tokenizer"):
        membership.reference_calibrated(ours, scores_of([[-1.0], [-4.0]]))
    with pytest.raises(InputError, match="the same texts"):
        membership.reference_calibrated(ours, scores_of([[-1.0, -2.0]]))


def test_a_planted_member_scores_higher_in_every_attack() -> None:
    rng = np.random.default_rng(3)
    distribution = {"mean": [[-3.0] * 15] * 40, "var": [[2.0] * 15] * 40}
    members = scores_of((-rng.gamma(1.0, 1.0, (40, 15))).tolist(), **distribution)
    others = scores_of((-rng.gamma(1.0, 3.0, (40, 15))).tolist(), **distribution)
    base = scores_of([[-2.0] * 15] * 40)
    attacks = [
        membership.loss,
        membership.zlib,
        membership.min_k,
        lambda s: membership.min_k_plus_plus(s).scores,
        lambda s: membership.reference_calibrated(s, base),
    ]
    for attack in attacks:
        assert auc(attack(members), attack(others)) > 0.9


def test_the_scores_read_a_real_score_table() -> None:
    row = {"form": "answer", "variant": 0, "n_bytes": 9, "zlib_bytes": 10, "rank": [0, 1], "mean": [-2, -2]}
    table = ScoreTable(build_scores([{**row, "id": "a", "logp": [-1.0, -3.0], "var": [1.0, 4.0]}]), None)
    scores = table.select("answer")
    assert membership.zlib(scores)[0] == pytest.approx(-0.2)
    assert membership.min_k_plus_plus(scores, 1.0).scores[0] == pytest.approx((1.0 - 0.5) / 2)


def test_priv_leak_by_hand_and_by_direction() -> None:
    fresh = np.random.default_rng(0).normal(size=(2, 60))
    remembered = membership.priv_leak(fresh[0] + 9, fresh[1], fresh[0], fresh[1])
    assert remembered.value == pytest.approx(-100)
    expected = 1 - auc(fresh[0], fresh[1])
    over = membership.priv_leak(fresh[0] - 9, fresh[1], fresh[0], fresh[1])
    assert over.value == pytest.approx(100 * (1 - expected) / expected)
    same = membership.priv_leak(fresh[0], fresh[1], fresh[0], fresh[1])
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert over.low is not None
    assert over.low < over.value < over.high


def test_priv_leak_refuses_what_it_cannot_divide_or_pair() -> None:
    with pytest.raises(InputError, match="never saw"):
        membership.priv_leak([0.0, 1.0], [0.5, 0.1], [5.0, 6.0], [0.5, 0.1])
    with pytest.raises(InputError, match="same texts"):
        membership.priv_leak([0.0, 1.0], [0.5], [5.0], [0.5])


def test_the_blind_baseline_sees_a_shift_and_no_membership() -> None:
    rng = np.random.default_rng(5)
    words = np.array([f"w{i}" for i in range(30)])

    def draw(count: int, extra: str = "") -> list[str]:
        return [" ".join(rng.choice(words, 8)) + extra for _ in range(count)]

    same = membership.blind_baseline(draw(120), draw(120))
    assert same.auc.value == pytest.approx(0.5, abs=0.1)
    assert not same.leaks
    assert same.auc.n == 240
    shifted = membership.blind_baseline(draw(60, " In 2024"), draw(60, " in 2019"))
    assert shifted.auc.value == 1.0
    assert shifted.leaks


def test_the_blind_baseline_is_seeded_and_survives_small_sets() -> None:
    members, others = ["a b", "c d", "b"], ["a", "d e", "f", "g"]
    assert membership.blind_baseline(members, others) == membership.blind_baseline(members, others)
    with pytest.raises(InputError, match="two or more"):
        membership.blind_baseline(["a"], others)
    with pytest.raises(InputError, match="words"):
        membership.blind_baseline(["!", "?"], [".", ","])
