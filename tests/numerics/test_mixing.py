"""Mixes of embeddings: their logits without them, draws from a step's generator, the hardest keys tile by tile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from efface.errors import InputError
from efface.numerics.masks import Same
from efface.numerics.mixing import (
    SHORTEST,
    draw,
    draw_beta,
    gathered_dots,
    gathered_scores,
    hardest,
    mix,
    mix_scores,
    mix_square,
    seeded,
)


def unit(seed: int, *size: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*size, generator=generator, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("normalised", [False, True])
def test_scores_are_those_of_the_mixes(normalised: bool) -> None:
    q, u, v = unit(0, 6, 5), unit(1, 6, 9, 5), unit(2, 6, 9, 5)
    share = torch.rand(6, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    inner = [(q[:, None] * x).sum(2) for x in (u, v)]
    dots = (u * v).sum(2)
    made = mix(u, v, share, normalise=normalised)
    found = mix_scores(*inner, share, dots if normalised else None)
    torch.testing.assert_close(found, (q[:, None] * made).sum(2), atol=1e-12, rtol=0)
    if normalised:
        torch.testing.assert_close(made.norm(dim=2), torch.ones(6, 9, dtype=torch.float64))
    else:
        torch.testing.assert_close(made.square().sum(2), mix_square(share, dots), atol=1e-12, rtol=0)


def test_nearly_opposite_halves_stay_finite_and_short() -> None:
    """n_i = -n_j and a = 1/2: the mix has no direction; normalising must neither divide by zero nor blow up."""
    q = unit(4, 1, 5).float().requires_grad_()
    u = unit(5, 1, 5).float()
    half = torch.tensor([0.5])
    score = mix_scores((q * u).sum(1), (q * -u).sum(1), half, torch.tensor([-1.0]))
    assert float(score.detach().abs()) < 1e-3
    (grad,) = torch.autograd.grad(score.sum(), q)
    assert torch.isfinite(grad).all()
    assert float(mix(u, -u, half, normalise=True).norm()) < 1
    # a sliver off: at most 1, whatever rounding makes of the squared length
    for step in torch.linspace(0, 1e-6, 50):
        share = half + step
        value = mix_scores((u * u).sum(1), (u * -u).sum(1), share, torch.tensor([-1.0]))
        assert abs(float(value)) <= float(2 * step / SHORTEST) + 1e-3


def test_a_step_draws_the_same_again_and_another_step_other_numbers() -> None:
    like = torch.zeros(())
    first, again, other, seed = (draw(seeded(s, t), 4, like=like) for s, t in ((0, 7), (0, 7), (0, 8), (1, 7)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, seed)
    assert torch.equal(*(draw_beta(seeded(0, 7), 3, a=2, b=8) for _ in range(2)))
    state = torch.get_rng_state()
    draw_beta(seeded(0, 0), 3, a=2, b=8)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"


def test_beta_has_its_mean() -> None:
    found = draw_beta(seeded(0, 0), 200, 100, a=2, b=8)
    assert float(found.mean()) == pytest.approx(0.2, abs=0.003)
    assert 0 < float(found.min()) < float(found.max()) < 1


@pytest.mark.parametrize("tile", [None, 4])
def test_hardest_are_the_top_of_the_whole_matrix(tile: int | None) -> None:
    q, keys = unit(6, 7, 5), unit(7, 30, 5)
    ids, of_keys = torch.arange(7), torch.arange(30) % 9
    scores = (q @ keys.T).masked_fill(ids[:, None] == of_keys[None, :], -torch.inf)
    expected, places = scores.topk(28, dim=1)
    found, index, count = hardest(q, keys, 28, exclude=Same(ids, of_keys), tile=tile)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert count.tolist() == torch.isfinite(expected).sum(1).tolist()
    assert min(count.tolist()) < 28 == max(28, *count.tolist()), "some rows have fewer than were asked for"
    for row, n in enumerate(count.tolist()):
        assert index[row, :n].tolist() == places[row, :n].tolist()
    with pytest.raises(InputError, match=r"31 hardest of 30 keys.*hard"):
        hardest(q, keys, 31)


def test_gathered_products_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from efface.numerics import mixing

    monkeypatch.setattr(mixing, "GATHERED", 60)  # several parts
    q, keys = unit(8, 7, 5).requires_grad_(), unit(9, 20, 5)
    generator = torch.Generator().manual_seed(0)
    places, others = (torch.randint(20, (7, 4), generator=generator) for _ in range(2))
    weights = torch.rand(7, 4, generator=generator, dtype=torch.float64)
    found = gathered_scores(q, keys, places)
    dense = (q[:, None] * keys[places]).sum(2)
    torch.testing.assert_close(found, dense, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        *(torch.autograd.grad((x * weights).sum(), q)[0] for x in (found, dense)), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(gathered_dots(keys, places, others), (keys[places] * keys[others]).sum(2))
    assert gathered_scores(q, keys, places[:, :0]).shape == (7, 0)
