"""cMIM's densities and its contrastive factor."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Bernoulli, Independent, Normal

from efface.errors import InputError
from efface.numerics import mim


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_densities_are_torchs_summed_over_everything() -> None:
    z, mu, lv = draws(5, 3), draws(5, 3, seed=1), draws(5, 3, seed=2)
    torch.testing.assert_close(mim.log_posterior(z, mu, lv), Independent(Normal(mu, (0.5 * lv).exp()), 1).log_prob(z))
    torch.testing.assert_close(mim.log_prior(z), Normal(0.0, 1.0).log_prob(z).sum(1))
    x, said = (draws(5, 2, 4, 4) > 0).double(), draws(5, 2, 4, 4, seed=3)
    torch.testing.assert_close(mim.log_bernoulli(x, said), Bernoulli(logits=said).log_prob(x).sum((1, 2, 3)))
    torch.testing.assert_close(mim.log_gaussian(x, said, 0.3), Normal(said, 0.3).log_prob(x).sum((1, 2, 3)))


def test_a_sharp_posterior_is_rewarded_by_mim_and_punished_by_the_elbo() -> None:
    """Trap: the sign of log q. One dimension, z at its mean: MIM falls as the deviation falls, a VAE's loss rises."""
    z = torch.zeros(1, 1, dtype=torch.float64)
    values = {}
    for name, lv in {"wide": 0.0, "sharp": -4.0}.items():
        log_q = mim.log_posterior(z, z, torch.full_like(z, lv))
        values[name] = (mim.a_mim(z[0], log_q, mim.log_prior(z)), mim.negative_elbo(z[0], log_q, mim.log_prior(z)))
    assert float(values["sharp"][0] - values["wide"][0]) == pytest.approx(-1.0)  # 1/2 of a log density 2 larger
    assert float(values["sharp"][1] - values["wide"][1]) == pytest.approx(2.0)


def test_the_factor_against_plain_loops() -> None:
    z, t = draws(6, 4), 0.4
    unit = z / z.norm(dim=1, keepdim=True)
    for i, value in enumerate(mim.self_contrast(z, t, tile=2).tolist()):
        others = [math.exp(float(unit[i] @ unit[j]) / t) for j in range(6) if j != i]
        own = math.exp(1 / t)
        assert value == pytest.approx(-math.log(own / (own + sum(others) / 5)), rel=1e-6)
    assert torch.autograd.gradcheck(lambda x: mim.self_contrast(x, t), (z.requires_grad_(),))


@pytest.mark.parametrize("rows", [2, 8, 64])
def test_its_range_does_not_depend_on_the_batch(rows: int) -> None:
    same = torch.ones(rows, 3, dtype=torch.float64)
    torch.testing.assert_close(mim.self_contrast(same, 1.0), torch.full((rows,), math.log(2), dtype=torch.float64))
    apart = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(mim.self_contrast(apart, 1.0), torch.full((2,), math.log1p(math.exp(-2))).double())


def test_a_part_of_the_codes_against_all() -> None:
    z = draws(6, 4)
    whole = mim.self_contrast(z, 0.5)
    parts = [mim.self_contrast(z[i : i + 3], 0.5, codes_all=z, start=i) for i in (0, 3)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_one_code_has_nothing_to_be_told_from_and_a_zero_code_has_a_cosine_of_zero() -> None:
    with pytest.warns(UserWarning, match="one code"):
        assert mim.self_contrast(draws(1, 4), 1.0).tolist() == [0.0]
    z = draws(3, 4)
    z[1] = 0
    z.requires_grad_()
    found = mim.self_contrast(z, 1.0)
    assert float(found[1].detach()) == pytest.approx(math.log1p(math.exp(-1)))
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())


def test_bad_values_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        mim.log_bernoulli(torch.full((2, 3), 1.5), torch.zeros(2, 3))
    with pytest.raises(InputError, match="one shape"):
        mim.log_gaussian(torch.zeros(2, 3), torch.zeros(2, 4), 1.0)
    with pytest.raises(InputError, match="temperature"):
        mim.self_contrast(torch.zeros(2, 3), 0.0)
