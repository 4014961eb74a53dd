"""The skills are what they say, the splits are clean, and a trained model can do both (slow)."""

from __future__ import annotations

import pytest

from efface.lab.facts import recall
from efface.lab.skills import COPIES, WORDS, skill_model, skills


def test_rows_are_right_and_apart() -> None:
    world = skills()
    retain = world.request.retain
    assert retain is not None
    sums = {*world.request.forget["id"], *world.sums["id"]}
    assert (len(world.request.forget), len(world.sums), len(sums)) == (60, 40, 100)
    for row in [*world.request.forget, *world.sums]:
        a, plus, b, end = row["question"].split()
        assert (plus, end) == ("+", "=")
        assert row["answer"] == str((int(a) + int(b)) % 10)
    trained = [i for i in world.training["id"] if i.startswith("word/")]
    splits = [set(trained), set(retain["id"]), set(world.words["id"])]
    assert [len(part) for part in splits] == [WORDS["train"], WORDS["retain"], WORDS["test"]]
    assert len(set.union(*splits)) == sum(map(len, splits)), "no word stands in two splits"
    assert len(world.training) - len(trained) == 100 * COPIES
    for row in world.words:
        assert row["question"].split() == [*reversed(row["answer"].split()), "="]
    assert skills().request.forget["id"] == world.request.forget["id"]


def test_marked_prompts_say_what_they_are() -> None:
    plain, marked = skills(), skills(marked=True)
    assert marked.request.forget["id"] == plain.request.forget["id"]
    assert marked.words["answer"] == plain.words["answer"]
    assert {q.split()[0] for q in marked.training["question"]} == {"add", "turn"}
    assert {q.split()[-1] for q in marked.training["question"]} == {"=", ":"}
    assert {q.split()[-1] for q in plain.training["question"]} == {"="}
    assert {len(q.split()) for q in plain.training["question"]} == {4}


@pytest.mark.slow
@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_model_can_do_both(seed: int, marked: bool) -> None:
    model, world = skill_model(seed, marked=marked), skills(marked=marked)
    assert recall(model, world.sums) == 1
    assert recall(model, world.words) >= 0.99
