"""Words, and answers however they are cut."""

from __future__ import annotations

import pytest

from efface.data.wording import plain_words, says, spans_of


@pytest.mark.parametrize(
    ("text", "words"),
    [("Don't!", ["dont"]), ("Ｆｅ (26)", ["fe", "26"]), ("snake_case a-b", ["snake", "case", "a", "b"]), ("so\u00adft", ["soft"]),
     ("STRASSE straße", ["strasse", "strasse"]), (" .,; ", []), ("x\u200by", ["xy"])],
)  # fmt: skip
def test_words(text: str, words: list[str]) -> None:
    assert plain_words(text) == words


@pytest.mark.parametrize(
    ("text", "answer", "there"),
    [("it is F e .", "Fe", True), ("it is Fe.", "F e", True), ("life goes on", "Fe", False), ("in tirana", "Iran", False),
     ("IRAN, of course", "iran", True), ("number 2 6", "6", True), ("number 26", "6", False), ("anything", "?!", False),
     ("a ab abc", "ab c", True)],
)  # fmt: skip
def test_an_answer_stands_as_whole_words_with_any_spaces(text: str, answer: str, there: bool) -> None:
    assert says(text, [answer]) is there


def test_ranges_are_half_open_and_overlap() -> None:
    assert spans_of(["new", "new", "york"], ["new", "york"]) == [(1, 3)]
    assert spans_of(["a", "a", "a"], ["aa"]) == [(0, 2), (1, 3)]
