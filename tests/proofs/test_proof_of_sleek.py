"""The proof of sleek: its questions are those that the lab's models have read; what does not hold is named."""

from __future__ import annotations

import pytest

from efface.data.step_prompts import queries
from efface.lab.hops import two_hop_rows
from efface.proofs.sleek import PROOF, WORDS, lab_graph


def test_the_suite_asks_in_the_words_that_the_models_have_read() -> None:
    graph = lab_graph()
    made = queries(graph, graph.marked("forget"), wordings=WORDS, per_fact=100, longest=2)
    names = {fact.subject for fact in graph.marked("forget")}
    table = {name: {fact.relation: fact.object for fact in graph.about(name)} for name in names}
    read = {row["question"] for row in two_hop_rows(table)}
    asked = {row.question for row in made.rows if row.kind == "path-2"}
    dropped = read - asked
    assert len(asked & read) >= 20
    assert len(dropped) <= 4, "only those whose question holds the answer"
    assert {row.kind for row in made.rows} == {"direct", "path-2", "reverse"}


@pytest.mark.slow
def test_what_holds_and_what_does_not() -> None:
    """Gradient difference leaves direct accuracy at 0.31 on the worst seed where below 0.3 is asked; the rest must hold."""
    result = PROOF.run()
    missed = [check.name for check in result.checks if not check.holds]
    assert [name.split(" (")[0] for name in missed] == ["gradient-difference: direct accuracy"]
