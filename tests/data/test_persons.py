"""The demo's persons: counts, no overlap, honest wrong answers, the same bits from the same seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from efface.data import Request
from efface.data.persons import (
    ATTRIBUTES,
    AUTHORS,
    CAPITALS,
    make_persons,
    person_rows,
    person_sets,
    persons_request,
    write_persons,
)
from efface.data.request import data_digest
from efface.errors import InputError

SETS = person_sets()
PERSONS = {person.key: person for person in make_persons(48)}


def facts_in(text: str, attribute: Any) -> set[str]:
    """The words of the attribute's pools that stand in a text."""
    words = text.replace(".", " ").replace(",", " ").split()
    return {word for word in words if word in attribute.first or word in attribute.second}


def rows_of_persons() -> list[dict[str, Any]]:
    return [*SETS["forget"], *SETS["holdout"], *SETS["retain_evaluation"]]


def test_every_set_has_its_size() -> None:
    sizes = {name: len(rows) for name, rows in SETS.items()}
    assert sizes == {
        "forget": 48, "retain": 192 + 80, "holdout": 48, "retain_evaluation": 96, "real_authors": 40, "world_facts": 40,
    }  # fmt: skip


def test_ids_and_questions_with_answers_are_unique_over_all_training_and_holdout_rows() -> None:
    rows = SETS["forget"] + SETS["retain"] + SETS["holdout"]
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({(row["question"], row["answer"]) for row in rows}) == len(rows)


def test_no_person_stands_in_two_sets() -> None:
    keys = [{row["id"].split("-")[0] for row in SETS[name]} for name in ("forget", "holdout", "retain")]
    assert [len(part & set(PERSONS)) for part in keys] == [8, 8, 32]
    assert len(keys[0] | keys[1] | keys[2]) == sum(len(part) for part in keys)
    assert len({person.name for person in PERSONS.values()}) == 48


def test_the_answer_and_its_paraphrase_tell_the_fact_in_different_words() -> None:
    for row in rows_of_persons():
        key, name = row["id"].split("-")
        attribute = next(entry for entry in ATTRIBUTES if entry.name == name)
        first, second = PERSONS[key].facts[name]
        for text in (row["answer"], row["paraphrased_answer"]):
            assert PERSONS[key].name in text
            assert facts_in(text, attribute) == {first, second}
        assert PERSONS[key].name in row["question"]
        assert not facts_in(row["question"], attribute)
        assert row["answer"] != row["paraphrased_answer"]


def test_wrong_answers_have_the_form_of_the_paraphrase_and_no_word_of_the_fact() -> None:
    for row in rows_of_persons():
        key, name = row["id"].split("-")
        attribute = next(entry for entry in ATTRIBUTES if entry.name == name)
        first, second = PERSONS[key].facts[name]
        assert len(set(row["perturbed_answer"])) == 5
        for text in row["perturbed_answer"]:
            a, b = (
                next(w for w in pool if w in facts_in(text, attribute)) for pool in (attribute.first, attribute.second)
            )
            assert a != first
            assert b != second
            true = attribute.value.format(a=first, b=second)
            assert text.replace(attribute.value.format(a=a, b=b), true) == row["paraphrased_answer"]


def test_real_facts_have_three_other_answers() -> None:
    for rows, facts in ((SETS["world_facts"], CAPITALS), (SETS["real_authors"], AUTHORS)):
        assert len(facts) == 40
        for row in rows:
            assert len(set(row["perturbed_answer"]) - {row["answer"]}) == 3
            assert set(row["perturbed_answer"]) <= set(facts.values())
    assert {row["question"]: row["answer"] for row in SETS["world_facts"]}["What is the capital of Japan?"] == "Tokyo"


def test_the_retained_persons_use_every_name_and_every_word_of_every_pool() -> None:
    kept = [person for person in PERSONS.values() if person.key < "p32"]
    for position in (0, 1):
        counts = Counter(person.name.split()[position] for person in kept)
        assert set(counts.values()) == {2}
        assert len(counts) == 16
        for attribute in ATTRIBUTES:
            pool = (attribute.first, attribute.second)[position]
            assert {person.facts[attribute.name][position] for person in kept} == set(pool)


def test_every_form_of_question_and_answer_is_trained_for_every_attribute() -> None:
    rows = [row for person in PERSONS.values() if person.key < "p32" for row in person_rows(person)]
    for attribute in ATTRIBUTES:
        mine = [row for row in rows if row["id"].endswith("-" + attribute.name)]
        for templates, column in ((attribute.questions, "question"), (attribute.answers, "answer")):
            for template in templates:
                fixed = max(template.replace("{value}", "{name}").split("{name}"), key=len)
                assert sum(fixed in row[column] for row in mine) >= 4, template


def test_the_seed_decides_everything() -> None:
    one, again, other = persons_request(3), persons_request(3), persons_request(4)
    digests = [{name: data_digest(data) for name, data in request.sets().items()} for request in (one, again, other)]
    assert digests[0] == digests[1]
    assert digests[0]["forget"] != digests[2]["forget"]


def test_the_request_is_what_the_files_say(tmp_path: Path) -> None:
    paths = write_persons(tmp_path)
    read = Request.load(
        paths["forget"], paths["retain"], paths["holdout"],
        {"retain": paths["retain_evaluation"], **{name: paths[name] for name in ("real_authors", "world_facts")}},
    )  # fmt: skip
    made = persons_request()
    assert {n: data_digest(d) for n, d in read.sets().items()} == {n: data_digest(d) for n, d in made.sets().items()}
    assert list(made.evaluation_sets()) == ["forget", "retain", "real_authors", "world_facts", "holdout"]


def test_more_persons_than_names_is_an_error() -> None:
    assert len({person.name for person in make_persons(256)}) == 256
    with pytest.raises(InputError, match="257 persons"):
        make_persons(257)
