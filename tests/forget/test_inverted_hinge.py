"""The inverted hinge: closed-form gradient, range, a plain loop, and what is not to be detached or skipped."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from efface.forget.objectives.inverted_hinge import METHOD, inverted_hinge, loss
from efface.subjects.answers import AnswerLogits


def random(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(5))
def test_the_gradient_in_closed_form(seed: int) -> None:
    logits = random(9, seed=seed).requires_grad_(True)
    y = seed
    (gradient,) = torch.autograd.grad(inverted_hinge(logits, torch.tensor(y)), logits)
    p = logits.detach().softmax(-1)
    others = p.clone()
    others[y] = -1
    top = int(others.argmax())
    m = p[top]
    expected = p * (m - p[y])
    expected[y] = p[y] * (1 - p[y] + m)
    expected[top] = -m * (1 + p[y] - m)
    assert torch.allclose(gradient, expected, rtol=1e-10, atol=1e-14)
    assert gradient[top] < 0, "m is not detached: descending lifts the runner-up"


def test_the_value_by_a_loop_and_its_range() -> None:
    logits, targets = random(4, 6, 11, scale=5.0), torch.arange(24).view(4, 6) % 11
    found = inverted_hinge(logits, targets)
    for b in range(4):
        for t in range(6):
            p = logits[b, t].softmax(-1)
            y = int(targets[b, t])
            m = max(float(p[v]) for v in range(11) if v != y)
            assert float(found[b, t]) == pytest.approx(max(0.0, 1 + float(p[y]) - m))
    assert bool((found >= 0).all())
    assert bool((found <= 2).all())
    sure = torch.tensor([50.0, 0.0, 0.0])
    assert float(inverted_hinge(sure, torch.tensor(0))) == pytest.approx(2.0)
    assert float(inverted_hinge(sure, torch.tensor(1))) == pytest.approx(0.0, abs=1e-6)


def test_softmax_also_where_all_logits_look_like_probabilities() -> None:
    logits = torch.tensor([0.9, 0.05, 0.05])
    p = logits.softmax(-1)
    assert float(inverted_hinge(logits, torch.tensor(0))) == pytest.approx(float(1 + p[0] - p[1]))
    assert float(inverted_hinge(logits, torch.tensor(0))) != pytest.approx(1.85)


def test_only_answer_tokens_count_and_halves_add_up() -> None:
    logits, targets = random(3, 5, 7).float(), torch.arange(15).view(3, 5) % 7
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)

    def batch(part: slice) -> Any:
        return SimpleNamespace(
            answer=AnswerLogits(logits[part], targets[part], mask[part]), token_share=torch.full((3,), 1 / 9)[part]
        )

    config = METHOD.configure()
    whole = float(loss(config, batch(slice(0, 3))))
    assert whole == pytest.approx(float(inverted_hinge(logits, targets)[mask].mean()), rel=1e-6)
    assert whole == pytest.approx(sum(float(loss(config, batch(slice(i, i + 1)))) for i in range(3)), rel=1e-6)
    changed = logits.clone()
    changed[~mask] = 1e4
    other = SimpleNamespace(answer=AnswerLogits(changed, targets, mask), token_share=torch.full((3,), 1 / 9))
    assert float(loss(config, other)) == pytest.approx(whole), "padding has no say"
