"""The fact graph: rows of one fact are one, paths against a slow search, marks, tables, and its refusals."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from efface.data import Request
from efface.data.fact_graph import FactGraph, Hop, Mark, from_request, from_rows, read_table
from efface.errors import RequestError

WORLD: list[tuple[str, str, str, Mark]] = [
    ("Anna", "city", "Ulm", "forget"), ("Anna", "boss", "Carl", "retain"), ("Carl", "boss", "Dora", "retain"),
    ("Bert", "city", "Ulm", "retain"), ("Bert", "boss", "Anna", "retain"), ("Dora", "badge", "77", "none"),
    ("Eva", "child", "Carl", "retain"), ("Eva", "child", "Anna", "retain"),
]  # fmt: skip


def graph() -> FactGraph:
    rows: list[tuple[dict[str, Any], Mark]] = [
        ({"id": f"{s}/{r}", "concept": s, "relation": r, "answer": o, "question": f"{r} of {s} ?"}, mark)
        for s, r, o, mark in WORLD
    ]  # fmt: skip
    return from_rows(rows)


def slow_paths(made: FactGraph, target: Any, length: int) -> set[tuple[tuple[str, bool], ...]]:
    """All sequences of hops, tried one by one."""
    found = set()
    hops = [Hop(fact, backwards) for fact in made.facts for backwards in (False, True)]
    for first in itertools.product(hops, repeat=length - 1):
        path = (*first, Hop(target))
        joined = all(a.end == b.start for a, b in itertools.pairwise(path))
        places = [path[0].start, *(hop.end for hop in path)]
        sure = all(
            (sum(o.relation == h.fact.relation and o.object == h.fact.object for o in made.facts) == 1) if h.backwards
            else (sum(o.relation == h.fact.relation and o.subject == h.fact.subject for o in made.facts) == 1) for h in first
        )  # fmt: skip
        if joined and sure and len(set(places)) == len(places):
            found.add(tuple((hop.fact.id, hop.backwards) for hop in path))
    return found


@pytest.mark.parametrize("length", [1, 2, 3])
def test_paths_are_those_of_a_slow_search(length: int) -> None:
    made = graph()
    some = 0
    for fact in made.facts:
        ours = [tuple((hop.fact.id, hop.backwards) for hop in path) for path in made.paths(fact, length)]
        assert len(ours) == len(set(ours))
        assert set(ours) == slow_paths(made, fact, length)
        some += len(ours)
    assert some


def test_a_description_means_one_entity() -> None:
    made = graph()
    anna = made.marked("forget")[0]
    ways = {(hop.fact.id, hop.backwards) for hop in made.arriving("Anna")}
    assert ("Bert/boss", False) in ways
    assert ("Anna/city", True) not in ways, "Bert lives in Ulm too"
    assert ("Eva/child", False) not in ways, "Eva has two children"
    assert not made.tells_apart(anna)


def test_wordings_of_one_fact_are_one_fact() -> None:
    rows: list[tuple[dict[str, Any], Mark]] = [
        ({"id": "a", "concept": "Iron", "relation": "symbol", "answer": "Fe", "question": "symbol ?"}, "forget"),
        ({"id": "b", "concept": "iron", "relation": "Symbol", "answer": "Fe.", "question": "how is it written ?",
          "answer_aliases": ["ferrum"]}, "forget"),
    ]  # fmt: skip
    (fact,) = from_rows(rows).facts
    assert fact.id == "a"
    assert fact.questions == ("symbol ?", "how is it written ?")
    assert fact.values == ("Fe", "ferrum")


def test_one_fact_has_one_mark() -> None:
    row = {"concept": "Iron", "relation": "symbol", "answer": "Fe"}
    with pytest.raises(RequestError, match="same fact"):
        from_rows([({**row, "id": "a"}, "forget"), ({**row, "id": "b"}, "retain")])
    assert from_rows([({**row, "id": "a"}, "none"), ({**row, "id": "b"}, "forget")]).facts[0].mark == "forget"


def test_missing_columns_and_empty_facts() -> None:
    with pytest.raises(RequestError, match="no concept and no relation"):
        from_rows([({"id": "x", "answer": "y"}, "forget")])
    with pytest.raises(RequestError, match="a letter or digit each"):
        from_rows([({"concept": "...", "relation": "r", "answer": "y"}, "forget")])
    with pytest.raises(RequestError, match="without a fact"):
        from_rows([])


def test_tables_and_requests(tmp_path: Path) -> None:
    rows = [{"concept": s, "relation": r, "answer": o, "mark": mark} for s, r, o, mark in WORLD]
    (tmp_path / "facts.json").write_text(json.dumps(rows))
    lines = ["concept,relation,answer,mark,answer_aliases"]
    lines += [f'{row["concept"]},{row["relation"]},{row["answer"]},{row["mark"]},"[""x y""]"' for row in rows]
    (tmp_path / "facts.csv").write_text("\n".join(lines))
    plain = Request.from_rows([{"question": "who ?", "answer": "me"}], [{"question": "where ?", "answer": "here"}])
    one, other = (from_request(plain, tmp_path / name) for name in ("facts.json", "facts.csv"))
    assert (
        [fact.key for fact in one.facts] == [fact.key for fact in other.facts] == [fact.key for fact in graph().facts]
    )
    assert other.facts[0].aliases == ("x y",)
    assert len(one.marked("forget")) == 1
    with pytest.raises(RequestError, match="no concept and no relation"):
        from_request(plain)
    own = Request.from_rows([{"question": "q", "answer": "Bonn", "concept": "Gerd", "relation": "city"}])
    assert [fact.mark for fact in from_request(own, tmp_path / "facts.json").facts].count("forget") == 2


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("t.txt", "", ".json or .csv"), ("t.json", "{}", "no table"), ("t.json", "[", "no table"),
        ("t.json", '[{"mark": "keep"}]', "mark 'keep'"), ("t.json", '[{"answer_aliases": "x"}]', "a list of texts"),
        ("t.csv", "concept,answer_aliases\nx,[", "no table"),
    ],
)  # fmt: skip
def test_bad_tables(tmp_path: Path, name: str, text: str, match: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RequestError, match=match):
        read_table(tmp_path / name)


def test_nothing_to_forget(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text(json.dumps([{"concept": "a", "relation": "b", "answer": "c"}]))
    with pytest.raises(RequestError, match="no fact is marked"):
        from_request(Request.from_rows([{"question": "q", "answer": "a"}]), tmp_path / "facts.json")
