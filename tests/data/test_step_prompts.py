"""Step prompts: labels, dropped questions, hop labels of oracle chains, budgets, chances, and the same questions every time."""

from __future__ import annotations

from typing import Any

import pytest

from efface.data.fact_graph import FactGraph, Mark, from_rows
from efface.data.step_prompts import (
    ODD_SIZE,
    Wordings,
    can_be_chained,
    cot_prompt,
    described,
    hop_question,
    oracle_answers,
    queries,
)
from efface.data.tagged import normalise
from efface.data.value_match import gives_any
from efface.errors import ConfigError, InputError

PEOPLE = ("Anna", "Bert", "Carl", "Dora", "Emil", "Fred", "Gerd", "Hans")


def graph(**more: Mark) -> FactGraph:
    rows: list[tuple[dict[str, Any], Mark]] = []
    for i, name in enumerate(PEOPLE):
        mark: Mark = "forget" if name == "Anna" else "retain"
        facts = {
            "city": ("Ulm", "Bonn")[int(i > 3)] if i else "Kiel",
            "badge": str(70 + i),
            "boss": PEOPLE[(i + 3) % 8],
        }
        rows += [
            ({"id": f"{name}/{r}", "concept": name, "relation": r, "answer": o}, more.get(r, mark))
            for r, o in facts.items()
        ]
    return from_rows(rows)


def test_categories_are_labels_of_the_question() -> None:
    made = graph()
    found = queries(made, made.marked("forget"), per_fact=50)
    assert {row.category for row in found.rows} == {"direct", "indirect", "implied"}
    assert {row.kind for row in found.rows} == {"direct", "path-2", "path-3", "reverse", "odd", "analogy"}
    for row in found.rows:
        named = f" {normalise(row.fact.subject)} " in f" {normalise(row.question)} "
        assert named == (row.category == "direct" or row.kind == "odd"), row.question
        if row.kind != "odd" and row.category == "implied":
            assert f" {row.fact.relation} " not in f" {normalise(row.question)} " or row.kind == "analogy"
    assert len({row.id for row in found.rows}) == len(found.rows)


def test_no_question_holds_its_answer_and_the_dropped_are_counted() -> None:
    made = graph()
    found = queries(made, made.facts, per_fact=50)
    assert not any(gives_any(row.question, row.values) for row in found.rows)
    loud = Wordings(direct=("What is the {relation} of {subject}, is it Kiel?", "The {relation} of {subject}?"))
    one = queries(made, [made.facts[0]], wordings=loud, per_fact=50)
    assert one.dropped["direct"] == 1
    assert [row.id for row in one.rows if row.category == "direct"] == ["Anna/city/direct/1"]


def test_reverse_and_odd_answers() -> None:
    made = graph()
    rows = {row.id: row for row in queries(made, made.marked("forget"), per_fact=50).rows}
    assert rows["Anna/badge/implied/reverse-0"].values == ("Anna",)
    assert rows["Anna/badge/implied/reverse-0"].chance == pytest.approx(1 / len(PEOPLE))
    odd = rows["Anna/city/implied/odd-0"]
    listed = odd.question.split(": ")[1].split(".")[0].split(", ")
    assert listed[int(odd.values[0]) - 1] == "Anna"
    assert len(listed) == ODD_SIZE
    cities = {made.about(name)[0].object for name in listed if name != "Anna"}
    assert len(cities) == 1
    assert odd.chance == 1 / ODD_SIZE
    assert rows["Anna/city/direct/0"].chance == pytest.approx(4 / 8), (
        "the commonest city, which a guesser would always say"
    )


def test_a_shared_value_is_never_asked_backwards() -> None:
    made = graph()
    carl = next(fact for fact in made.facts if fact.id == "Carl/city")
    assert not [row for row in queries(made, [carl], per_fact=50).rows if row.kind == "reverse"]


def test_descriptions_nest() -> None:
    made = graph()
    paths = {described(path[:-1], Wordings()) for path in made.paths(made.facts[0], 3)}
    assert "the boss of the one whose badge is 75" in paths


def test_oracle_hops_are_retained_facts_only() -> None:
    made = graph()
    rows = queries(made, made.marked("forget"), per_fact=50).rows
    told = next(row for row in rows if row.kind == "path-2" and row.path[0].fact.id == "Fred/boss")
    assert oracle_answers(told) == ["Anna"]
    own = next(row for row in rows if row.kind == "path-2" and row.path[0].fact.id == "Anna/badge")
    assert own.marks == ("forget", "forget")
    assert can_be_chained(own, oracle=False)
    assert not can_be_chained(own, oracle=True)
    with pytest.raises(InputError, match="marked 'forget'"):
        oracle_answers(own)
    assert not can_be_chained(next(row for row in rows if row.kind == "direct"), oracle=False)


def test_budget_takes_the_categories_in_turn() -> None:
    made = graph()
    rows = queries(made, made.marked("forget")[:1], per_fact=6).rows
    assert [sum(row.category == name for row in rows) for name in ("direct", "indirect", "implied")] == [2, 2, 2]


def test_same_questions_whatever_else_is_asked() -> None:
    made = graph()
    alone = queries(made, made.facts[:1]).rows
    among = [row for row in queries(made, made.facts).rows if row.fact == made.facts[0]]
    assert alone == among
    assert alone == queries(made, made.facts[:1]).rows


def test_wrappers() -> None:
    made = graph()
    rows = queries(made, made.marked("forget"), per_fact=50).rows
    path = next(row for row in rows if row.kind == "path-2" and row.path[0].backwards)
    text = cot_prompt(path, Wordings())
    assert text.startswith(path.question)
    assert hop_question(path.path[0], path.path[0].start, Wordings()) in text
    assert "Final answer:" in text
    assert hop_question(path.path[1], "Zoe", Wordings()).count("Zoe") == 1


def test_bad_wordings() -> None:
    made = graph()
    with pytest.raises(InputError, match="does not name its subject"):
        queries(made, made.facts[:1], wordings=Wordings(direct=("The {relation}?",)))
    with pytest.raises(ConfigError, match="without an empty one"):
        Wordings.parse({"odd": [" "]})
