"""Forgetting losses against slow plain loops, their limits and gradients, and their means under accumulation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from efface.data import Request
from efface.forget.method import find_method
from efface.forget.objective import ForgetBatch
from efface.forget.objectives import dpo_idk, gradient_ascent, npo, simnpo
from efface.forget.preference import preference_loss
from efface.forget.retain import kl_to_reference, nll
from efface.learn.recipes.causal_lm import CausalLMConfig, new_model
from efface.subjects import CausalLM, PromptFormat
from efface.subjects.answers import AnswerLogits

B, T, V = 4, 6, 11
MASK = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0]], dtype=torch.bool)


def answer(seed: int, requires_grad: bool = False) -> AnswerLogits:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(B, T, V, generator=generator)
    targets = torch.randint(0, V, (B, T), generator=generator).masked_fill(~MASK, 0)
    return AnswerLogits(logits.requires_grad_(requires_grad), targets, MASK)


def slow_logp(found: AnswerLogits, row: int) -> list[float]:
    """Log-probabilities of one row's answer tokens, by definition, in Python floats."""
    values = []
    for step in range(T):
        if found.mask[row, step]:
            scores = [float(x) for x in found.logits[row, step]]
            top = max(scores)
            total = math.log(sum(math.exp(x - top) for x in scores)) + top
            values.append(scores[int(found.targets[row, step])] - total)
    return values


def batch(found: AnswerLogits, ref: Tensor | None = None, other: AnswerLogits | None = None,
          other_ref: Tensor | None = None) -> ForgetBatch:  # fmt: skip
    share = torch.full((B,), 1 / int(MASK.sum()))
    return ForgetBatch(found, ref, other, other_ref, share, share, torch.full((B,), 1 / B))


def reference(seed: int) -> Tensor:
    return torch.tensor([sum(slow_logp(answer(seed), row)) for row in range(B)])


def test_gradient_ascent_and_retain_nll_are_the_token_mean() -> None:
    found = answer(0)
    every = [x for row in range(B) for x in slow_logp(found, row)]
    assert len(every) == int(MASK.sum())
    mean = sum(every) / len(every)
    assert float(gradient_ascent.loss(gradient_ascent.GradientAscentConfig(), batch(found))) == pytest.approx(
        mean, rel=1e-5
    )
    share = torch.full((B,), 1 / len(every))
    assert float(nll(found, share)) == pytest.approx(-mean, rel=1e-5)


@pytest.mark.parametrize("beta", [0.05, 0.5, 5.0])
def test_npo_against_a_loop(beta: float) -> None:
    found, ref = answer(0), reference(1)
    slow = 0.0
    for row in range(B):
        ratio = math.exp(sum(slow_logp(found, row)) - float(ref[row]))
        slow += 2 / beta * math.log(1 + ratio**beta) / B
    fast = npo.loss(npo.NPOConfig(beta=beta), batch(found, ref))
    assert float(fast) == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize(("beta", "margin"), [(4.5, 0.0), (2.5, 0.7)])
def test_simnpo_against_a_loop(beta: float, margin: float) -> None:
    found = answer(0)
    slow = 0.0
    for row in range(B):
        logp = slow_logp(found, row)
        inner = -beta / len(logp) * sum(logp) - margin
        slow += -2 / beta * math.log(1 / (1 + math.exp(-inner))) / B
    fast = simnpo.loss(simnpo.SimNPOConfig(beta=beta, margin=margin), batch(found))
    assert float(fast) == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_dpo_against_a_loop(beta: float) -> None:
    lose, win, lose_ref, win_ref = answer(0), answer(2), reference(1), reference(3)
    slow = 0.0
    for row in range(B):
        margin = sum(slow_logp(win, row)) - float(win_ref[row]) - (sum(slow_logp(lose, row)) - float(lose_ref[row]))
        slow += -2 / beta * math.log(1 / (1 + math.exp(-beta * margin))) / B
    fast = dpo_idk.loss(dpo_idk.DPOConfig(beta=beta), batch(lose, lose_ref, win, win_ref))
    assert float(fast) == pytest.approx(slow, rel=1e-5)


def test_the_gradient_of_npo_is_a_weighted_gradient_ascent() -> None:
    beta, ref = 0.7, reference(1)
    found = answer(0, requires_grad=True)
    (ours,) = torch.autograd.grad(npo.loss(npo.NPOConfig(beta=beta), batch(found, ref)), found.logits)
    pi = found.logp_sum.detach().double().exp()
    pi_ref = ref.double().exp()
    weight = 2 * pi**beta / (pi**beta + pi_ref**beta)  # [B], between 0 and 2
    for row in range(B):
        (ascent,) = torch.autograd.grad(found.logp_sum[row] / B, found.logits, retain_graph=True)
        torch.testing.assert_close(ours[row], (weight[row] * ascent[row].double()).float(), rtol=1e-4, atol=1e-7)


def test_npo_with_a_vanishing_beta_is_gradient_ascent() -> None:
    found, ref = answer(0, requires_grad=True), reference(1)
    (ours,) = torch.autograd.grad(npo.loss(npo.NPOConfig(beta=1e-5), batch(found, ref)), found.logits)
    (ascent,) = torch.autograd.grad(found.logp_sum.mean(), found.logits)
    torch.testing.assert_close(ours, ascent, rtol=1e-3, atol=1e-6)
    (strong,) = torch.autograd.grad(npo.loss(npo.NPOConfig(beta=1.0), batch(found, ref)), found.logits)
    assert not torch.allclose(strong, ascent, rtol=1e-2)


def test_one_preference_loss_gives_npo_and_dpo() -> None:
    win, lose = torch.tensor([0.3, -1.0]), torch.tensor([2.0, -4.0])
    both = preference_loss(win=win, lose=lose, beta=0.5)
    torch.testing.assert_close(both, 4 * torch.log1p(torch.exp(-0.5 * (win - lose))))
    alone = preference_loss(lose=lose, beta=0.5)
    torch.testing.assert_close(alone, 4 * torch.log1p(torch.exp(0.5 * lose)))
    torch.testing.assert_close(alone, npo.npo_loss(lose + 7, torch.full((2,), 7.0), 0.5))
    with pytest.raises(ValueError, match="beta"):
        preference_loss(win=win, beta=0.0)
    with pytest.raises(ValueError, match="side"):
        preference_loss(beta=1.0)


@pytest.mark.parametrize("beta", [0.1, 1.0, 10.0])
def test_a_thousand_nats_are_no_trouble(beta: float) -> None:
    logp = torch.tensor([-1000.0, 0.0, -5000.0], requires_grad=True)
    ref = torch.tensor([0.0, -1000.0, -5000.0])
    loss = npo.npo_loss(logp, ref, beta)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    torch.testing.assert_close(
        loss.detach(), torch.tensor([0.0, 2000.0, 2 / beta * math.log(2)]), rtol=1e-5, atol=1e-30
    )
    torch.testing.assert_close(gradient, torch.tensor([0.0, 2.0, 1.0]), rtol=1e-5, atol=1e-30)
    win = preference_loss(win=torch.tensor([-1000.0, 1000.0]), lose=torch.tensor([1000.0, -1000.0]), beta=beta)
    torch.testing.assert_close(win, torch.tensor([4000.0, 0.0]))


def slow_kl(ours: AnswerLogits, theirs: AnswerLogits) -> float:
    total = 0.0
    for row in range(B):
        for step in range(T):
            if MASK[row, step]:
                p = theirs.logits[row, step].double().softmax(-1).tolist()
                q = ours.logits[row, step].double().softmax(-1).tolist()
                total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / int(MASK.sum())


def cached_kl(ours: AnswerLogits, theirs: AnswerLogits, k: int) -> float:
    top = theirs.logits.log_softmax(-1).topk(k, dim=-1)
    return float(kl_to_reference(ours, top.indices, top.values, torch.full((B,), 1 / int(MASK.sum()))))


def test_kl_to_the_reference() -> None:
    ours, theirs = answer(0), answer(5)
    exact = slow_kl(ours, theirs)
    assert cached_kl(ours, theirs, V) == pytest.approx(exact, rel=1e-5)
    bounds = [cached_kl(ours, theirs, k) for k in (1, 3, 6, V - 1)]
    assert all(0 < bound <= exact + 1e-6 for bound in bounds)
    assert bounds == sorted(bounds)  # a finer partition loses less
    assert bounds[0] < 0.9 * exact
    assert cached_kl(theirs, theirs, 3) == pytest.approx(0.0, abs=1e-6)


def test_positions_outside_the_mask_do_not_count() -> None:
    ours, theirs = answer(0), answer(5)
    noise = 100 * torch.randn(B, T, V, generator=torch.Generator().manual_seed(9))
    noise = noise.masked_fill(MASK.unsqueeze(-1), 0.0)
    loud = AnswerLogits(ours.logits + noise, ours.targets, MASK)
    assert cached_kl(loud, theirs, 4) == pytest.approx(cached_kl(ours, theirs, 4), rel=1e-6)
    torch.testing.assert_close(loud.logp_sum, ours.logp_sum)
    changed = answer(0, requires_grad=True)
    npo.loss(npo.NPOConfig(), batch(changed, reference(1))).backward()
    assert changed.logits.grad is not None
    assert not changed.logits.grad[~MASK].any()
    assert changed.logits.grad[MASK].any()


FORM = PromptFormat(prompt="{question}")


def tiny() -> tuple[CausalLM, Request]:
    """One layer, and answers of unequal lengths, so that a mean of means would differ from the mean."""
    forget = [
        {"id": f"f{i}", "question": f"who is number {i} ?", "answer": "word " * (1 + i) + f"n{i}"} for i in range(8)
    ]
    retain = [
        {"id": f"r{i}", "question": f"where is number {i} ?", "answer": "place " * (8 - i) + f"m{i}"} for i in range(8)
    ]
    texts = sorted(row["question"] + " " + row["answer"] for row in [*forget, *retain])
    subject = new_model(CausalLMConfig(tokenizer="words", width=16, depth=1, heads=2, context=32), texts, FORM)
    return subject, Request.from_rows(forget, retain)


def trained(name: str, folder: Path, **extra: Any) -> dict[str, Tensor]:
    subject, request = tiny()
    method = find_method(name)
    config = method.configure({"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "warmup_ratio": 0.0, **extra})
    edit = method.fit(subject, request, config, work=folder / "work", out=folder / "edit").edit
    edit.apply(subject)
    return {key: value.detach().clone() for key, value in subject.weights().items()}


@pytest.mark.parametrize(
    ("name", "extra"),
    [("npo", {}), ("npo", {"retain_term": "kl"}), ("gradient-difference", {}), ("simnpo", {}), ("dpo-idk", {})],
)
def test_accumulation_changes_nothing(
    name: str, extra: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))
    whole = trained(name, tmp_path / "whole", micro_batch_size=8, **extra)
    parts = trained(name, tmp_path / "parts", micro_batch_size=1, **extra)
    start = {key: value.detach() for key, value in tiny()[0].weights().items()}
    assert max(float((whole[key] - start[key]).abs().max()) for key in start) > 1e-4
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], rtol=0, atol=1e-6)
