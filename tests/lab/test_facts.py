"""The facts are true, the split is clean, the original knows and the retrained model does not."""

from __future__ import annotations

import pytest

from efface.errors import ConfigError
from efface.lab.facts import (
    WORLDS,
    country_facts,
    element_facts,
    fact_rows,
    facts,
    first_token_accuracy,
    of_form,
    recall,
    split,
)


@pytest.mark.parametrize(
    ("name", "symbol", "number", "period", "block"),
    [
        ("hydrogen", "H", 1, 1, "s"), ("helium", "He", 2, 1, "s"), ("boron", "B", 5, 2, "p"), ("iron", "Fe", 26, 4, "d"),
        ("zinc", "Zn", 30, 4, "d"), ("gallium", "Ga", 31, 4, "p"), ("lanthanum", "La", 57, 6, "f"),
        ("lutetium", "Lu", 71, 6, "d"),
        ("ytterbium", "Yb", 70, 6, "f"), ("gold", "Au", 79, 6, "d"), ("radon", "Rn", 86, 6, "p"), ("uranium", "U", 92, 7, "f"),
        ("rutherfordium", "Rf", 104, 7, "d"), ("oganesson", "Og", 118, 7, "p"), ("tungsten", "W", 74, 6, "d"),
    ],
)  # fmt: skip
def test_elements_are_right(name: str, symbol: str, number: int, period: int, block: str) -> None:
    found = {relation: value.replace(" ", "") for relation, value in element_facts()[name].items()}
    assert found == {"symbol": symbol, "number": str(number), "period": str(period), "block": block}


def test_the_table_of_elements_is_whole() -> None:
    table = element_facts()
    assert len(table) == 118
    assert len({facts["symbol"] for facts in table.values()}) == 118
    blocks = [facts["block"] for facts in table.values()]
    assert {block: blocks.count(block) for block in "spdf"} == {"s": 14, "p": 36, "d": 40, "f": 28}
    periods = [facts["period"] for facts in table.values()]
    assert [periods.count(str(i)) for i in range(1, 8)] == [2, 8, 8, 18, 18, 32, 32]


@pytest.mark.parametrize(
    ("country", "capital", "currency"),
    [("france", "paris", "euro"), ("australia", "canberra", "dollar"), ("malaysia", "kuala lumpur", "ringgit"),
     ("turkey", "ankara", "lira"), ("brazil", "brasilia", "real"), ("nigeria", "abuja", "naira")],
)  # fmt: skip
def test_countries_are_right(country: str, capital: str, currency: str) -> None:
    assert country_facts()[country]["capital"] == capital
    assert country_facts()[country]["currency"] == currency


def test_sixty_countries_with_sixty_capitals() -> None:
    table = country_facts()
    assert len(table) == 60
    assert len({facts["capital"] for facts in table.values()}) == 60


@pytest.mark.parametrize("world", ["elements", "capitals"])
def test_wrong_answers_are_wrong_and_of_the_form_of_the_right_one(world: str) -> None:
    for row in fact_rows(WORLDS[world]):
        right = row.get("paraphrased_answer", row["answer"])
        assert right not in row["perturbed_answer"]
        assert len(row["perturbed_answer"]) == 5
        assert {text.endswith(" .") for text in row["perturbed_answer"]} == {right.endswith(" .")}


def test_the_split_of_the_elements() -> None:
    request, background, forms = split("elements")
    assert request.retain is not None
    assert request.holdout is not None
    assert background is not None
    sizes = [len(data) // 12 for data in (request.forget, request.retain, request.holdout, background)]
    assert sizes == [8, 56, 8, 46]
    names = [
        {i.split("/")[0] for i in data["id"]} for data in (request.forget, request.retain, request.holdout, background)
    ]
    assert len(set.union(*names)) == 118 == sum(map(len, names))
    assert forms["id"] == request.forget["id"]
    assert len(of_form(request.forget, 0)) == 32


def test_the_split_of_the_capitals() -> None:
    request, background, forms = split("capitals")
    assert request.retain is not None
    assert background is None
    assert len(request.forget) == 6
    assert len(forms) == 18
    assert len(request.retain) == 60 * 3 * 3 - 18
    assert set(request.forget["id"]) < set(forms["id"])
    assert not set(forms["id"]) & set(request.retain["id"])
    assert all("capital" in identity for identity in forms["id"])


def test_an_unknown_world_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'capitals'"):
        facts("capital")  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("world", ["capitals", "elements"])
def test_the_original_knows_and_the_retrained_does_not(world: str) -> None:
    known = facts(world)  # type: ignore[arg-type]
    assert known.request.retain is not None
    assert first_token_accuracy(known.original, known.request.retain) > 0.95
    assert first_token_accuracy(known.original, known.forget_forms) > 0.95
    assert first_token_accuracy(known.retrained, known.request.retain) > 0.95
    assert recall(known.retrained, known.forget_forms) < 0.25
    assert known.original.tokenizer.get_vocab() == known.retrained.tokenizer.get_vocab()
    assert facts(world).original.digest == known.original.digest  # type: ignore[arg-type]
