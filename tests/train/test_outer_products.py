"""Sums of outer products against gradients that are formed, and the layers that must not be taken for such."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from efface.train import gradient_stats
from efface.train.gradient_stats import accumulate_samples, own_parameters
from efface.train.outer_products import OuterLayers, outer_layers

ROWS, SIDE = 24, 6


class Mixed(nn.Module):
    """Convolutions and norms, layers on one vector, one over tokens, one called twice, and two that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.tokens, self.between = nn.Linear(4, 4), nn.LayerNorm(4)
        self.once, self.unbiased = nn.Linear(4, 8), nn.Linear(8, 8, bias=False)
        self.twice = nn.Linear(8, 8)
        self.first, self.tied, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.tied.weight = self.first.weight
        self.norm.running_mean = torch.randn(4) / 3

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().flatten(2).transpose(1, 2)  # [B, T, 4]
        x = self.between(self.tokens(x)).mean(1)
        x = self.unbiased(self.once(x).tanh())
        x = self.twice(self.twice(x).tanh()).tanh()
        return self.head(self.tied(self.first(x).tanh()).tanh())


ONE_VECTOR = {"once.weight", "once.bias", "unbiased.weight", "head.weight", "head.bias"}
"""Of `Mixed`. A layer with a tied weight is not: its weight enters the graph twice."""


def loss(call: Any, batch: Any) -> Tensor:
    return cross_entropy(call(batch["x"]), batch["y"])


def parts(dtype: torch.dtype = torch.float32, sizes: tuple[int, ...] = (10, 14)) -> Iterator[tuple[Any, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 2, SIDE, SIDE, generator=generator).to(dtype)
    y, w = torch.randint(0, 5, (ROWS,), generator=generator), torch.rand(ROWS, generator=generator)
    start = 0
    for size in sizes:
        yield {"x": x[start : start + size], "y": y[start : start + size]}, w[start : start + size]
        start += size


def mixed(dtype: torch.dtype = torch.float32) -> Mixed:
    torch.manual_seed(0)
    return Mixed().to(dtype).eval()


def found_in(
    model: nn.Module, names: list[str] | None = None, dtype: torch.dtype = torch.float32
) -> OuterLayers | None:
    batch, _ = next(parts(dtype, sizes=(1,)))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return outer_layers(model, own_parameters(model, names), lambda: loss(model, batch))


def summed(
    monkeypatch: pytest.MonkeyPatch, outer: bool, model: nn.Module, power: Any, **more: Any
) -> dict[str, Tensor]:
    monkeypatch.setattr(gradient_stats, "WORTH", 8 if outer else 10**9)
    names = more.pop("names", None)
    return accumulate_samples(model, loss, parts(**more), power=power, names=names)


def close(found: dict[str, Tensor], expected: dict[str, Tensor], limit: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value.dtype == expected[name].dtype
        scale = float(expected[name].abs().max())
        assert scale > 0, name
        assert float((value - expected[name]).abs().max()) <= limit * scale, name


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("power", [1, 2])
def test_sums_are_those_of_the_gradients(
    power: Any, dtype: torch.dtype, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mixed(dtype)
    layers = found_in(model, dtype=dtype)
    assert layers is not None
    assert layers.parameters() == ONE_VECTOR
    formed = summed(monkeypatch, False, model, power, dtype=dtype)
    taken: list[set[str]] = []
    inner = OuterLayers.add
    monkeypatch.setattr(
        OuterLayers, "add", lambda self, *args: (taken.append(self.parameters()), inner(self, *args))[1]
    )
    made = summed(monkeypatch, True, model, power, dtype=dtype)
    assert taken == [ONE_VECTOR, ONE_VECTOR], "one look, then every batch by outer products"
    close(made, formed, 3 * limit if power == 1 else limit)  # a sum of signed numbers cancels
    by_hand = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in own_parameters(model).items()}
    total = 0.0
    for batch, weights in parts(dtype):
        for i, w in enumerate(weights):
            model.zero_grad()
            loss(model, {name: tensor[i : i + 1] for name, tensor in batch.items()}).backward()
            for name, p in own_parameters(model).items():
                by_hand[name] += float(w) * p.grad.double() ** power
            total += float(w)
    close({n: v.double() for n, v in made.items()}, {n: v / total for n, v in by_hand.items()}, 1e-4)


def test_only_the_parameters_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["once.weight", "head.bias", "conv.weight"]
    layers = found_in(mixed(), names)
    assert layers is not None
    assert layers.parameters() == {"once.weight"}, "a bias alone is left to the gradients"
    close(summed(monkeypatch, True, mixed(), 2, names=names), summed(monkeypatch, False, mixed(), 2, names=names), 1e-6)
    assert found_in(mixed(), ["conv.weight"]) is None


def test_few_samples_are_not_worth_a_look_and_a_later_batch_is(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    inner = gradient_stats.outer_layers
    monkeypatch.setattr(gradient_stats, "outer_layers", lambda *args: (looks.append(1), inner(*args))[1])
    model = mixed()
    few = summed(monkeypatch, True, model, 2, sizes=(7, 7, 7, 3))
    assert not looks
    some = summed(monkeypatch, True, model, 2, sizes=(7, 9, 8))
    assert len(looks) == 1
    close(some, few, 2e-6)


class Beside(nn.Module):
    """The weight of a layer is read beside the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(2 * SIDE * SIDE, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.head((self.inner(x) + linear(x.tanh(), self.inner.weight)).tanh())


class Louder(nn.Linear):
    """Not what its base is."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, 2 * self.weight, self.bias)


class Flat(nn.Sequential):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__(nn.Flatten(), middle, nn.Tanh(), nn.Linear(6, 5))


@pytest.mark.parametrize("kind", ["beside", "subclass", "parametrised", "hooked", "frozen bias"])
def test_layers_that_are_no_outer_product_are_not_taken_for_one(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    wide = 2 * SIDE * SIDE
    middle = Louder(wide, 6) if kind == "subclass" else nn.Linear(wide, 6)
    model = Beside() if kind == "beside" else Flat(middle)
    head = "head" if kind == "beside" else "3"
    expected = {f"{head}.weight", f"{head}.bias"}
    names = None
    if kind == "parametrised":
        nn.utils.parametrizations.weight_norm(middle)
    elif kind == "hooked":  # what others do to the output comes after the layer's own
        middle.register_forward_hook(lambda *given: 3 * given[-1])
        expected |= {"1.weight", "1.bias"}
    elif kind == "frozen bias":
        names = ["1.weight", "3.weight", "3.bias"]
        expected |= {"1.weight"}
    hooks = [len(module._forward_hooks) for module in model.modules()]
    layers = found_in(model, names)
    assert layers is not None
    assert layers.parameters() == expected
    for power in (1, 2):
        formed = summed(monkeypatch, False, model, power, names=names)
        close(summed(monkeypatch, True, model, power, names=names), formed, 3e-6)
    assert hooks == [len(module._forward_hooks) for module in model.modules()], "no hook stays"
