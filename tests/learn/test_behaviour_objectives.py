"""Simple, hard and gap-closing losses: loops, limits, tiles, and two processes that add up to one."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from efface.errors import ConfigError, InputError
from efface.learn.objective import Embedded, Recipe
from efface.learn.objectives import clip_uniformity as gap
from efface.learn.objectives import hard_contrastive as hard
from efface.learn.objectives import simple_contrastive as simple
from efface.learn.objectives.clip_uniformity import CLIPUniformityConfig, clip_uniformity
from efface.learn.objectives.hard_contrastive import HardContrastiveConfig, hard_contrastive
from efface.learn.objectives.simple_contrastive import SimpleContrastiveConfig, simple_contrastive
from efface.numerics.sphere import alignment, cross_uniformity, uniformity

N = 14


def rows(n: int = N, d: int = 5, seed: int = 0) -> Tensor:
    return normalize(torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1)


def batch(first: Tensor, second: Tensor, ids: Tensor | None = None, temperature: float = 1.0) -> Embedded:
    return Embedded(
        first, second, first, second, torch.tensor(1 / temperature, dtype=torch.float64), ids=ids, ids_all=ids
    )


def looped_simple(s: Tensor, push: float | None, negatives: list[list[int]]) -> float:
    total = 0.0
    for i, others in enumerate(negatives):
        weight = 1 / len(others) if push is None else push
        total += -float(s[i, i]) + weight * sum(float(s[i, j]) for j in others)
    return total / len(s)


def hardest(s: Tensor, negatives: list[list[int]], share: float) -> list[list[int]]:
    found = []
    for i, others in enumerate(negatives):
        count = max(1, math.ceil(share * len(others) - 1e-9))
        found.append(sorted(others, key=lambda j, i=i: -float(s[i, j]))[:count])
    return found


def all_negatives(n: int, ids: list[int] | None = None) -> list[list[int]]:
    return [[j for j in range(n) if j != i and (ids is None or ids[i] != ids[j])] for i in range(n)]


@pytest.mark.parametrize("push", [None, 0.3])
@pytest.mark.parametrize("ids", [None, [0, 0, 1, 2, 3, 4, 5, 1, 6, 7, 8, 0, 9, 10]])
def test_simple_equals_a_loop(push: float | None, ids: list[int] | None) -> None:
    x, y = rows(), rows(seed=1)
    expected = looped_simple(x @ y.T, push, all_negatives(N, ids))
    found = simple_contrastive(x, y, push=push, ids=None if ids is None else torch.tensor(ids))
    assert float(found) == pytest.approx(expected, abs=1e-12)


def test_simple_is_the_limit_of_the_softmax_loss() -> None:
    """Point 5: the gradient of tau * L at a large tau, up to the factor (N-1)/N that the mean over all keys brings."""
    x, y = rows().requires_grad_(), rows(seed=1)
    tau = 1e5
    soft = tau * cross_entropy(x @ y.T / tau, torch.arange(N))
    (expected,) = torch.autograd.grad(soft, x)
    (found,) = torch.autograd.grad(simple_contrastive(x, y), x)
    torch.testing.assert_close(found * (N - 1) / N, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.35, 1.0])
@pytest.mark.parametrize("ids", [None, [0, 0, 1, 2, 3, 4, 5, 1, 6, 7, 8, 0, 9, 10]])
@pytest.mark.parametrize("tile", [None, 1, 4, 14])
def test_hard_forms_equal_loops(share: float, ids: list[int] | None, tile: int | None) -> None:
    x, y = rows(), rows(seed=1)
    s = x @ y.T
    chosen = hardest(s, all_negatives(N, ids), share)
    marks = None if ids is None else torch.tensor(ids)
    tau = 0.4
    losses = []
    for i, others in enumerate(chosen):
        top = math.exp(float(s[i, i]) / tau)
        losses.append(-math.log(top / (sum(math.exp(float(s[i, j]) / tau) for j in others) + top)))
    found = hard_contrastive(x, y, tau, hard_share=share, ids=marks, tile=tile)
    assert float(found) == pytest.approx(sum(losses) / N, abs=1e-12)
    summed = hard_contrastive(x, y, tau, hard_share=share, form="simple", ids=marks, tile=tile)
    assert float(summed) == pytest.approx(looped_simple(s, None, chosen), abs=1e-12)
    weighted = hard_contrastive(x, y, tau, hard_share=share, form="simple", push=0.2, ids=marks, tile=tile)
    assert float(weighted) == pytest.approx(looped_simple(s, 0.2, chosen), abs=1e-12)


def test_with_all_negatives_hard_is_plain() -> None:
    x, y = rows(), rows(seed=1)
    plain = cross_entropy(x @ y.T / 0.3, torch.arange(N))
    assert float(hard_contrastive(x, y, 0.3, hard_share=1.0)) == pytest.approx(float(plain), abs=1e-12)
    one = hard_contrastive(x, y, 0.3, hard_share=1.0, form="simple")
    assert float(one) == pytest.approx(float(simple_contrastive(x, y)), abs=1e-12)


def test_ties_with_the_quantile_all_count() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    found = hard_contrastive(x, x, 1.0, hard_share=0.01)
    expected = [math.log(1 + 3 / math.e), math.log(3), math.log(3), math.log(3)]  # row 0: three negatives tie at 0
    assert float(found) == pytest.approx(sum(expected) / 4, abs=1e-12)


@pytest.mark.parametrize("form", ["contrastive", "simple"])
@pytest.mark.parametrize("tile", [None, 3])
def test_gradients_of_hard_forms(form: Any, tile: int | None) -> None:
    def value(x: Tensor, y: Tensor) -> Tensor:
        return hard_contrastive(normalize(x, dim=1), normalize(y, dim=1), 0.5, hard_share=0.3, form=form, tile=tile)

    assert torch.autograd.gradcheck(value, (rows(6).requires_grad_(), rows(6, seed=1).requires_grad_()))


@pytest.mark.parametrize(("w_u", "w_a", "w_xu"), [(1, 1, 0), (1, 1, 1), (0, 0, 0), (0.5, 2, 3)])
@pytest.mark.parametrize("tile", [None, 1, 5, 14])
def test_clip_uniformity_is_its_sum(w_u: float, w_a: float, w_xu: float, tile: int | None) -> None:
    x, y = rows(), rows(seed=1)
    s, here = x @ y.T / 0.01, torch.arange(N)
    off = ~torch.eye(N, dtype=torch.bool)

    def spread(a: Tensor, b: Tensor) -> Tensor:
        return (-2 * (a[:, None] - b[None]).square().sum(2)).exp()[off].mean().log()

    expected = (cross_entropy(s, here) + cross_entropy(s.T, here)) / 2
    expected = expected + w_u * (spread(x, x) + spread(y, y)) / 2 + w_xu * spread(x, y)
    expected = expected + w_a * (x - y).square().sum(1).mean()
    found = clip_uniformity(x, y, 0.01, w_u=w_u, w_a=w_a, w_xu=w_xu, tile=tile)
    assert float(found) == pytest.approx(float(expected), abs=1e-10)
    config = CLIPUniformityConfig(w_u=w_u, w_a=w_a, w_xu=w_xu, tile=tile)
    value, numbers = gap.RECIPE.loss(batch(x, y, temperature=0.01), config)
    assert float(value) == pytest.approx(float(expected), abs=1e-10)
    assert ("cross_uniformity" in numbers) == (w_xu > 0)
    if w_u:
        assert numbers["uniformity"] == pytest.approx(float((uniformity(x) + uniformity(y)) / 2))
    if w_a:
        assert numbers["alignment"] == pytest.approx(float(alignment(x, y)))
    if w_xu:
        assert numbers["cross_uniformity"] == pytest.approx(float(cross_uniformity(x, y)))


def test_a_few_steps_close_the_gap_that_clip_leaves() -> None:
    """Two sides in opposite half spaces; CLIP at temperature 0.01 leaves them there, the added terms do not."""

    def trained(**weights: float) -> float:
        x, y = rows(32, 8), rows(32, 8, seed=1)
        x[:, 0], y[:, 0] = 3.0, -3.0
        free = [x.requires_grad_(), y.requires_grad_()]
        optimiser = torch.optim.Adam(free, lr=0.05)
        for _ in range(150):
            optimiser.zero_grad()
            clip_uniformity(*(normalize(z, dim=1) for z in free), 0.01, **weights).backward()
            optimiser.step()
        first, second = (normalize(z.detach(), dim=1) for z in free)
        return float((first.mean(0) - second.mean(0)).norm())

    plain, cua, cuaxu = trained(w_u=0, w_a=0), trained(), trained(w_xu=1)
    assert plain > 0.3
    assert cua < plain / 3
    assert cuaxu < plain / 3


CASES = [
    (simple.RECIPE, {}), (simple.RECIPE, {"unique_ids": True}), (hard.RECIPE, {"temperature": 0.5, "hard_share": 0.4}),
    (hard.RECIPE, {"form": "simple", "unique_ids": True}), (gap.RECIPE, {"w_xu": 1.0}),
    (gap.RECIPE, {"w_xu": 0.5, "w_u": 2.0, "unique_ids": True}),
]  # fmt: skip


@pytest.mark.parametrize(("recipe", "values"), CASES)
@pytest.mark.parametrize("cuts", [(7,), (5,), (4, 9)])
def test_processes_add_up_to_one(recipe: Recipe, values: dict[str, Any], cuts: tuple[int, ...]) -> None:
    """The sum over processes is the single process's value, and so is the gradient by all rows."""
    config = recipe.config(**values)
    ids = torch.tensor([0, 0, 1, 2, 3, 4, 5, 1, 6, 7, 8, 0, 9, 10])
    scale = 1 / getattr(config, "temperature", 1.0)
    x, y = rows().requires_grad_(), rows(seed=1).requires_grad_()
    whole = dataclasses.replace(batch(x, y, ids), scale=torch.tensor(scale, dtype=torch.float64))
    value, _ = recipe.loss(whole, config)
    expected = torch.autograd.grad(value, (x, y))
    total = torch.zeros((), dtype=torch.float64)
    edges = [0, *cuts, N]
    for start, stop in itertools.pairwise(edges):
        part = dataclasses.replace(whole, first=x[start:stop], second=y[start:stop], start=start, ids=ids[start:stop])
        total = total + recipe.loss(part, config)[0]
    assert float(total.detach()) == pytest.approx(float(value.detach()), abs=1e-12)
    for given, wanted in zip(torch.autograd.grad(total, (x, y)), expected, strict=True):
        torch.testing.assert_close(given, wanted, rtol=0, atol=1e-11)


def test_the_share_of_twins_is_logged() -> None:
    x, y = rows(), rows(seed=1)
    y[3] = y[2]
    assert gap.RECIPE.loss(batch(x, y), CLIPUniformityConfig())[1]["duplicate_share"] == pytest.approx(2 / N)
    ids = torch.tensor([0, 0, 0, *range(1, N - 2)])
    assert gap.RECIPE.loss(batch(x, y, ids), CLIPUniformityConfig())[1]["duplicate_share"] == pytest.approx(3 / N)


def test_a_learnt_temperature_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"fixed at 0\.01: one of both"):
        CLIPUniformityConfig.parse({"learn_temperature": True})
    assert not gap.RECIPE.learns_scale
    assert CLIPUniformityConfig().temperature == 0.01


def test_traps_are_errors_that_name_them() -> None:
    x, y = rows(), rows(seed=1)
    same = torch.zeros(N, dtype=torch.int64)
    for function in (simple_contrastive, lambda a, b, ids: hard_contrastive(a, b, 1.0, ids=ids)):
        with pytest.raises(InputError, match="anchor 0 has no negative"):
            function(x, y, ids=same)
    with pytest.raises(InputError, match="above 0, at most 1"):
        hard_contrastive(x, y, 1.0, hard_share=0.0)
    with pytest.raises(InputError, match="temperature of 0"):
        clip_uniformity(x, y, 0.0)
    with pytest.raises(InputError, match=r"shape \[2, 5\]"):
        clip_uniformity(x[:2], y[:2])
    with pytest.raises(InputError, match="has norm 3"):
        simple_contrastive(3 * x, y)
    for config in (SimpleContrastiveConfig, HardContrastiveConfig, CLIPUniformityConfig):
        with pytest.raises(ConfigError, match="unknown key"):
            config.parse({"lambda": 1})
