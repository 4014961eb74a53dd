"""Tagged people: one-token names, the specification's sizes, sets that do not overlap."""

from __future__ import annotations

from itertools import combinations

import pytest

from efface.data.tagged import names_apart, normalise
from efface.errors import ConfigError
from efface.lab.tagged_people import CONFIG, COUNTRIES, DEATHS, FORMS, OCCUPATIONS, PROMPT, names, rows, tagged_request
from efface.learn.recipes.causal_lm import new_model


def test_the_specifications_sizes() -> None:
    assert (len(OCCUPATIONS), len(COUNTRIES), len(DEATHS), len(FORMS)) == (8, 24, 6, 3)
    assert len(names()) == 300
    assert len(rows()) == 300 * 3 * 3
    assert all(names_apart(*map(normalise, pair)) for pair in combinations(names()[:60], 2))


def test_every_name_is_one_token() -> None:
    subject = new_model(CONFIG, [f"{row['question']} {row['answer']}" for row in rows()], PROMPT)
    assert all(len(subject.tokenizer(name)["input_ids"]) == 1 for name in names())
    assert subject.tokenizer.unk_token_id not in subject.tokenizer(" ".join(names()))["input_ids"]


def test_names_for_tuning_and_test_do_not_meet() -> None:
    request = tagged_request()
    tuned, held = set(request.forget["concept"]), set(request.evaluate["held_out"]["concept"])
    assert (len(tuned), len(held)) == (240, 60)
    assert not tuned & held
    assert (
        {row[-1] for row in request.forget["id"]}
        == {row[-1] for row in request.evaluate["held_out"]["id"]}
        == {"0", "1"}
    )
    assert {row[-1] for row in request.evaluate["unseen_form"]["id"]} == {"2"}
    few = tagged_request(46)
    assert len(set(few.forget["concept"])) == 46
    assert few.evaluate["held_out"]["id"] == request.evaluate["held_out"]["id"]
    with pytest.raises(ConfigError, match="names for tuning"):
        tagged_request(241)
