"""Multiple choice by likelihood: the three figures by hand, sums of log-probabilities, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from efface.audit.metrics.multiple_choice import Choices, choice_scores, mc_rows, multiple_choice
from efface.data.columns import canonical
from efface.errors import InputError, RequestError
from efface.subjects.answers import AnswerLogits


def test_the_three_figures_by_hand() -> None:
    each = Choices("q", true=(-2.0, -1.0, -5.0), false=(-1.5, -4.0))
    assert each.mc1 == 0.0, "the best answer is the first, not the likeliest true one"
    true, false = (sum(math.exp(x) for x in part) for part in (each.true, each.false))
    assert each.mc2 == pytest.approx(true / (true + false))
    assert each.mc3 == pytest.approx(1 / 3)
    assert Choices("q", true=(-1.0,), false=(-2.0,)).mc1 == 1.0
    assert Choices("q", true=(-1.0,), false=(-1.0,)).mc1 == 0.0, "a tie is not won"


def test_long_answers_do_not_underflow() -> None:
    each = Choices("q", true=(-2000.0,), false=(-2001.0,))
    assert each.mc2 == pytest.approx(1 / (1 + math.exp(-1)))


def test_rows_and_bad_input() -> None:
    found = mc_rows([Choices("a", (-1.0,), (-2.0,)), Choices("b", (-3.0, -1.0), (-2.0,))])
    assert found["mc1"].tolist() == [1.0, 0.0]
    assert found["mc3"].tolist() == [1.0, 0.5]
    with pytest.raises(InputError, match="no question"):
        mc_rows([])
    with pytest.raises(InputError, match="0 false answers"):
        Choices("a", (-1.0,), ())
    with pytest.raises(InputError, match="not a number"):
        Choices("a", (float("nan"),), (-1.0,))


def test_scores_are_sums_after_or_before_the_softmax() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)) * 3
    targets = torch.tensor([[1, 2, 3], [4, 0, 0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    answer = AnswerLogits(logits, targets, mask)
    for post in (True, False):
        slow = []
        for row in range(2):
            total = 0.0
            for t in range(3):
                if mask[row, t]:
                    values = logits[row, t].tolist()
                    own = values[int(targets[row, t])]
                    total += own - (math.log(sum(map(math.exp, values))) if post else 0.0)
            slow.append(total)
        assert choice_scores(answer, post_softmax=post).tolist() == pytest.approx(slow, abs=1e-4)


def test_a_model_that_knows_wins(tiny: Any, request_: Any) -> None:
    def swapped(answer: str, wrong: str) -> str:
        return answer.replace(answer.split()[4], wrong.split()[2])

    rows = [
        {
            "id": row["id"],
            "question": row["question"],
            "answer": row["answer"],
            "answer_aliases": [row["paraphrased_answer"]],
            "perturbed_answer": [swapped(row["answer"], wrong) for wrong in row["perturbed_answer"]],
        }
        for row in request_.forget
    ]
    found = multiple_choice(tiny, canonical(rows, "rows"))
    assert [each.id for each in found] == [row["id"] for row in rows]
    assert mc_rows(found)["mc1"].mean() == 1.0
    assert len(found[0].true) == 2
    assert len(found[0].false) == 2
    # by hand, one row, no batch
    row = tiny.encode(rows[3]["question"], rows[3]["perturbed_answer"][1])
    with torch.no_grad():
        logp = tiny.model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
    slow = sum(float(logp[t - 1, row.ids[t]]) for t in range(row.n_prompt, len(row.ids)))
    assert found[3].false[1] == pytest.approx(slow, abs=1e-3)
    one = multiple_choice(tiny, canonical(rows, "rows"), batch_size=1)
    assert [each.false for each in one] == [pytest.approx(each.false, abs=1e-3) for each in found]
    with pytest.raises(RequestError, match="perturbed_answer"):
        multiple_choice(tiny, request_.forget.remove_columns("perturbed_answer"))
