"""The inverted supervised contrast against plain loops, both denominators, empty rows, and its tie to the shared one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from efface.errors import InputError
from efface.numerics.contrast import Contrast, supervised_contrast
from efface.numerics.inverted_contrast import inverted_supcon, mean_counted
from efface.numerics.masks import Same

B, M, D = 7, 15, 5
TAU = 0.5  # one over it is a float32 number: the tiled log-sum-exp takes its scale in that precision


def unit(rows: int, seed: int) -> Tensor:
    raw = torch.randn(rows, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normalize(raw, dim=1).requires_grad_()


def labels(rows: int, seed: int, classes: int = 3) -> Tensor:
    return torch.randint(0, classes, (rows,), generator=torch.Generator().manual_seed(seed))


def slow(z: Tensor, y: Tensor, ctx: Tensor, y_ctx: Tensor, denominator: str, empty: str) -> list[Tensor | None]:
    """Anchor by anchor from the equation; None where it is left out."""
    losses: list[Tensor | None] = []
    for i in range(len(z)):
        s = [(z[i] * ctx[a]).sum() / TAU for a in range(len(ctx))]
        other = [a for a in range(len(ctx)) if y_ctx[a] != y[i]]
        below = [a for a in range(len(ctx)) if denominator == "all" or y_ctx[a] == y[i]]
        if not other or (not below and empty == "drop"):
            losses.append(None)
            continue
        total = sum((s[p].exp() for p in below), torch.zeros((), dtype=z.dtype)) if below else torch.ones(())
        losses.append(-sum((torch.log(s[a].exp() / total) for a in other), torch.zeros(())) / len(other))
    return losses


@pytest.mark.parametrize("denominator", ["all", "same_class"])
@pytest.mark.parametrize("empty", ["drop", "omit"])
def test_values_and_gradients_by_loops(denominator: Any, empty: Any) -> None:
    z, ctx = unit(B, 0), unit(M, 1)
    y, y_ctx = labels(B, 2), labels(M, 3)
    y[4] = 9  # a class that the context lacks
    found = inverted_supcon(z, y, ctx, y_ctx, TAU, denominator, empty)
    expected = slow(z, y, ctx, y_ctx, denominator, empty)
    for i, one in enumerate(expected):
        assert float(found.losses[i].detach()) == pytest.approx(0.0 if one is None else float(one.detach()), abs=1e-12)
        assert int(found.positives[i]) == (0 if one is None else int((y_ctx != y[i]).sum()))
    assert (expected[4] is None) == (denominator == "same_class" and empty == "drop")
    counted = [one for one in expected if one is not None]
    mean = torch.stack(counted).mean()
    assert float(mean_counted(found).detach()) == pytest.approx(float(mean.detach()), abs=1e-12)
    for one, other in zip(
        torch.autograd.grad(mean_counted(found), (z, ctx)), torch.autograd.grad(mean, (z, ctx)), strict=True
    ):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_all_is_the_shared_supervised_contrast_of_the_inverted_relation() -> None:
    z, ctx, y, y_ctx = unit(B, 4), unit(M, 5), labels(B, 6), labels(M, 7)
    found = inverted_supcon(z, y, ctx, y_ctx, TAU)
    shared = supervised_contrast(z, ctx, 1 / TAU, ~Same(y, y_ctx))
    assert torch.equal(found.positives, shared.positives)
    assert torch.allclose(found.losses, shared.losses, rtol=0, atol=1e-13)


def test_the_gradient_leaves_the_own_class_and_seeks_the_others() -> None:
    z = normalize(torch.tensor([[1.0, 0.2, 0.0]]), dim=1).requires_grad_()
    ctx = torch.eye(3)
    for denominator in ("all", "same_class"):
        found = inverted_supcon(z, torch.tensor([0]), ctx, torch.tensor([0, 1, 2]), TAU, denominator)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(found.losses.sum(), z)
        step = -gradient[0]
        assert step[0] < 0 < step[2]


def test_rows_without_context_of_one_kind_never_give_nan() -> None:
    """Published: log 0 and 0/0."""
    z, ctx = unit(3, 8), unit(4, 9)
    y = torch.tensor([0, 1, 5])
    only = torch.zeros(4, dtype=torch.long)
    found = inverted_supcon(z, y, ctx, only, TAU, "same_class")
    assert found.positives.tolist() == [0, 0, 0]
    assert found.losses.tolist() == [0.0, 0.0, 0.0]
    mean = mean_counted(found)
    assert float(mean.detach()) == 0.0
    for gradient in torch.autograd.grad(mean, (z, ctx)):
        assert not bool(gradient.any())
    omitted = inverted_supcon(z, y, ctx, only, TAU, "same_class", "omit")
    assert omitted.positives.tolist() == [0, 4, 4]
    assert float(omitted.losses[1].detach()) == pytest.approx(-float((ctx @ z[1]).mean().detach()) / TAU)


def test_small_temperatures_stay_finite() -> None:
    z, ctx, y, y_ctx = unit(B, 10), unit(M, 11), labels(B, 12), labels(M, 13)
    found = inverted_supcon(z, y, ctx, y_ctx, 1e-4, "same_class")
    assert bool(found.losses.isfinite().all())
    assert float(found.losses.detach().abs().max()) > 1e2


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
def test_refuses_a_temperature_that_is_none(tau: float) -> None:
    with pytest.raises(InputError, match="temperature"):
        inverted_supcon(unit(2, 0), labels(2, 0), unit(3, 1), labels(3, 1), tau)


def test_refuses_rows_that_are_not_unit_and_labels_that_do_not_fit() -> None:
    """The released model hands over rectified rows, which are not unit any more."""
    rectified = unit(4, 0).detach().relu()
    with pytest.raises(InputError, match=r"expected (unit rows|a direction)"):
        inverted_supcon(rectified, labels(4, 0), unit(3, 1), labels(3, 1), TAU)
    with pytest.raises(InputError, match="labels"):
        inverted_supcon(unit(4, 0), labels(3, 0), unit(3, 1), labels(3, 1), TAU)
    with pytest.raises(InputError, match="integers"):
        inverted_supcon(unit(4, 0), labels(4, 0).double(), unit(3, 1), labels(3, 1), TAU)


def test_an_empty_mean_is_zero() -> None:
    nothing = Contrast(torch.zeros(3, requires_grad=True), torch.zeros(3, dtype=torch.long))
    assert float(mean_counted(nothing).detach()) == 0.0
