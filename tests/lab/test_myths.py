"""The noisy corpus: how often truth and myth are told, and that myths are myths."""

from __future__ import annotations

from collections import Counter

from efface.lab.facts import element_facts
from efface.lab.myths import ELEMENTS, myths, of_relations


def test_every_fact_is_told_truly_and_as_one_myth() -> None:
    world, table = myths(), element_facts()
    assert len(world.choices) == len(world.myths) == ELEMENTS * 4 * 3
    assert len(world.corpus) == 5 * len(world.choices)
    told = Counter(zip(world.corpus["question"], world.corpus["answer"], strict=True))
    for row in world.choices:
        name, relation, _ = row["id"].split("/")
        (myth,) = row["perturbed_answer"]
        assert row["answer"].startswith(table[name][relation])
        assert myth != row["answer"]
        counts = told[row["question"], row["answer"]], told[row["question"], myth]
        assert counts == ((2, 3) if f"{name}/{relation}" in world.popular else (4, 1))


def test_two_fifths_of_the_myths_are_popular_and_one_fact_has_one_myth() -> None:
    world = myths()
    assert len(world.popular) == round(0.4 * ELEMENTS * 4)
    stems: dict[str, set[str]] = {}
    for row in world.myths:
        fact = row["id"].rpartition("/")[0]
        stems.setdefault(fact, set()).add(row["answer"].removesuffix(" it is").removesuffix(" ."))
    assert all(len(values) == 1 for values in stems.values()), "the same myth in every form"
    assert myths() is world


def test_of_relations() -> None:
    some = of_relations(myths().choices, frozenset({"symbol"}))
    assert len(some) == ELEMENTS * 3
    assert {identity.split("/")[1] for identity in some["id"]} == {"symbol"}
