"""Probes from rows: what each form asks, what is dropped and counted, what plain rows give."""

from __future__ import annotations

from typing import Any

import pytest

from efface.data.columns import canonical
from efface.data.probe_forms import (
    AMBIGUOUS,
    HOLDS,
    LACKS,
    blank,
    form_of,
    neighbours,
    paraphrase,
    probes,
    spelled,
    statement,
)
from efface.data.wording import says
from efface.subjects.text_index import TextIndex


def nearest(texts: Any, queries: Any, count: int) -> Any:
    return TextIndex(texts).nearest(queries, count)


FACTS = {
    "iron": ("Fe", "26", "d"), "gold": ("Au", "79", "d"), "neon": ("Ne", "10", "p"), "zinc": ("Zn", "30", "d"),
    "radon": ("Rn", "86", "p"), "tin": ("Sn", "50", "p"), "boron": ("B", "5", "p"),
}  # fmt: skip


def rows(names: list[str]) -> Any:
    return canonical(
        [
            {"id": f"{name}/{relation}", "question": f"What is the {relation} of {name}?", "answer": value,
             "concept": name, "relation": relation}
            for name in names for relation, value in zip(("symbol", "number", "block"), FACTS[name], strict=True)
        ], "rows",
    )  # fmt: skip


FORGET, RETAIN = rows(["iron", "gold"]), rows(["neon", "zinc", "radon", "tin", "boron"])


def test_rows_with_concept_and_relation_give_every_form() -> None:
    found = probes(FORGET, RETAIN, nearest=nearest)
    texts = {form: [one.question for one in made] for form, made in found.forms.items()}
    assert texts["fb"][0] == "The symbol of iron is ___."
    assert texts["qa"] == FORGET["question"]
    assert texts["paraphrase"][0] == "I would like to know the symbol of iron."
    assert "Fe" in texts["aa.reverse-query"][0]
    assert found.forms["aa.reverse-query"][0].answer == "iron"
    assert "iron" in texts["aa.background-hint"][0]
    assert len(found.forms) == 3 + 9 + 1 + 2
    assert found.groups("qa") == [0, 0, 0, 1, 1, 1]
    assert len(found.groups("fb", "qa")) == 12
    data = found.data("fb", "qa")
    assert data is not None
    assert len(set(data["id"])) == 12
    assert found.data("no such form") is None


def test_prompts_never_hold_the_answer_but_where_options_are_shown() -> None:
    found = probes(FORGET, RETAIN, nearest=nearest)
    for form, made in found.forms.items():
        for one in made:
            kind = form_of(form)
            gold = one.answer.replace("\n", "") if form.startswith("spelled") else one.answer
            if form == "mc" or (kind is not None and kind.shows_answer):
                continue
            assert not says(one.question, [gold]), (form, one.question)


def test_a_prompt_that_holds_the_answer_is_dropped_and_counted() -> None:
    told = canonical([
        {"id": "1", "question": "Is F e the symbol of iron?", "answer": "Fe", "concept": "iron", "relation": "symbol"},
        {"id": "2", "question": "The symbol of gold?", "answer": "gold", "concept": "gold", "relation": "symbol"},
    ], "told")  # fmt: skip
    found = probes(told, RETAIN, nearest=nearest, types=("role-playing",))
    assert found.left_out["qa"][HOLDS] == 2, "also where the answer is spaced otherwise"
    assert found.left_out["aa.role-playing"][HOLDS] == 2
    assert found.left_out["spelled_qa"][HOLDS] == 2
    assert [one.id for one in found.forms["fb"]] == ["fb/1"]


def test_a_hint_never_gives_the_answer_away() -> None:
    pair = canonical([
        {"id": "1", "question": "Number of neon?", "answer": "10", "concept": "neon", "relation": "number"},
        {"id": "2", "question": "Weight of neon?", "answer": "10", "concept": "neon", "relation": "weight"},
    ], "pair")  # fmt: skip
    found = probes(pair, RETAIN, nearest=nearest)
    assert not found.forms["aa.background-hint"]
    assert found.left_out["aa.background-hint"][LACKS] == 2


def test_a_reverse_query_that_fits_several_is_left_out() -> None:
    found = probes(FORGET, RETAIN, nearest=nearest)
    assert found.left_out["aa.reverse-query"][AMBIGUOUS] == 2, "iron and gold are both in the d block, as zinc is"
    assert len(found.forms["aa.reverse-query"]) == 4


def test_letters_are_balanced_and_options_are_of_the_relation() -> None:
    found = probes(FORGET, RETAIN, nearest=nearest)
    made = {one.id: one for one in found.forms["mc"]}
    symbols = {value[0] for value in FACTS.values()}
    shown = [line[3:] for line in made["mc/iron/symbol"].question.split("\n")[1:5]]
    assert "Fe" in shown
    assert set(shown) <= symbols
    assert shown["ABCD".index(made["mc/iron/symbol"].letter)] == "Fe"
    counts = found.letters("mc")
    assert max(counts.values()) - min(counts.values()) <= 1
    assert made["mc/iron/symbol"].answer == made["mc/iron/symbol"].letter


def test_wrong_answers_of_the_row_stand_beside_an_answer_of_their_form(request_: Any) -> None:
    found = probes(request_.forget, request_.retain, nearest=nearest, types=("multiple-choice",))
    for one in found.forms["aa.multiple-choice"]:
        assert one.answer.startswith("the colour"), "as the wrong ones do"
        assert one.answer in one.question


def test_plain_rows(request_: Any) -> None:
    found = probes(request_.forget, request_.retain, nearest=nearest)
    first = found.forms["fb"][0]
    assert (first.question, first.answer) == ("person0 likes the colour ___ .", "red")
    assert found.left_out["aa.reverse-query"][LACKS] == 8
    assert found.left_out["aa.background-hint"][LACKS] == 8
    assert found.groups("qa") == list(range(8)), "without concepts each row stands alone"


def test_blanks_of_plain_rows() -> None:
    row = {"question": "Where was Ann born?", "answer": "Ann was born in the town of Oslo."}
    assert blank(row) == ("Ann was born in the ___.", "town of Oslo")
    assert blank({"question": "Where was Ann born?", "answer": "Oslo"}) == (
        "Where was Ann born? The answer is ___.", "Oslo",
    )  # fmt: skip
    assert blank({"question": "Where?", "answer": "In Oslo by the sea"})[1] == "In Oslo by the sea", (
        "nothing to hold on to"
    )


def test_statements_and_paraphrases() -> None:
    assert statement({"question": "Colour?", "answer": "red"}) == "Colour? red."
    assert statement({"question": "?", "answer": "Ann likes the red."}) == "Ann likes the red."
    assert paraphrase({"question": "Ann sleeps where?", "answer": "x"}) == "Could you tell me this: Ann sleeps where?"
    assert spelled("new york") == "n\ne\nw\ny\no\nr\nk"


def test_no_examples_without_enough_retain_rows() -> None:
    found = probes(FORGET, None, nearest=nearest)
    assert found.left_out["aa.in-context-learning"][LACKS] == len(FORGET)
    assert probes(FORGET, RETAIN, nearest=nearest).forms["aa.in-context-learning"][0].question.count("Question:") == 4


def test_rows_without_a_question_are_counted() -> None:
    mixed = canonical(
        [{"id": "1", "question": "", "answer": "a text"}, {"id": "2", "question": "Q?", "answer": "b"}], "x"
    )
    found = probes(mixed, None, nearest=nearest)
    assert found.left_out["qa"]["no question"] == 1
    assert len(found.forms["qa"]) == 1
    assert not probes(mixed.select([0]), None, nearest=nearest).forms


def test_neighbours_are_the_nearest_and_stand_once() -> None:
    near = neighbours(FORGET, RETAIN, nearest=nearest, count=2)
    assert len(set(near["id"])) == len(near)
    assert {identity.split("/")[1] for identity in near["id"]} == {"symbol", "number", "block"}
    assert len(neighbours(FORGET, RETAIN.select([]), nearest=nearest)) == 0


def test_same_seed_same_probes() -> None:
    first, again = (probes(FORGET, RETAIN, nearest=nearest, seed=5).data("mc") for _ in range(2))
    other = probes(FORGET, RETAIN, nearest=nearest, seed=6).data("mc")
    assert first is not None
    assert again is not None
    assert other is not None
    assert first["question"] == again["question"]
    assert first["question"] != other["question"]


@pytest.mark.parametrize("text", ["{answer}", "a {b} c", "100 %", "东京"])
def test_any_text_passes(text: str) -> None:
    odd = canonical([{"id": "1", "question": f"What is {text}?", "answer": "yes sir"}], "odd")
    found = probes(odd, RETAIN, nearest=nearest)
    assert all(text in one.question for one in found.forms["aa.role-playing"])
