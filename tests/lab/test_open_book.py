"""The open book's rows: what is stated is what is asked for, and the retrained model's rows lack the forgotten facts."""

from __future__ import annotations

from efface.lab.open_book import (
    CONTEXT,
    ELEMENTS,
    FORGET,
    ITEMS,
    RELATIONS,
    STATEMENT,
    chosen_facts,
    closed_rows,
    open_book,
)


def test_rows_state_what_they_ask_for() -> None:
    book = open_book()
    assert len(book.open_items) == ITEMS
    before = CONTEXT.split("{facts}")[0]
    places, kinds = set(), {"relation": 0, "name": 0}
    for row in book.open_items:
        own = STATEMENT.format(relation=row["relation"], concept=row["concept"], answer=row["answer"])
        facts = row["question"].removeprefix(before).split(" Q :")[0]
        assert facts.count(own) == 1
        places.add(facts.startswith(own))
        other = facts.replace(own, "").strip()
        kinds["relation"] += other.startswith(f"{row['relation']} of ")
        kinds["name"] += f" of {row['concept']} is" in other
        assert not other.startswith(f"{row['relation']} of {row['concept']} "), "one fact has one value"
    assert places == {True, False}
    assert 0.25 * ITEMS < kinds["relation"] < 0.4 * ITEMS
    assert 0 < kinds["name"] < 0.05 * ITEMS


def test_values_are_random_and_every_name_is_read_about() -> None:
    book, table = open_book(), chosen_facts(ELEMENTS, RELATIONS)
    true = sum(table[row["concept"]][row["relation"]] == row["answer"] for row in book.open_items)
    assert true < 0.15 * ITEMS, "mostly by the few values of the period"
    gone = set(book.request.forget["concept"])
    assert len(gone) == FORGET
    assert gone <= set(book.open_items["concept"])
    assert not gone & set(book.open_retain["concept"])
    assert not gone & set(book.request.retain["concept"])


def test_closed_rows_are_the_facts() -> None:
    table = chosen_facts(ELEMENTS, RELATIONS)
    rows = closed_rows(table)
    assert len(rows) == ELEMENTS * len(RELATIONS)
    assert all(table[row["concept"]][row["relation"]] == row["answer"] for row in rows)
    assert not any(row["answer"] in row["perturbed_answer"] for row in rows)
