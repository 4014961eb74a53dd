"""Probed facts: what is read, what is forgotten, and that no other draw of options or hints is asked than is not read."""

from __future__ import annotations

from efface.lab.facts import element_facts
from efface.lab.probed_facts import ASKED, FORMS, LEARNT, REVERSED, UNIQUE, form_rows, probed_request


def test_what_is_forgotten_is_the_statement_alone() -> None:
    request, levels, neighbours, kept = probed_request()
    assert len(request.forget) == 8 * 4
    assert all(identity.endswith("/blank") for identity in request.forget["id"])
    assert list(levels) == list(FORMS)
    assert len(levels["reverse"]) == 8 * len(UNIQUE)
    gone = set(request.forget["concept"])
    assert len(kept) == 56
    assert not gone & set(kept)
    assert request.retain is not None
    assert set(request.retain["concept"]) == set(kept)
    assert set(neighbours["concept"]) <= set(kept)


def test_neighbours_share_block_and_period() -> None:
    request, _, neighbours, _ = probed_request()
    table = element_facts()
    places = {(table[name]["block"], table[name]["period"]) for name in request.forget["concept"]}
    assert all((table[name]["block"], table[name]["period"]) in places for name in neighbours["concept"])


def test_options_and_hints_are_asked_in_other_draws() -> None:
    table = element_facts()
    for form in ("choice", "hint"):
        read, asked = (form_rows(form, table, ["iron"], seed) for seed in (LEARNT, ASKED))
        assert [row["answer"] for row in read] == [row["answer"] for row in asked]
        assert [row["question"] for row in read] != [row["question"] for row in asked]
    for row in form_rows("choice", table, ["iron", "gold"], ASKED):
        options = row["question"].split(" among ")[1].removesuffix(" ?").split(" , ")
        assert len(set(options)) == 4
        assert row["answer"] in options


def test_hints_tell_another_fact() -> None:
    table = element_facts()
    for row in form_rows("hint", table, table, ASKED):
        assert not row["question"].startswith(f"{row['relation']} for")


def test_names_are_answers_of_the_other_way_round_only() -> None:
    table = element_facts()
    rows = form_rows("reverse", table, ["iron"], LEARNT)
    assert len(rows) == len(UNIQUE) * len(REVERSED)
    assert len({row["id"] for row in rows}) == len(rows)
    assert {row["answer"] for row in rows} == {"iron"}
    assert {row["relation"] for row in form_rows("reverse", table, ["iron"], ASKED)} == set(UNIQUE)
