"""Hops: what is said of an element, who is forgotten, and that no forgotten statement is kept."""

from __future__ import annotations

from efface.data.fact_graph import from_rows
from efface.lab.facts import element_facts, split
from efface.lab.hops import direct_rows, graph_rows, inverse_rows, statements, two_hop_rows


def test_statements_say_what_the_table_says() -> None:
    table = {"iron": element_facts()["iron"]} if "iron" in element_facts() else {"Iron": element_facts()["Iron"]}
    (name,) = table
    (inverse,) = inverse_rows(table)
    assert (inverse["question"], inverse["answer"]) == ("which has symbol F e is", name)
    two = {row["question"]: row["answer"] for row in two_hop_rows(table)}
    assert two["the period for symbol F e is"] == "4"
    assert len(direct_rows([name])) == 12


def test_the_request_and_the_rest_are_apart() -> None:
    former, _, _ = split("elements")
    gone = {identity.split("/")[0] for identity in former.forget["id"]}
    assert former.retain is not None
    kept = {identity.split("/")[0] for identity in former.retain["id"]}
    request, direct, paraphrase, inverse, two_hop, keep = statements(gone, kept)
    assert [len(part) for part in (direct, paraphrase, inverse, two_hop, keep)] == [64, 32, 8, 24, 448]
    assert not set(direct["question"]) & set(paraphrase["question"])
    assert request.retain is not None
    assert {identity.split("/")[0] for identity in request.retain["id"]} == kept
    assert not gone & kept


def test_the_graph_marks_whole_elements() -> None:
    made = from_rows(graph_rows())
    marks = {fact.subject: {other.mark for other in made.about(fact.subject)} for fact in made.facts}
    assert all(len(own) == 1 for own in marks.values())
    assert len(made.marked("forget")) == 32
    assert len(made.marked("retain")) == 224
