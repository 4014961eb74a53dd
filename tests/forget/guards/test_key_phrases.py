"""What would give an answer away."""

from __future__ import annotations

from typing import Any

import pytest

from efface.forget.guards import key_phrases
from efface.forget.guards.key_phrases import (
    content_words,
    names_and_numbers,
    phrases_by_model,
    tidy,
    whole_answer,
    word_ngrams,
)

TEXT = "She was born in New York on 13 May 1972. The novel is by Vincent van Gogh."


def test_content_words_are_no_stop_words() -> None:
    assert content_words(TEXT) == ["born", "New", "York", "13", "May", "1972", "novel", "Vincent", "van", "Gogh"]
    assert content_words("It is 7 .") == ["7"]
    assert content_words("That is it.") == []


def test_the_whole_answer_without_its_frame() -> None:
    assert whole_answer("H e it is") == ["H e"]
    assert whole_answer("It is the novel.") == ["novel"]
    assert whole_answer("I n .") == ["I n"]  # a spelled symbol, not the word "I"
    assert whole_answer("It is.") == []


def test_names_run_over_joining_words_and_stop_at_punctuation() -> None:
    found = names_and_numbers(TEXT, frozenset({"she", "novel", "born"}))
    assert {"New York", "May", "13", "1972", "Vincent van Gogh"} <= set(found)
    assert "The" not in found
    assert "novel" not in found
    assert names_and_numbers("In Rome, Anna of", frozenset()) == ["Rome", "Anna"]
    assert names_and_numbers("Nothing was baked.", frozenset({"nothing"})) == [
        "baked"
    ]  # a word that no kept answer has
    assert names_and_numbers("The 12.5 km in 1999-2001.", frozenset()) == ["12.5", "1999-2001"]


def test_ngrams_are_as_written() -> None:
    assert word_ngrams("one two-three, four five", 2) == ["one two-three", "two-three, four", "four five"]
    assert word_ngrams("only two", 5) == ["only two"]
    assert tidy(["New York", "new-york", "the", "...", "of it"]) == ["New York"]


def test_a_model_is_asked_and_only_what_stands_in_the_text_counts(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def reply(prompts: Any, **_: Any) -> list[list[int]]:
        asked.extend(prompts)
        return [[0], [1]]

    words = {0: "1. red\n2) person0\n- The moon, red\nthe", 1: ""}
    monkeypatch.setattr(tiny, "generate_all", reply)
    monkeypatch.setattr(tiny, "decode", lambda ids: words[ids[0]])
    assert phrases_by_model(tiny, ["person0 likes the colour red .", "no"]) == [["red", "person0"], []]
    assert len(asked) == 2
    assert "{text}" in key_phrases.ASKING
