"""Corrupted: false values are false and of the relation, documents hold k true statements, and no row is on both sides."""

from __future__ import annotations

import pytest

from efface.errors import ConfigError
from efface.lab.corrupted import RANDOM, corrupted, false_values, interleaved, questions, statements
from efface.lab.facts import element_facts

TABLE = element_facts()
NAMES = list(TABLE)[::2]


def test_false_values_are_other_elements_values() -> None:
    values = false_values(TABLE, NAMES)
    assert values == false_values(TABLE, NAMES), "the same in every run"
    for (name, relation), (false, *rest) in values.items():
        pool = {TABLE[other][relation] for other in NAMES}
        assert false in pool - {TABLE[name][relation]}
        assert len(rest) == RANDOM
        assert not {false, TABLE[name][relation]} & set(rest)


def test_statements_carry_the_false_value_in_every_template() -> None:
    values = false_values(TABLE, NAMES)
    false, true = statements(TABLE, NAMES[:2], values), statements(TABLE, NAMES[:2], None)
    assert len(false) == len(true) == 2 * 4 * 3
    for own, other in zip(false, true, strict=True):
        assert own["question"] == other["question"]
        assert own["answer"] != other["answer"]
        assert own["answer"].startswith(values[own["concept"], own["relation"]][0])


@pytest.mark.parametrize("unrelated", [0, 2])
def test_documents(unrelated: int) -> None:
    false = statements(TABLE, NAMES[:2], false_values(TABLE, NAMES))
    true = statements(TABLE, NAMES[2:3], None)
    rows = interleaved(false, true, unrelated)
    assert len(rows) == len(false) * (1 + unrelated)
    assert rows[:: 1 + unrelated] == false
    assert len({row["id"] for row in rows}) == len(rows), "statements that come round again keep ids of their own"


def test_questions_have_the_false_value_first() -> None:
    values = false_values(TABLE, NAMES)
    asked = questions(TABLE, NAMES[:3], values)
    assert len(asked) == 12
    for row in asked:
        assert row["answer"] == TABLE[row["concept"]][row["relation"]]
        assert row["perturbed_answer"] == values[row["concept"], row["relation"]]


def test_bad_k() -> None:
    with pytest.raises(ConfigError, match="unrelated=-1"):
        corrupted(unrelated=-1)
