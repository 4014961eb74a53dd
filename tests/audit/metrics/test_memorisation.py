"""Exact memorisation and extraction strength against the slow loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.audit.metrics.memorisation import exact_memorisation, extraction_strength
from efface.audit.table import TokenScores
from efface.errors import InputError


def scores_of(ranks: list[list[int]]) -> TokenScores:
    zeros = [np.zeros(len(row)) for row in ranks]
    return TokenScores(
        ids=[f"q{i}" for i in range(len(ranks))],
        variants=[0] * len(ranks),
        logp=zeros,
        rank=[np.array(row, dtype=np.int64) for row in ranks],
        mean=zeros,
        var=zeros,
        n_bytes=np.ones(len(ranks), dtype=np.int64),
        zlib_bytes=np.ones(len(ranks), dtype=np.int64),
    )


def slow_strength(row: list[int]) -> float:
    for k in range(len(row)):
        if all(rank == 0 for rank in row[k:]):
            return 1 - k / len(row)
    return 0.0


rows = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), max_size=8)


@given(rows)
@settings(deadline=None)
def test_both_equal_plain_loops(ranks: list[list[int]]) -> None:
    scores = scores_of(ranks)
    assert exact_memorisation(scores) == pytest.approx([row.count(0) / len(row) for row in ranks])
    assert extraction_strength(scores) == pytest.approx([slow_strength(row) for row in ranks])


@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=9), min_size=1, max_size=8))
@settings(deadline=None)
def test_dropping_the_last_token_is_scoring_without_it(ranks: list[list[int]]) -> None:
    cut = scores_of([row[:-1] for row in ranks])
    assert exact_memorisation(scores_of(ranks), drop_last=True) == pytest.approx(exact_memorisation(cut))
    assert extraction_strength(scores_of(ranks), drop_last=True) == pytest.approx(extraction_strength(cut))


def test_a_wrong_last_token_gives_zero() -> None:
    assert extraction_strength(scores_of([[0, 0, 0, 3]])).tolist() == [0.0]
    assert extraction_strength(scores_of([[0, 0], [5, 0], [5]])).tolist() == [1.0, 0.5, 0.0]


def test_a_text_without_tokens_raises_with_its_id() -> None:
    with pytest.raises(InputError, match="q1"):
        extraction_strength(scores_of([[0], []]))
    with pytest.raises(InputError, match="q0"):
        exact_memorisation(scores_of([[0], [0, 0]]), drop_last=True)
