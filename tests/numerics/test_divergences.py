"""f-divergences: the conjugate at the activation against the supremum that defines it, and the direction of each form."""

from __future__ import annotations

import pytest
import torch

from efface.errors import ConfigError
from efface.numerics.divergences import F_DIVERGENCES, f_divergence

EXACT = [name for name, row in F_DIVERGENCES.items() if not row.series]


def supremum(name: str, t: float) -> float:
    """sup_u (u t - f(u)) over a fine grid of u in (0, 400)."""
    u = torch.cat(
        [torch.logspace(-9, 0, 200_001, dtype=torch.float64), torch.linspace(1, 400, 400_001, dtype=torch.float64)]
    )
    return float((u * t - F_DIVERGENCES[name].f(u)).max())


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("v", [-0.9, -0.3, 0.05, 0.4, 0.75, 0.95])
def test_the_conjugate_is_the_supremum(name: str, v: float) -> None:
    row = F_DIVERGENCES[name]
    x = torch.tensor(v, dtype=torch.float64)
    assert float(row.f_star_g(x)) == pytest.approx(supremum(name, float(row.g(x))), abs=2e-5)


def test_the_series_of_jeffrey_lacks_only_the_next_term() -> None:
    for v, bound in ((0.05, 1e-6), (0.2, 1e-4), (0.5, 2e-3)):
        x = torch.tensor(v, dtype=torch.float64)
        row = F_DIVERGENCES["jeffrey"]
        assert abs(float(row.f_star_g(x)) - supremum("jeffrey", float(row.g(x)))) < bound


def test_neyman_at_the_raw_v_is_another_function() -> None:
    """The official code's slip: f* taken at v, not at g(v), whose slope explodes as v -> 1."""
    v = torch.tensor(0.99, dtype=torch.float64, requires_grad=True)
    (wrong,) = torch.autograd.grad(2 - 2 * (1 - v).sqrt(), v)
    (right,) = torch.autograd.grad(F_DIVERGENCES["neyman"].f_star_g(F_DIVERGENCES["neyman"].argument(v)), v)
    assert float(wrong) > 9
    assert 0 < float(right) < 1


@pytest.mark.parametrize("name", F_DIVERGENCES)
def test_activation_and_conjugate_grow_with_the_argument(name: str) -> None:
    row = F_DIVERGENCES[name]
    v = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert bool((row.g(row.argument(v)).diff() > 0).all())
    assert bool((row.f_star_g(row.argument(v)).diff() > 0).all())
    assert row.rising == bool(row.g(v)[-1] > row.g(v)[0])


@pytest.mark.parametrize("name", F_DIVERGENCES)
def test_every_generator_is_zero_at_one_and_convex(name: str) -> None:
    u = torch.linspace(0.05, 4, 400, dtype=torch.float64)
    f = F_DIVERGENCES[name].f
    assert float(f(torch.ones((), dtype=torch.float64))) == pytest.approx(0, abs=1e-12)
    assert bool((f(u).diff().diff() > -1e-12).all())


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    assert f_divergence("kl").name == "kl"
    with pytest.raises(ConfigError, match="did you mean 'pearson'"):
        f_divergence("pearsons")
