"""The ladder of contexts: what each level says and must not say, and how distractors are chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from efface.data.columns import canonical
from efface.data.context_ladder import ContextForm, Given, check_lengths, growing, in_context, ladder, read_given
from efface.data.wording import plain_words, says
from efface.errors import ConfigError, InputError, RequestError

FORM = ContextForm(statement="{relation} of {concept} is {answer} .", context="ctx {facts} {question}")
TABLE = {
    "iron": {"symbol": "Fe", "number": "26", "period": "4"}, "gold": {"symbol": "Au", "number": "79", "period": "6"},
    "neon": {"symbol": "Ne", "number": "10", "period": "2"}, "zinc": {"symbol": "Zn", "number": "30", "period": "4"},
    "lead": {"symbol": "Pb", "number": "82", "period": "6"},
}  # fmt: skip


def rows(names: list[str], **more: Any) -> Any:
    return canonical(
        [
            {"id": f"{name}/{relation}", "question": f"Q : {relation} of {name} ?", "answer": value, "concept": name,
             "relation": relation, **more}
            for name in names for relation, value in TABLE[name].items()
        ], "rows",
    )  # fmt: skip


FORGET, RETAIN = rows(["iron"]), rows(["gold", "neon", "zinc", "lead"])


def test_every_level_says_what_it_must_and_nothing_more() -> None:
    made = ladder(
        FORGET,
        [RETAIN],
        FORM,
        k=3,
        given={"iron/symbol": Given(id="iron/symbol", axioms=("its Latin name is ferrum",))},
    )
    assert set(made.levels) == {"L0", "L1", "L2", "L3", "L4", "L5"}
    assert made.levels["L3"]["id"] == ["iron/symbol"]
    for row in made.levels["L0"]:
        own = {level: {r["id"]: r for r in data}.get(row["id"]) for level, data in made.levels.items()}
        name, relation = row["id"].split("/")
        said = {level: r["question"].removesuffix(row["question"]) for level, r in own.items() if r is not None}
        assert said["L0"] == ""
        assert name not in said["L1"]
        assert not any(says(said[level], [row["answer"]]) for level in said if level != "L4")
        assert name in said["L2"]
        assert f"{relation} of" not in said["L2"]
        assert said["L4"].count(f"{relation} of {name} is {row['answer']} .") == 1
        wrong = own["L5"]["answer"]
        assert wrong != row["answer"]
        assert f"{relation} of {name} is {wrong} ." in said["L5"]
        assert not says(said["L4"], [wrong])


def test_one_distractor_shares_the_relation_and_one_the_concept() -> None:
    made = ladder(FORGET, [RETAIN], FORM, k=2)
    for identity, facts in made.facts.items():
        name, relation = identity.split("/")
        others = [fact for fact in facts if not fact.startswith(f"{relation} of {name} ")]
        assert len(facts) == 3
        assert sum(fact.startswith(f"{relation} of ") for fact in others) == 1
        assert sum(f" of {name} " in fact for fact in others) == 1


def test_the_facts_place_is_drawn() -> None:
    many = canonical([{**row, "id": f"{row['id']}/{i}"} for i in range(12) for row in FORGET], "many")
    first = {facts.index(next(f for f in facts if " of iron is " in f and f.startswith(i.split("/")[1])))
             for i, facts in ladder(many, [RETAIN], FORM, k=2).facts.items()}  # fmt: skip
    assert first == {0, 1, 2}
    assert ladder(FORGET, [RETAIN], FORM, seed=1).facts == ladder(FORGET, [RETAIN], FORM, seed=1).facts
    assert ladder(FORGET, [RETAIN], FORM, seed=1).facts != ladder(FORGET, [RETAIN], FORM, seed=2).facts


def test_an_irrelevant_context_is_about_as_long() -> None:
    made = ladder(FORGET, [RETAIN], FORM, k=3).levels
    for one, four in zip(made["L1"], made["L4"], strict=True):
        assert abs(len(one["question"].split()) - len(four["question"].split())) <= 2


@pytest.mark.parametrize("level", ["hint", "axioms"])
@pytest.mark.parametrize("leak", ["it is F e, as they say", "FE.", "the alias Ferrum is there"])
def test_a_given_context_that_leaks_is_refused(level: str, leak: str) -> None:
    data = rows(["iron"], answer_aliases=["Ferrum"])
    given = {"iron/symbol": Given(id="iron/symbol", **{level: (leak,)})}
    with pytest.raises(InputError, match=r"iron/symbol.*says the answer") as error:
        ladder(data, [RETAIN], FORM, given=given)
    assert "Fe" not in str(error.value).split()


def test_without_columns_contexts_are_made_of_what_there_is() -> None:
    plain = [{"id": str(i), "question": f"What does p{i} like ?", "answer": f"colour{i}"} for i in range(6)]
    made = ladder(canonical(plain[:2], "f"), [canonical(plain[2:], "r")], ContextForm(), k=2)
    assert set(made.levels) == {"L0", "L1", "L4", "L5"}
    with pytest.raises(RequestError, match="has no relation, which the statement"):
        ladder(canonical(plain[:2], "f"), [], FORM)
    with pytest.raises(RequestError, match="no other answer"):
        ladder(canonical([{**plain[0], "answer": "x"}], "f"), [], ContextForm())
    with pytest.raises(ConfigError, match=r"has no \{answer\}"):
        ContextForm.parse({"statement": "{question}"})


def test_a_template_is_filled_once() -> None:
    assert in_context(FORM, ["{question}"], "q {facts}") == "ctx {question} q {facts}"
    assert in_context(FORM, [], "q") == "q"


def test_growing_contexts_hold_one_fact_more_each_time() -> None:
    made = ladder(FORGET, [RETAIN], FORM, k=2)
    data = growing(FORGET, made.facts, FORM, orders=3, seed=0)
    assert len(data) == 3 * 3 * 3
    by_id = dict(zip(data["id"], data["question"], strict=True))
    for identity, facts in made.facts.items():
        whole = [by_id[f"{identity}#{order}.3"] for order in range(3)]
        assert len(set(whole)) > 1
        for order in range(3):
            assert whole[order].startswith(by_id[f"{identity}#{order}.1"].split(" Q :")[0])
            assert all(fact in whole[order] for fact in facts)


def test_a_prompt_that_would_be_cut_is_refused() -> None:
    count = lambda text: len(plain_words(text))  # noqa: E731
    check_lengths(["a b c"], count, 5, spare=2)
    with pytest.raises(InputError, match="prompt 1 has 4 tokens"):
        check_lengths(["a", "a b c d"], count, 5, spare=2)


def test_given_contexts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "given.jsonl"
    path.write_text(
        json.dumps({"id": "a", "hint": ["h"]}) + "\n\n" + json.dumps({"id": "b", "axioms": ["x", "y"]}), "utf-8"
    )
    assert read_given(path)["b"].axioms == ("x", "y")
    for bad in ('{"id": 3}', "[1]", '{"id": "a", "hints": []}', "{"):
        path.write_text(bad, encoding="utf-8")
        with pytest.raises(InputError, match="line 1"):
            read_given(path)
    path.write_text('{"id": "a"}\n{"id": "a"}', encoding="utf-8")
    with pytest.raises(InputError, match="comes twice"):
        read_given(path)
    with pytest.raises(InputError, match="JSONL"):
        read_given(tmp_path / "none")


def test_random_distractors_need_not_be_alike() -> None:
    made = ladder(rows(list(TABLE)), [], FORM, k=1, alike=False)
    shared = [
        sum(fact.startswith(f"{identity.split('/')[1]} of ") for fact in facts) - 1
        for identity, facts in made.facts.items()
    ]
    assert {0, 1} == set(shared)
    strict = ladder(rows(list(TABLE)), [], FORM, k=1)
    assert all(
        sum(fact.startswith(f"{identity.split('/')[1]} of ") for fact in facts) == 2
        for identity, facts in strict.facts.items()
    )
