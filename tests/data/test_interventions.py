"""Interventions on stories: boundaries, deletions, what is appended when, and what the rules for negation leave alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from efface.data.interventions import KINDS, Story, intervene, negate, read_story, sentences, swap
from efface.errors import InputError

TEXT = "Ann has a cat. The cat is black. It sleeps all day."


def story(rationale: str = "The cat is black.", text: str = TEXT, **more: Any) -> Story:
    row = {
        "id": "s",
        "story": text,
        "question": "What colour is the cat?",
        "answer": "black",
        "rationale": rationale,
        **more,
    }
    return read_story(row, "row")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (TEXT, ["Ann has a cat.", "The cat is black.", "It sleeps all day."]),
        ("a of b is c . d of e is f .", ["a of b is c .", "d of e is f ."]),
        ("Dr. Smith met J. Doe at 3.5 p.m. on May 1. They spoke.", ["Dr. Smith met J. Doe at 3.5 p.m. on May 1.", "They spoke."]),
        ('He said "no!" Then he left?! Yes', ['He said "no!"', "Then he left?!", "Yes"]),
        ("one\n\ntwo", ["one", "two"]), ("  ", []), ("no end", ["no end"]), ("etc. and so on. End.", ["etc. and so on.", "End."]),
    ],
)  # fmt: skip
def test_sentences_with_offsets(text: str, parts: list[str]) -> None:
    found = sentences(text)
    assert [text[a:b] for a, b in found] == parts
    assert all(b <= c for (_, b), (c, _) in itertools.pairwise(found))
    covered = {i for a, b in found for i in range(a, b)}
    assert all(text[i].isspace() for i in set(range(len(text))) - covered)


def test_deletions_against_the_definition() -> None:
    one = story()
    texts = {kind: intervene(one, kind).text for kind in KINDS}
    assert texts["OS"] == TEXT
    assert texts["TS"] == "Ann has a cat. The cat is black."
    assert texts["TS-R"] == "Ann has a cat."
    assert texts["TS-R+gold"] == "Ann has a cat. black"
    assert texts["OS-R"] == "Ann has a cat. It sleeps all day."
    assert texts["OS-R+gold"] == "Ann has a cat. It sleeps all day. black"
    assert texts["negated"] == "Ann has a cat. The cat is not black. It sleeps all day."
    assert texts["swapped"] is None


def test_a_rationale_inside_or_across_sentences() -> None:
    assert intervene(story("cat is bl"), "TS-R").text == "Ann has a cat."
    across = story("cat. The cat")
    assert intervene(across, "OS-R").text == "It sleeps all day."
    assert intervene(across, "negated").reason == "the rationale has several sentences"


def test_an_empty_rest_is_skipped_with_its_reason() -> None:
    cut = intervene(story("Ann has a cat."), "TS-R")
    assert cut.text is None
    assert cut.reason == "nothing is left of the story"
    assert intervene(story("Ann has a cat."), "OS-R").text == "The cat is black. It sleeps all day."


def test_the_gold_answer_is_appended_only_where_it_is_needed() -> None:
    for answer in ("yes", "No.", "unknown"):
        assert intervene(story(answer=answer), "TS-R+gold").reason == "the answer is yes, no or unknown"
    there = story(text="A black dog barks. The cat is black.", rationale="The cat is black.")
    assert intervene(there, "TS-R+gold").reason == "what is left says the answer already"
    inside = story(text="The thesis is done. The cat is he.", rationale="The cat is he.", answer="he")
    assert intervene(inside, "TS-R+gold").text == "The thesis is done. he"  # "he" in "the" does not count


def test_redundant_evidence_is_called_supported() -> None:
    twice = story(text="The cat has a colour: black. The cat is black.", rationale="The cat is black.")
    assert intervene(twice, "TS-R").supported
    assert not intervene(story(), "TS-R").supported


@pytest.mark.parametrize(
    ("sentence", "negated"),
    [
        ("The cat is black.", "The cat is not black."), ("They have been told.", "They have not been told."),
        ("symbol of iron is F e .", "symbol of iron is not F e ."), ("They WERE late!", "They WERE not late!"),
    ],
)  # fmt: skip
def test_negation(sentence: str, negated: str) -> None:
    assert negate(sentence) == (negated, "")


@pytest.mark.parametrize(
    ("sentence", "reason"),
    [
        ("She can be seen and is here.", "'can'"), ("It is never late.", "'never'"), ("All cats are grey.", "'all'"),
        ("It isn't late, it is early.", "n't"), ("He ran home.", "0 auxiliaries"), ("It is red and was blue.", "2 auxiliaries"),
        ("Is it red?", "a question"),
    ],
)  # fmt: skip
def test_what_negation_leaves_alone_with_its_reason(sentence: str, reason: str) -> None:
    made, why = negate(sentence)
    assert made is None
    assert reason in why


def test_roles_are_swapped_between_two_names_only() -> None:
    assert swap("Ann hit Bob in May.") == ("Bob hit Ann in May.", "")
    assert swap("The Dog chased Tom Cat.") == ("Tom Cat chased The Dog.", "")
    assert swap("Ann hit the ball.")[0] is None
    assert swap("Ann hit Ann.")[1] == "both sides are the same"
    own = story(swapped=TEXT.replace("black", "blackish"))
    assert "blackish" in str(intervene(own, "swapped").text)
    assert intervene(story(negated=TEXT + "!"), "negated").reason == "the given text changes nothing"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rationale": "no such"}, "stands 0 times"), ({"rationale": "."}, "stands 3 times"),
        ({"answer": " "}, "answer is empty"),
        ({"rationale": None, "rationale_start": -1, "rationale_end": 4}, "rationale -1 to 4"),
        ({"rationale": None, "rationale_start": 3, "rationale_end": 3}, "rationale 3 to 3"),
        ({"rationale": None}, "rationale_start"), ({"story": None}, "stands 0 times"), ({"stroy": "x"}, "stroy"),
        ({"rationale": None, "rationale_start": 3, "rationale_end": 4}, "white space"),
    ],
)  # fmt: skip
def test_bad_stories_are_refused_by_place(change: dict[str, Any], message: str) -> None:
    row = {"id": "s", "story": TEXT, "question": "q", "answer": "black", "rationale": "The cat is black."}
    with pytest.raises(InputError, match=f"line 7.*{message}"):
        read_story({**row, **change}, "line 7")
