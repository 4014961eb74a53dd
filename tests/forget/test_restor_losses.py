"""RESTOR's losses against slow loops: one ratio a sequence, or one a batch, and padding that counts for nothing."""

from __future__ import annotations

import math

import pytest
import torch

from efface.forget.restor_losses import restor_cross_entropy, restor_npo

G = torch.Generator().manual_seed(0)
LOGP, REF = (-torch.rand(3, 5, generator=G) * 3 for _ in range(2))
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]], dtype=torch.bool)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_sequences(beta: float) -> None:
    total = 0.0
    for row in range(3):
        ratio = sum(float(LOGP[row, t] - REF[row, t]) for t in range(5) if MASK[row, t])
        total += 2 / beta * softplus(beta * ratio) / 3
    assert float(restor_npo(LOGP, REF, MASK, beta)) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_official_takes_one_ratio_of_batch_means(beta: float) -> None:
    ours, theirs = (sum(-float(x[r, t]) for r in range(3) for t in range(5) if MASK[r, t]) / 10 for x in (LOGP, REF))
    expected = -2 / beta * math.log(1 / (1 + math.exp(-beta * (ours - theirs))))
    assert float(restor_npo(LOGP, REF, MASK, beta, official_restor=True)) == pytest.approx(expected, rel=1e-5)


def test_official_depends_on_the_batch_and_the_other_does_not() -> None:
    alone = [restor_npo(LOGP[i : i + 1], REF[i : i + 1], MASK[i : i + 1], 1.0) for i in range(3)]
    assert float(restor_npo(LOGP, REF, MASK, 1.0)) == pytest.approx(float(sum(alone)) / 3, rel=1e-5)
    official = [
        restor_npo(LOGP[i : i + 1], REF[i : i + 1], MASK[i : i + 1], 1.0, official_restor=True) for i in range(3)
    ]
    whole = float(restor_npo(LOGP, REF, MASK, 1.0, official_restor=True))
    assert abs(whole - float(sum(official)) / 3) > 1e-3


def test_padding_counts_for_nothing() -> None:
    other = torch.where(MASK, LOGP, torch.full_like(LOGP, float("-inf")))
    for official in (False, True):
        ours = restor_npo(LOGP, REF, MASK, official_restor=official)
        assert torch.equal(ours, restor_npo(other, REF, MASK, official_restor=official))


def test_cross_entropy_against_loops() -> None:
    logp, ref = (torch.randn(2, 3, 4, generator=G).log_softmax(-1) for _ in range(2))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    expected = sum(
        -math.exp(float(logp[b, t, v])) * float(ref[b, t, v]) for b in range(2) for t in range(3) for v in range(4) if mask[b, t]
    ) / 3  # fmt: skip
    assert float(restor_cross_entropy(logp, ref, mask)) == pytest.approx(expected, rel=1e-5)
