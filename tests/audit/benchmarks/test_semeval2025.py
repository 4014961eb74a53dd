"""The SemEval-2025 score: the specification's unit cases, the parts of a real model, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from efface.audit.benchmarks.semeval2025 import (
    PARTS,
    Part,
    Row,
    document_nll,
    first_sentence,
    harmonic_mean,
    membership_score,
    mmlu_average,
    option_choices,
    outputs,
    read_rows,
    semeval2025,
    semeval_score,
    value,
)
from efface.errors import InputError, RequestError

PERFECT = {part: [0.0, 0.0] if part.split == "forget" else [1.0, 1.0] for part in PARTS}
CHANCE = ([1.0, 2.0], [1.0, 2.0])


def test_a_perfect_unlearner() -> None:
    found = semeval_score(PERFECT, *CHANCE, 0.5)
    assert (found.aggregate, found.auc.value, found.membership) == (1.0, 0.5, 1.0)
    assert found.final == pytest.approx(2.5 / 3)
    assert round(found.final, 3) == 0.833
    assert found.eligible


def test_a_memoriser_has_nothing() -> None:
    found = semeval_score({part: [1.0, 1.0] for part in PARTS}, [1.0, 1.1], [2.0, 2.1], 0.2)
    assert (found.aggregate, found.membership) == (0.0, 0.0)
    assert found.final == pytest.approx(0.2 / 3)
    assert not found.eligible


def test_one_zero_part_hides_the_others_and_is_printed() -> None:
    bad = Part("forget", 2, "qa")
    found = semeval_score({**PERFECT, bad: [1.0, 1.0]}, *CHANCE, 0.5)
    assert found.aggregate == 0.0
    lines = found.lines()
    assert len([line for line in lines if "task " in line and "n = 2" in line]) == 12
    assert next(line for line in lines if ": 0.000" in line).startswith("forget task 2 qa: 0.000")


def test_the_sums_by_hand() -> None:
    values = {part: [0.25] if part.split == "forget" else [0.5] for part in PARTS}
    found = semeval_score(values, [1.0, 2.0, 5.0], [3.0, 4.0], 0.371)
    assert found.aggregate == pytest.approx(12 / (6 / 0.75 + 6 / 0.5))
    assert found.auc.value == pytest.approx(4 / 6)  # the lower loss is the member's
    assert found.membership == pytest.approx(1 - 2 * (4 / 6 - 0.5))
    assert found.eligible
    assert found.auc.low is not None
    assert found.auc.low < found.auc.value < found.auc.high


@pytest.mark.parametrize(("auc", "score"), [(0.5, 1.0), (1.0, 0.0), (0.0, 0.0), (0.75, 0.5), (0.25, 0.5)])
def test_over_forgetting_costs_as_much_as_remembering(auc: float, score: float) -> None:
    assert membership_score(auc) == pytest.approx(score)


def test_values() -> None:
    assert value("qa", "  Paris ", "paris") == 1.0
    assert value("qa", "Paris. And more", "paris") == 0.0  # a chatty model fails, on retain rows too
    assert value("qa", first_sentence("Paris\nAnd more"), "paris") == 1.0
    assert value("sc", "the cats sat", "the cat sat") == 1.0  # stemmed
    assert value("sc", "the cat", "the cat sat down") == 0.5
    assert value("sc", "", "the cat") == 0.0


def test_first_sentences() -> None:
    assert first_sentence("It is 3.5 m. Really.") == "It is 3.5 m."
    assert first_sentence("no end") == "no end"


def test_means() -> None:
    assert harmonic_mean([0.5, 1.0]) == pytest.approx(2 / 3)
    assert harmonic_mean([0.0, 1.0]) == 0.0
    assert mmlu_average({"a": [True, False], "b": [True] * 10}) == 0.75  # subjects, not questions
    for bad in ({}, {"a": []}):
        with pytest.raises(InputError, match="MMLU"):
            mmlu_average(bad)
    with pytest.raises(InputError, match="0 to 1"):
        harmonic_mean([1.2])


def test_rows_of_the_release() -> None:
    data = [
        {"id": "3dsc1", "input": "a", "output": "b", "task": "Task1"},
        {"id": "8bqa2", "input": "a", "output": "b", "task": 3},
    ]
    assert [row.part for row in read_rows(data, "retain")] == [Part("retain", 1, "sc"), Part("retain", 3, "qa")]
    for change, match in (({"id": "x"}, "'sc' or 'qa'"), ({"task": "4"}, "1, 2 or 3")):
        with pytest.raises(RequestError, match=match):
            read_rows([{**data[0], **change}], "forget")
    with pytest.raises(RequestError, match="no column 'output'"):
        read_rows([{"id": "sc", "input": "a", "task": 1}], "forget")


def test_what_is_missing_is_named() -> None:
    with pytest.raises(InputError, match="no rows for forget task 1 sc"):
        semeval_score({part: values for part, values in PERFECT.items() if part != PARTS[0]}, *CHANCE, 0.5)
    with pytest.raises(InputError, match=r"MMLU 1\.5"):
        semeval_score(PERFECT, *CHANCE, 1.5)


def test_a_model(tiny: Any, request_: Any) -> None:
    asked = [tiny.prompt.prompt_text(tiny.tokenizer, q) for q in request_.forget["question"]]
    rows = [
        Row(f"{i}", asked[i % len(asked)], request_.forget["answer"][i % len(asked)], part)
        for i, part in enumerate(PARTS)
    ]
    texts = outputs(tiny, rows, batch_size=5)
    assert texts[:2] == outputs(tiny, rows[:2])
    members = [f"{q} {a}" for q, a in zip(asked, request_.forget["answer"], strict=True)]
    others = ["blue likes ? person3 colour .", "Which person5 red red ."]
    found = semeval2025(tiny, rows, members, others, 0.4)
    assert set(found.parts) == set(PARTS)
    assert found.auc.value == 1.0
    assert 0 <= found.final <= 1


def test_document_losses_and_options(tiny: Any, request_: Any) -> None:
    import torch

    nll = document_nll(tiny, ["the colour red", "likes blue"])
    ids = torch.tensor([tiny.tokenizer("the colour red")["input_ids"]])
    with torch.no_grad():
        expected = float(tiny.model(input_ids=ids, labels=ids).loss)
    assert nll[0] == pytest.approx(expected, rel=1e-5)
    question, answer = request_.retain["question"][0], request_.retain["answer"][0]
    wrong = request_.retain["perturbed_answer"][0]
    assert option_choices(tiny, [question, question], [[*wrong, answer], [answer, *wrong]]) == [len(wrong), 0]
    with pytest.raises(InputError, match="two options"):
        option_choices(tiny, ["a"], [["b"]])
    with pytest.raises(RequestError, match="document 0: 1 tokens"):
        document_nll(tiny, ["red"])
    with pytest.raises(RequestError, match="row 'x': an input of"):
        outputs(tiny, [Row("x", "red " * 80, "a", PARTS[0])])
    assert np.isfinite(nll).all()
