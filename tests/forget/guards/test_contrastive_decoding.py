"""Contrastive decoding as pure functions: loops, bounds, and the traps of the official codes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from efface.errors import ConfigError
from efface.forget.guards.contrastive_decoding import (
    GENERATING,
    at_layer,
    candidate_layers,
    contrast,
    divergence,
    dola_scores,
    farthest_layer,
    icd_scores,
    lol_scores,
    masked,
    plausible,
)


def rows(seed: int, *shape: int, scale: float = 2.0) -> Tensor:
    """Log-probabilities [..., V]."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).log_softmax(-1)


def test_plausible_against_a_loop() -> None:
    logp = rows(0, 4, 7)
    for alpha in (0.05, 0.1, 0.5):
        kept = plausible(logp, alpha)
        for row, mine in zip(logp.exp().tolist(), kept.tolist(), strict=True):
            assert mine == [p >= alpha * max(row) for p in row]


@pytest.mark.parametrize("alpha", [0.0, 1e-3, 0.1, 1.0])
def test_at_least_one_token_is_plausible(alpha: float) -> None:
    for logp in (rows(1, 5, 9, scale=30.0), torch.zeros(5, 9).log_softmax(-1)):
        assert bool(plausible(logp, alpha).any(-1).all())
    assert bool(plausible(rows(2, 5, 9), 0.0).all())


def test_trap_the_mask_is_each_rows_own() -> None:
    """DoLa's code masks the whole batch by row 0."""
    logp = torch.tensor([[0.98, 0.01, 0.01], [0.01, 0.01, 0.98]]).log()
    scores = masked(torch.zeros(2, 3), plausible(logp, 0.1), GENERATING)
    assert scores.argmax(-1).tolist() == [0, 2]
    assert torch.isinf(scores[1, :2]).all()


def test_trap_filter_after_the_subtraction() -> None:
    """-inf minus -inf is no number; a token that the base forbids is implausible, whatever the amateur says."""
    b = torch.tensor([0.5, 0.5, 0.0]).log()
    for a in (torch.tensor([0.2, 0.8, 0.0]).log(), torch.tensor([0.2, 0.3, 0.5]).log()):
        scores = masked(icd_scores(b, a), plausible(b, 0.0), GENERATING)
        assert not torch.isnan(scores).any()
        assert scores[2] == -math.inf


def test_jensen_shannon_is_symmetric_and_bounded() -> None:
    p, q = rows(3, 50, 6, scale=5.0), rows(4, 50, 6, scale=5.0)
    found = divergence(p, q)
    torch.testing.assert_close(found, divergence(q, p))
    assert bool((found >= 0).all())
    assert bool((found <= math.log(2) + 1e-6).all())
    torch.testing.assert_close(divergence(p, p), torch.zeros(50), atol=1e-6, rtol=0)
    one, other = torch.tensor([1.0, 0.0]).log(), torch.tensor([0.0, 1.0]).log()
    assert float(divergence(one, other)) == pytest.approx(math.log(2))
    slow = [
        0.5 * sum(a * math.log(2 * a / (a + b)) + b * math.log(2 * b / (a + b)) for a, b in zip(x, y, strict=True))
        for x, y in zip(p.exp().tolist(), q.exp().tolist(), strict=True)
    ]
    assert found.tolist() == pytest.approx(slow, abs=1e-5)


def test_trap_dolas_code_takes_the_other_divergence_and_a_mean() -> None:
    p, q = rows(5, 40, 6, scale=3.0), rows(6, 40, 6, scale=3.0)
    m = (p.exp() + q.exp()) / 2
    theirs = sum(functional.kl_div(x, m, reduction="none").mean(-1) for x in (p, q)) / 2
    torch.testing.assert_close(divergence(p, q, compat=True), theirs)
    exits = torch.stack([rows(seed, 200, 6, scale=4.0) for seed in (7, 8, 9)])
    b = rows(10, 200, 6, scale=4.0)
    ours, compat = farthest_layer(b, exits), farthest_layer(b, exits, compat=True)
    assert bool((ours != compat).any()), "the choice of the layer can differ"


def test_dola_chooses_a_layer_for_every_row() -> None:
    b, exits = rows(11, 3, 5), torch.stack([rows(seed, 3, 5) for seed in (12, 13)])
    chosen = farthest_layer(b, exits)
    scores = dola_scores(b, exits)
    for row in range(3):
        values = [float(divergence(b[row], each[row])) for each in exits]
        best = values.index(max(values))
        assert int(chosen[row]) == best
        torch.testing.assert_close(scores[row], b[row] - exits[best, row])
    assert len(set(chosen.tolist())) > 1 or len(b) == 1
    two = torch.tensor([[0, 1, 1]] * 2)  # [2, 3]: every position of every row
    picked = at_layer(torch.stack([exits[:1].squeeze(0).expand(2, 3, 5), exits[1:].squeeze(0).expand(2, 3, 5)]), two)
    torch.testing.assert_close(picked[1, 2], exits[1, 2])


def test_lol_is_icd_without_its_parts() -> None:
    b, a, low_b, low_a, told = (rows(seed, 4, 6) for seed in range(20, 25))
    last = icd_scores(b, a)
    assert lol_scores(last, None, None, None, b, omega=0.0, gamma=0.0) is last
    torch.testing.assert_close(last, b - a)
    made = lol_scores(last, low_b, low_a, told, b, omega=0.5, gamma=0.25)
    torch.testing.assert_close(made, (b - a) + 0.5 * (low_b - low_a) + 0.25 * (told - b))


def test_the_form_for_unlearning_leaves_what_both_agree_on() -> None:
    b, a = rows(30, 4, 6), rows(31, 4, 6)
    for relu in (False, True):
        torch.testing.assert_close(icd_scores(b, b, keep=1.0, strength=3.0, relu=relu), b)
    torch.testing.assert_close(icd_scores(b, b), torch.zeros(4, 6))  # published: at random among the plausible
    torch.testing.assert_close(icd_scores(b, a, keep=1.0, strength=0.7), b - 0.7 * (a - b))
    expected = b - 0.7 * torch.relu(a - b)
    torch.testing.assert_close(icd_scores(b, a, keep=1.0, strength=0.7, relu=True), expected)
    assert bool((contrast(b, a, relu=True) <= 0).all())


def test_candidate_layers() -> None:
    assert candidate_layers("low", 32) == tuple(range(0, 16, 2))
    assert candidate_layers("high", 32) == tuple(range(16, 32, 2))
    assert candidate_layers("2,0", 4) == (0, 2)
    assert candidate_layers("high", 2) == (1,)
    for text in ("", "middle", "4", "-1"):
        with pytest.raises(ConfigError, match="candidates"):
            candidate_layers(text, 4)
    with pytest.raises(ConfigError, match="of 1 layers"):
        candidate_layers("low", 1)
