"""Attack prompts: nine types, slots that are filled or not, balanced letters."""

from __future__ import annotations

from collections import Counter

import pytest

from efface.data.attack_prompts import ATTACKS, MULTIPLE_CHOICE, Options, attack, balanced_options, reworded
from efface.errors import ConfigError, InputError


def test_the_nine_types_of_the_paper_and_no_true_or_false() -> None:
    assert list(ATTACKS) == [
        "prefix-injection", "affirmative-suffix", "role-playing", "multiple-choice", "reverse-query",
        "synonym-manipulation", "background-hint", "in-context-learning", "cross-lingual",
    ]  # fmt: skip
    assert [name for name, one in ATTACKS.items() if not one.opener] == ["affirmative-suffix"]
    assert [name for name, one in ATTACKS.items() if not one.label] == ["in-context-learning"]
    assert [name for name, one in ATTACKS.items() if one.gold == "concept"] == ["reverse-query"]


def test_templates_take_turns_and_braces_in_values_stay() -> None:
    one = ATTACKS["cross-lingual"]
    texts = [one.fill({"question": "Who {answer}?"}, index) for index in range(len(one.templates) + 1)]
    assert len(set(texts)) == len(one.templates)
    assert texts[0] == texts[-1]
    assert all(text is not None and "Who {answer}?" in text for text in texts)


def test_a_missing_slot_gives_no_prompt() -> None:
    assert ATTACKS["background-hint"].fill({"question": "Who?"}) is None
    assert ATTACKS["background-hint"].fill({"question": "Who?", "hint": " "}) is None
    assert ATTACKS["reverse-query"].slots == {"relation", "answer"}


def test_letters_are_balanced_in_every_run_of_four() -> None:
    wrong = [["b", "c", "d", "e"]] * 24
    found = balanced_options(["a"] * 24, wrong, seed=3)
    places = [one.place for one in found if one is not None]
    assert all(sorted(places[i : i + 4]) == [0, 1, 2, 3] for i in range(0, 24, 4))
    assert len({tuple(places[i : i + 4]) for i in range(0, 24, 4)}) > 1, "the order is drawn"
    for one in found:
        assert one is not None
        assert one.texts[one.place] == "a"
        assert sorted(one.texts) == ["a", "b", "c", "d"]
    assert balanced_options(["a"] * 24, wrong, seed=3) == found


def test_questions_without_enough_options_keep_the_balance_of_the_others() -> None:
    wrong = [["b", "c", "d"] if i % 3 else ["a", " a ", "b"] for i in range(12)]
    found = balanced_options(["a"] * 12, wrong)
    assert [one is None for one in found] == [i % 3 == 0 for i in range(12)]
    assert Counter(one.letter for one in found if one is not None) == Counter("AABBCCDD")


def test_options_as_text() -> None:
    one = Options(("x", "y"), 1)
    assert (one.letter, one.lettered(), one.listed()) == ("B", "A. x\nB. y", "x; y")
    text = MULTIPLE_CHOICE.fill({"question": "Which?", "lettered": one.lettered()})
    assert text is not None
    assert text.startswith("Which?\nA. x\nB. y\n")


def test_rewording() -> None:
    assert reworded("What is the profession of Ann?") == "State the line of work of Ann?"
    assert reworded("Ann sleeps?") is None
    assert reworded("Ann sleeps, Anna wakes", "Ann", ["Ann", "A. Lee"]) == "A. Lee sleeps, Anna wakes"


def test_bad_input() -> None:
    with pytest.raises(ConfigError, match="did you mean 'cross-lingual'"):
        attack("cross-lingal")
    with pytest.raises(InputError, match="2 answers, 1 lists"):
        balanced_options(["a", "b"], [["c"]])
    with pytest.raises(InputError, match="1 options"):
        balanced_options(["a"], [["c"]], count=1)
