"""Fluency: n-gram entropy against plain counting, and its two ends."""

from __future__ import annotations

import math

import pytest

from efface.audit.metrics.fluency import entropy, ngram_entropy


def test_one_word_again_and_again_is_zero() -> None:
    assert ngram_entropy("a a a a") == 0.0
    assert ngram_entropy("") == 0.0
    assert ngram_entropy("one") == 0.0


def test_different_words_give_the_logarithm_of_their_number() -> None:
    words = "the quick brown fox jumps over a lazy dog"
    assert ngram_entropy(words) == pytest.approx(100 * (2 / 3 * math.log2(8) + 4 / 3 * math.log2(7)) / 2)


@pytest.mark.parametrize("text", ["a b a b a c", "no. no. yes, no!", "it's it's here"])
def test_equals_plain_counting(text: str) -> None:
    tokens = text.replace(".", " .").replace(",", " ,").replace("!", " !").split()
    total = 0.0
    for n, weight in ((2, 2 / 3), (3, 4 / 3)):
        grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
        shares = [grams.count(gram) / len(grams) for gram in set(grams)]
        total += weight * sum(-share * math.log2(share) for share in shares)
        assert entropy(tokens, n) == pytest.approx(sum(-share * math.log2(share) for share in shares))
    assert ngram_entropy(text) == pytest.approx(100 * total / 2)
