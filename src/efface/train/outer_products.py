"""Weighted sums of per-sample gradients of linear layers, and of their squares, without forming the gradients.

A linear layer that is used once for a sample, on one vector a [D], has the gradient delta a^T, where delta [O] is the gradient
of the loss by the layer's output. Of B samples with weights w,

    sum_i w_i delta_i a_i^T = (w delta)^T a,    sum_i w_i (delta_i a_i^T)^2 = (w delta^2)^T a^2    (squares entry by entry)

one product of [O, B] and [B, D] in place of B gradients of O x D numbers. Which layers are used so is read off the graph of one
sample: the layer is called once, on one vector, and its weight enters nothing else. All others (a weight that is tied or
used twice, a layer over tokens or pixels) are left to whoever asks.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

WORTH = 8
"""Samples from which the look at one of them, a forward pass, is worth it."""


class OuterLayers:
    """Linear layers with one outer product a sample.

    Args:
        layers: by module name.
        names: by module name, those of its `weight` and, where it is wanted, its `bias`.
        like: [1, ..., O] zeros in the form of each layer's output for one sample.
    """

    def __init__(
        self, layers: Mapping[str, torch.nn.Linear], names: Mapping[str, dict[str, str]], like: Mapping[str, Tensor]
    ) -> None:
        self.layers, self.names = dict(layers), dict(names)
        self.offsets = {name: torch.zeros_like(tensor) for name, tensor in like.items()}
        """By module name: zero, added to the output; the gradient by it is delta."""

    def parameters(self) -> set[str]:
        """Names of the parameters whose sums come from here."""
        return {own for names in self.names.values() for own in names.values()}

    @contextlib.contextmanager
    def listening(self, offsets: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """While one sample passes, its offsets are added to the outputs; what went into the layers is caught, by name."""
        caught: dict[str, Tensor] = {}

        def hook(name: str) -> Callable[..., Tensor]:
            def add(_: Any, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
                caught[name] = given[0]
                return out + offsets[name]

            return add

        with _hooked(self.layers, hook):
            yield caught

    def add(
        self, found: Mapping[str, Tensor], deltas: Mapping[str, Tensor], inputs: Mapping[str, Tensor], weights: Tensor,
        power: Literal[1, 2],
    ) -> None:  # fmt: skip
        """Adds the sums over B samples to `found`, in its types.

        Args:
            found: by parameter name.
            deltas, inputs: by module name, [B, ..., O] and [B, ..., D].
            weights: w [B].
        """
        for name, names in self.names.items():
            weight = found[names["weight"]]
            delta = deltas[name].detach().flatten(1).to(weight.dtype) ** power  # [B, O]
            delta = delta * weights.to(delta).unsqueeze(1)
            weight.addmm_(delta.T, inputs[name].detach().flatten(1).to(weight.dtype) ** power)  # a [B, D]
            if "bias" in names:
                found[names["bias"]].add_(delta.sum(0))


def outer_layers(
    model: torch.nn.Module, own: Mapping[str, torch.nn.Parameter], loss: Callable[[], Tensor]
) -> OuterLayers | None:
    """The layers whose gradients are outer products; None if there is none.

    Args:
        own: the parameters that are wanted, by name; they must require gradients.
        loss: of one sample.
    """
    mine = {id(parameter): name for name, parameter in own.items()}
    layers = {
        name: module for name, module in model.named_modules()
        # a subclass may do anything with its weight
        if type(module) is torch.nn.Linear and id(module.weight) in mine
    }  # fmt: skip
    if not layers:
        return None
    calls: Counter[str] = Counter()
    like: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def look(module: Any, given: tuple[Tensor, ...], out: Tensor) -> None:
            alone = len(given) == 1 and given[0].numel() == module.in_features
            calls[name] += 1 if alone and out.requires_grad else 2
            like[name] = out.detach()

        return look

    with _hooked(layers, hook):
        value = loss()
    uses = _uses(value)
    good: dict[str, torch.nn.Linear] = {}
    names: dict[str, dict[str, str]] = {}
    for name, module in layers.items():
        parts = {"weight": module.weight, "bias": module.bias}
        wanted = {key: p for key, p in parts.items() if p is not None and id(p) in mine}
        if calls[name] == 1 and all(uses[id(p)] == 1 for p in wanted.values()):
            good[name] = module
            names[name] = {key: mine[id(p)] for key, p in wanted.items()}
    return OuterLayers(good, names, {name: like[name] for name in good}) if good else None


@contextlib.contextmanager
def _hooked(layers: Mapping[str, torch.nn.Module], make: Callable[[str], Callable[..., Any]]) -> Iterator[None]:
    """Forward hooks that see a layer's own output, before any other hook changes it."""
    handles = [layer.register_forward_hook(make(name), prepend=True) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _uses(value: Tensor) -> Counter[int]:
    """How often each leaf enters the graph of a value, by the leaf's id."""
    found: Counter[int] = Counter()
    seen: set[Any] = set()
    waiting = [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for following, _ in node.next_functions:
            leaf = getattr(following, "variable", None)
            if leaf is not None:
                found[id(leaf)] += 1
            waiting.append(following)
    return found


__all__ = ["WORTH", "OuterLayers", "outer_layers"]
