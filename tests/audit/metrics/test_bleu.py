"""Sentence BLEU against nltk's, which rouge-score brings along, and at the edges."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.audit.metrics.bleu import bleu

WORDS = st.lists(st.sampled_from("the cat sat on a mat dog".split()), min_size=1, max_size=9).map(" ".join)


@settings(deadline=None)
@given(candidate=WORDS, reference=WORDS)
def test_nltk_gives_the_same(candidate: str, reference: str) -> None:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    theirs = sentence_bleu([reference.split()], candidate.split(), smoothing_function=SmoothingFunction().method3)
    if candidate.split() == reference.split():
        assert bleu(candidate, reference) == 1.0
    else:
        assert bleu(candidate, reference) == pytest.approx(float(theirs), abs=1e-12)


def test_by_hand() -> None:
    # 4 of 5 words, 2 of 4 pairs, 0 of 3 triples -> 1 / 6, 0 of 2 -> 1 / 8; one word shorter than the reference
    expected = math.exp(1 - 6 / 5) * (4 / 5 * 2 / 4 * 1 / 6 * 1 / 8) ** 0.25
    assert bleu("the cat a the mat", "the cat sat on the mat") == pytest.approx(expected)


def test_edges_and_asymmetry() -> None:
    assert bleu("", "") == 1.0
    assert bleu("", "a") == bleu("a", "") == bleu("a b", "c d") == 0.0
    assert bleu("paris", "paris") == 1.0
    assert bleu("the cat", "the cat sat on the mat") != bleu("the cat sat on the mat", "the cat")
