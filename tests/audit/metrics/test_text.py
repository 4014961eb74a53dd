"""Text comparison: ROUGE, normaliser, aliases, refusals."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.audit.metrics.text import (
    REFUSALS,
    alias_match,
    distinct,
    exact_match,
    is_refusal,
    normalise,
    rouge,
    rouge_l_plain,
    token_f1,
)
from efface.errors import InputError


def slow_lcs(a: list[str], b: list[str]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(st.lists(st.sampled_from("pqrst"), max_size=8), st.lists(st.sampled_from("pqrst"), max_size=8))
@settings(deadline=None)
def test_rouge_equals_plain_counts(generated: list[str], reference: list[str]) -> None:
    score = rouge(" ".join(generated), " ".join(reference))
    shared = sum(min(generated.count(w), reference.count(w)) for w in set(reference))
    common = slow_lcs(generated, reference)
    assert score.rouge1_recall == pytest.approx(shared / len(reference) if reference else 0.0)
    assert score.rougeL_recall == pytest.approx(common / len(reference) if reference else 0.0)
    total = len(generated) + len(reference)
    assert score.rougeL_f1 == pytest.approx(2 * common / total if common else 0.0)


def test_rouge_stems_and_recall_is_of_the_reference() -> None:
    assert rouge("she was running", "runs").rouge1_recall == 1.0
    assert rouge("one", "one two three four").rougeL_recall == 0.25


def test_the_normaliser() -> None:
    assert normalise("  The Café's—GREAT!! (x²) ") == "the cafés great x2"
    assert normalise("...") == ""
    assert normalise("a b") == "a b"
    assert normalise("東京 tower") == "東 京 tower"


@given(st.text(max_size=30))
@settings(deadline=None)
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert exact_match(text, text)


def test_exact_match() -> None:
    assert exact_match("Paris.", "paris")
    assert not exact_match("Paris, France", "paris")
    assert not exact_match("!", "?")
    assert exact_match("", " ")


def test_token_f1_by_hand() -> None:
    assert token_f1("a a b", "a c") == pytest.approx(2 * 1 / 5)
    assert token_f1("", "") == 1.0
    assert token_f1("x", "") == 0.0


def test_aliases_match_whole_words_only() -> None:
    assert not alias_match("The capital is Tirana.", ["Iran"])
    assert alias_match("In NEW-YORK, they say", ["Boston", "new york"])
    assert alias_match("首都は東京です", ["東京"])
    with pytest.raises(InputError):
        alias_match("x", [])
    with pytest.raises(InputError):
        alias_match("x", ["?!"])


@pytest.mark.parametrize("phrase", REFUSALS)
def test_every_refusal_phrase_is_found(phrase: str) -> None:
    assert is_refusal(f"Well, {phrase.upper()}, friend.")


def test_answers_are_not_refusals() -> None:
    assert not is_refusal("The author was born in Taipei.")
    assert not is_refusal("word " * 40 + "I don't know")
    assert is_refusal("non lo so", phrases=["non lo so"])
    assert is_refusal("I don’t know.")


def test_distinct() -> None:
    assert distinct([3] * 50) == 0.02
    assert distinct(["a", "b"]) == 1.0
    assert distinct([]) == 1.0


@pytest.mark.parametrize(
    ("generated", "reference", "recall"),
    [
        ("The Nobel Prize. In physics, 1903", "Nobel Prize in Physics", 1 / 2),
        ("a b c d", "d c b a", 1 / 4),
        ("x y x y", "y x y", 1.0),
        ("Stephen King", "stephen king", 0.0),
        ("runs", "run", 0.0),
        ("NOANSWER", "King", 0.0),
        ("U.S.A.", "U.S.", 1.0),
        ("1. 2. 3.", "3. 1", 1.0),
        ("b running The été running c Mat,", "runs   mat. sat. sat. cat c ...  .", 1 / 6),
        ("...  . .   Mat, b   a ran sat.", "Mat, U.S. mat. 東京 ran été cat", 2 / 8),
        (".. cat . a c U.S. A. . Mat,", "a cat .. mat. c sat.", 3 / 5),
        ("ran cat Mat, été .. sat. 東京 a 東京", "...  . A. A. ran", 1 / 3),
        (".. 東京 running a The . .   A. .. A. ran", "cat A. été U.S. . The", 3 / 7),
        ("U.S. on ...  . sat. A. on   .. c", "été mat. on runs U.S.  ", 4 / 7),
        ("東京 sat. ..", "runs ...  . running été b c ran mat.", 1 / 8),
    ],
)
def test_rouge_l_plain_is_that_of_the_package_rouge(generated: str, reference: str, recall: float) -> None:
    """Figures of `rouge` 1.0.1 (`Rouge().get_scores`), frozen; 3000 random pairs agreed when this was written."""
    assert rouge_l_plain(generated, reference) == pytest.approx(recall, abs=1e-12)


def test_rouge_l_plain_where_the_package_raises() -> None:
    assert rouge_l_plain("", "King") == 0.0
    assert rouge_l_plain("...", "King") == 0.0
    assert rouge_l_plain("King", "...") == 0.0
    assert rouge_l_plain(" ...", "...") == 1.0


def test_the_two_dialects_disagree() -> None:
    assert rouge("the king runs", "King run").rougeL_recall == 1.0
    assert rouge_l_plain("the king runs", "King run") == 0.0
