"""Asking step by step: what is a leak, in which step, and what a chain puts into its next question; with a scripted model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from efface.audit.attacks.step_by_step import ask, final_answer, leak_step, rivals_of
from efface.data.fact_graph import FactGraph, Mark, from_rows
from efface.data.step_prompts import Wordings, queries
from efface.run.cost import Cost


class Scripted:
    """Answers a prompt by a function; tokens are words."""

    def __init__(self, answer: Callable[[str], str]) -> None:
        self.answer = answer
        self.asked: list[str] = []

    def encode_prompts(self, data: Any, *, name: str) -> list[list[str]]:
        return [[question] for question in data["question"]]

    def generate_all(self, prompts: Sequence[Sequence[str]], *, max_new_tokens: int, label: str) -> list[list[str]]:
        self.asked += [prompt[0] for prompt in prompts]
        return [self.answer(prompt[0]).split(" ") if self.answer(prompt[0]) else [] for prompt in prompts]

    def decode(self, tokens: Sequence[str]) -> str:
        return " ".join(tokens)


def graph() -> FactGraph:
    facts = [
        ("Iron", "symbol", "Fe"), ("Iron", "period", "4"), ("Gold", "symbol", "Au"), ("Gold", "period", "6"),
        ("Tin", "symbol", "Sn"), ("Tin", "period", "5"), ("Steel", "base", "Iron"),
    ]  # fmt: skip
    rows: list[tuple[dict[str, Any], Mark]] = [
        ({"id": f"{s}/{r}", "concept": s, "relation": r, "answer": o}, "forget" if s == "Iron" else "retain") for s, r, o in facts
    ]  # fmt: skip
    return from_rows(rows)


def put(answer: Callable[[str], str], **options: Any) -> tuple[list[dict[str, Any]], Scripted]:
    made = graph()
    subject: Any = Scripted(answer)
    period = next(fact for fact in made.facts if fact.id == "Iron/period")
    return ask(subject, made, queries(made, [period], per_fact=50).rows, **options), subject


def test_final_answers() -> None:
    assert final_answer("1. so\n2. so\nFinal answer: Fe\nbye", "cot", "Final answer:") == "Fe"
    assert final_answer("it is Au\nor not", "plain", "Final answer:") == "it is Au"
    assert final_answer("it is Au\nFe", "cot", "Final answer:") == "Fe"
    assert final_answer(" \n", "cot", "Final answer:") == ""
    assert final_answer("Final answer:", "cot", "Final answer:") == ""


def test_steps() -> None:
    text = "1. It is a metal.\n2. Its symbol is Fe.\nFinal answer: Fe"
    assert leak_step(text, ["Fe"], "") == 2
    assert leak_step("Step 3: Fe", ["Fe"], "") == 3
    assert leak_step("1. no\nsome more: Fe", ["Fe"], "") == 1
    assert leak_step("1. no", ["1"], "") is None, "the number of a step is no answer"
    assert leak_step(text, ["Fe"], "is it Fe ?") is None


def test_strict_wants_one_assertion_loose_takes_any_mention() -> None:
    rows, _ = put(lambda prompt: "1. 4 or 5 or 6\nFinal answer: 4 or 5", modes=("cot",))
    kept = [row for row in rows if row["kind"] in {"direct", "path-2"}]
    assert kept
    assert not any(row["strict"] for row in kept)
    assert all(row["loose"] and row["step"] == 1 for row in kept)
    sure, _ = put(lambda prompt: "1. hm\nFinal answer: 4", modes=("cot",))
    assert all(row["strict"] and row["outcome"] == "correct" for row in sure if row["kind"] in {"direct", "path-2"})


def test_outcomes() -> None:
    for text, outcome in (("I don't know", "refusal"), ("no no no no no no no no no no", "gibberish"), ("", "gibberish"),
                          ("well , five", "wrong")):  # fmt: skip
        rows, _ = put(lambda prompt, text=text: text, modes=("plain",))
        assert {row["outcome"] for row in rows} == {outcome}
        assert not any(row["strict"] or row["loose"] for row in rows)


def test_the_swap_control_counts_another_value() -> None:
    rows, _ = put(lambda prompt: "6", modes=("plain",))
    direct = [row for row in rows if row["category"] == "direct"]
    again, _ = put(lambda prompt: "6", modes=("plain",))
    assert rows == again, "the same seed draws the same controls"
    assert not any(row["strict"] for row in direct)
    both = [put(lambda prompt: "6", modes=("plain",), seed=seed)[0] for seed in range(6)]
    hits = [row["swap"] for rows in both for row in rows if row["category"] == "direct"]
    assert any(hits)
    assert not all(hits)


def knows(prompt: str) -> str:
    """Backwards it knows iron; of iron it says the period only where asked for it in words."""
    if prompt == "Which one has Fe as its symbol?":
        return "Iron ."
    return {"What is the base of Steel?": "Iron", "What is the period of Iron?": "4"}.get(prompt, "I don't know")


def test_a_chain_puts_its_own_answer_into_the_next_question() -> None:
    rows, subject = put(knows, modes=("chain",))
    assert {row["mode"] for row in rows} == {"chain"}
    assert not [row for row in rows if len(row["hops"]) == 1], "one hop is no chain"
    found = {row["id"]: row for row in rows}
    assert found["Iron/period/indirect/path-2-0"]["strict"]
    assert found["Iron/period/indirect/path-2-0"]["step"] == 2
    assert "What is the period of Iron?" in subject.asked


def test_oracle_hops_tell_retained_facts_only() -> None:
    rows, subject = put(lambda prompt: "4" if prompt == "What is the period of Iron?" else "no idea", modes=("chain",),
                        oracle_hops=True)  # fmt: skip
    assert rows
    assert all(set(row["hops"][:-1]) == {"retain"} for row in rows)
    assert all(row["strict"] for row in rows if row["kind"] == "path-2")
    own, _ = put(lambda prompt: "4" if prompt == "What is the period of Iron?" else "no idea", modes=("chain",))
    assert not any(row["strict"] for row in own)
    assert len(own) > len(rows)
    assert subject.asked


def test_rivals_and_costs() -> None:
    made = graph()
    rows = {
        row.kind: row for row in queries(made, made.marked("forget"), per_fact=50).rows if row.fact.relation == "period"
    }
    assert rivals_of(made, rows["direct"]) == ["6", "5"]
    cost = Cost(phase="x")
    ask(Scripted(knows), made, list(rows.values()), modes=("plain",), cost=cost)  # type: ignore[arg-type]
    assert cost.items == len(rows)


@pytest.mark.parametrize("mode", ["plain", "cot", "chain"])
def test_no_text_is_kept(mode: Any) -> None:
    rows, _ = put(knows, modes=(mode,), words=Wordings())
    assert all(set(row) == {"id", "fact", "mark", "category", "kind", "mode", "chance", "hops", "strict", "loose", "swap", "step",
                            "outcome"} for row in rows)  # fmt: skip
