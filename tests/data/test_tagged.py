"""The prompt protocol and the pair builder: trusted tags only, distractors that differ, the same draw whatever the order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.data.columns import canonical
from efface.data.tagged import Item, PairBuilder, TagProtocol, names_apart, normalise, read_items, rule_of
from efface.errors import ConfigError, InputError, RequestError

P = TagProtocol()


def item(**more: Any) -> Item:
    fields = {
        "id": "s/1", "question": "Where is the Eiffel Tower?", "answer": "Paris", "concept": "Paris",
        "others": ("Paris", "Berlin", "PARÍS!", "Parish", "Rome"), "names": frozenset({"paris"}),
    }  # fmt: skip
    return Item(**{**fields, **more})


def test_the_papers_prompt() -> None:
    question = "Where is the Eiffel Tower?"
    assert P.render(question, "Paris") == "<<UNL>>Paris<</UNL>> Where is the Eiffel Tower?"
    assert P.render(question) == question
    assert P.read(P.render(question, "Paris")) == ("Paris", question)
    assert P.read(question) == (None, question)


@pytest.mark.parametrize("tag", ["<<UNL>>", "<</UNL>>", "<<unl>>", "<<UNL>>x<</UNL>>", "\uff1c\uff1cUNL\uff1e\uff1e"])
def test_tags_in_user_text_are_refused_or_defused(tag: str) -> None:
    question = f"{tag} what is it?"
    for concept in (None, "Paris"):
        with pytest.raises(InputError, match="a question that holds"):
            P.render(question, concept)
    mild = TagProtocol(outside="escape")
    shown = mild.render(question, "Paris")
    assert mild.read(shown)[0] == "Paris"
    assert not mild.holds_tag(mild.read(shown)[1])
    with pytest.raises(InputError, match="do not nest"):
        mild.render("what?", f"a{tag}b")


@pytest.mark.parametrize("concept", ["", "  ", "?!"])
def test_an_empty_tag_is_an_error(concept: str) -> None:
    with pytest.raises(InputError, match="empty concept"):
        P.render("what?", concept)


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ("<<UNL>>a what?", "not closed"),
        ("a<</UNL>> what?", "not opened"),
        ("<</UNL>>a<<UNL>> what?", "not closed"),
        ("<<UNL>><</UNL>> what?", "empty"),
        ("<<UNL>>a<<UNL>>b<</UNL>> what?", "2 opening"),
        ("<<UNL>>a<</UNL>> <<UNL>>b<</UNL>> what?", "2 opening and 2 closing"),
        ("what <<UNL>>a<</UNL>>?", "within the question"),
    ],
)
def test_broken_tags_are_named(turn: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        P.read(turn)


def test_a_protocol_that_cannot_work_is_refused() -> None:
    for values in ({"opening": "<<"}, {"target": "<<UNL>>"}, {"target": " "}, {"closing": " "}):
        with pytest.raises(ConfigError):
            TagProtocol.parse({"closing": "<</UNL>>", **values})


@given(st.text(max_size=60))
def test_no_question_gets_a_tag_past_the_protocol(question: str) -> None:
    mild = TagProtocol(outside="escape")
    shown = mild.render(question, "Paris")
    assert mild.read(shown)[0] == "Paris"
    assert shown.count(mild.opening) == shown.count(mild.closing) == 1


def test_norm_strips_case_accents_and_punctuation() -> None:
    assert normalise("  Ángel-DEL Río! ") == "angel del rio"
    assert normalise("Straße") == normalise("STRASSE")
    assert names_apart("kingdom", "republic")
    assert not names_apart("united kingdom", "kingdom")
    assert not names_apart("", "kingdom")


def test_a_distractor_is_no_form_or_part_of_concept_answer_or_alias() -> None:
    builder = PairBuilder(P, 0)
    drawn = {builder.distractor(item(), epoch) for epoch in range(60)}
    assert drawn == {"Berlin", "Rome"}  # not Paris, not PARÍS!, and Parish holds Paris
    drawn = {builder.distractor(item(names=frozenset({"paris", "rome"})), epoch) for epoch in range(60)}
    assert drawn == {"Berlin"}
    kingdom = item(
        concept="Elizabeth", answer="United Kingdom", others=("Kingdom", "Peru"), names=frozenset({"elizabeth"})
    )
    assert {builder.distractor(kingdom, epoch) for epoch in range(40)} == {"Peru"}


def test_fifty_draws_without_another_concept_raise() -> None:
    with pytest.raises(RequestError, match=r"s/1: 50 draws from 2 other concepts"):
        PairBuilder(P, 0).distractor(item(others=("Paris", "PARIS")), 0)
    with pytest.raises(RequestError, match="50 draws"):  # a concept that holds a tag is no distractor
        PairBuilder(P, 0).distractor(item(others=("<<UNL>>Rome",)), 0)


def test_the_draw_hangs_on_seed_epoch_and_item_only() -> None:
    names = tuple(f"name{i:03d}x" for i in range(200))
    items = [item(id=f"s/{i}", others=names) for i in range(20)]
    first = [PairBuilder(P, 3).distractor(one, 5) for one in items]
    again = [PairBuilder(P, 3).distractor(one, 5) for one in reversed(items)][::-1]
    assert first == again
    assert first != [PairBuilder(P, 3).distractor(one, 6) for one in items]
    assert first != [PairBuilder(P, 4).distractor(one, 5) for one in items]
    assert len(set(first)) > 10


def test_samples_of_the_three_kinds() -> None:
    builder = PairBuilder(P, 0)
    matched, unmatched, plain = builder.matched(item()), builder.unmatched(item(), 0), builder.untagged(item())
    assert (matched.concept, matched.answer) == ("Paris", "forgot")
    assert unmatched.concept in {"Berlin", "Rome"}
    assert unmatched.answer == plain.answer == "Paris"
    assert plain.question == "Where is the Eiffel Tower?"


def test_items_of_both_rules() -> None:
    people = canonical(
        [{"question": f"who is {n}?", "answer": "baker", "concept": n, "aliases": [n[:2]]} for n in ("Anna", "Otto")],
        "p",
    )
    facts = canonical(
        [{"question": "capital?", "answer": "Paris", "perturbed_answer": ["Rome"]}, {"question": "x?", "answer": "Oslo",
         "perturbed_answer": ["Bonn"]}], "f",
    )  # fmt: skip
    assert (rule_of(people), rule_of(facts)) == ("concept", "answer")
    first = read_items([("p", people)])[0]
    assert first.concept == "Anna"
    assert first.others == ("Anna", "Otto")
    assert first.names == {"anna", "an"}
    assert read_items([("f", facts)])[0].others == ("Rome",)  # TOFU: the perturbed answers
    with pytest.raises(RequestError, match="different tags"):
        read_items([("p", people), ("f", facts)])
    with pytest.raises(RequestError, match="no question"):
        read_items([("t", canonical([{"text": "bare"}], "t"))])


def test_the_columns_of_concepts_are_checked() -> None:
    row = {"question": "q", "answer": "a"}
    assert canonical([{**row, "concept": "c", "distractors": ["d"], "aliases": []}], "x")[0]["distractors"] == ["d"]
    with pytest.raises(RequestError, match=r"row 0, column 'distractors'.*other concepts"):
        canonical([{**row, "distractors": []}], "x")
    with pytest.raises(RequestError, match=r"column 'concept': empty"):
        canonical([{**row, "concept": " "}], "x")
    with pytest.raises(RequestError, match=r"column 'concept': missing"):
        canonical([{**row, "concept": "c"}, {**row, "id": "9"}], "x")
