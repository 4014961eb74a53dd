"""Inside a causal LM: where its parts are, and hooks that read or replace what flows through them.

A *site* is a place in the forward pass: the embedding's output, the residual stream after a layer, a layer's attention
or MLP output, its keys (the input of the MLP's down-projection, one number for every value vector), or its gate (the same
neurons before the activation function). Hooks live inside a `with` block and are gone after it, whatever happened. The
key-value reading of the MLP is that of Geva et al., arXiv 2012.14913: output = sum over j of k_j(x) v_j, with v_j column j
of the down-projection.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from efface.errors import ConfigError, ModelError

LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")
"""A layer's number in a name; anchored at dots: `layers.1.` is not `layers.10.`."""

LAYER_PATHS = ("model.layers", "transformer.h", "gpt_neox.layers", "model.decoder.layers")
DOWN_PATHS = ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "fc2")
GATE_PATHS = ("mlp.gate_proj", "mlp.c_fc", "mlp.dense_h_to_4h", "fc1")
ATTENTION_PATHS = ("self_attn", "attn", "attention")

Kind = Literal["embedding", "residual", "attention", "mlp", "keys", "gate"]
Change = Callable[[Tensor], Tensor]
"""[B, T, D] -> [B, T, D]; may change its argument in place and return it."""


class Site(NamedTuple):
    """A place in the forward pass; the embedding's layer is always 0."""

    kind: Kind
    layer: int = 0


def at_path(module: Any, path: str) -> Any:
    """The submodule or attribute at a dotted path; None where a part is missing."""
    for part in path.split("."):
        module = getattr(module, part, None)
        if module is None:
            return None
    return module


def base_model(model: Any) -> Any:
    """The model under a PEFT wrapper, or the model itself."""
    return getattr(model, "get_base_model", lambda: model)()


def layers_of(model: Any) -> list[Any]:
    """The transformer's layers in order.

    Raises:
        ModelError: the architecture keeps them under an unknown name.
    """
    inner = base_model(model)
    for path in LAYER_PATHS:
        found = at_path(inner, path)
        if found is not None:
            return list(found)
    raise ModelError(
        f"no layers found in {type(inner).__name__}", f"one of {', '.join(LAYER_PATHS)}", "add its path to LAYER_PATHS"
    )


def layer_at(model: Any, layer: int) -> Any:
    """One layer; negative indices are refused as any other that is out of range.

    Raises:
        ConfigError: out of range.
    """
    layers = layers_of(model)
    if not 0 <= layer < len(layers):
        raise ConfigError(f"layer {layer}", f"0 to {len(layers) - 1}", "count from 0")
    return layers[layer]


def _part(model: Any, layer: int, paths: tuple[str, ...], what: str) -> Any:
    block = layer_at(model, layer)
    for path in paths:
        found = at_path(block, path)
        if found is not None:
            return found
    raise ModelError(
        f"no {what} found in {type(block).__name__}", f"one of {', '.join(paths)}", "this kind of layer is not known"
    )


def down_projection(model: Any, layer: int) -> Any:
    """The MLP's last linear map, of which the columns are the value vectors.

    Raises:
        ModelError: the layer has no such part under a known name (a mixture of experts, for instance).
        ConfigError: no such layer.
    """
    return _part(model, layer, DOWN_PATHS, "MLP down-projection")


def gate_projection(model: Any, layer: int) -> Any:
    """The MLP's gate, or its first linear map where it has none: its output is each neuron before the activation function.

    Raises as `down_projection`.
    """
    return _part(model, layer, GATE_PATHS, "MLP gate or first linear map")


def attention_of(model: Any, layer: int) -> Any:
    """The layer's attention module. Raises as `down_projection`."""
    return _part(model, layer, ATTENTION_PATHS, "attention")


def part_parameters(model: Any, layer: int, part: Literal["mlp", "attention", "all"]) -> dict[str, Any]:
    """The layer's parameters that belong to its MLP or attention (or all), by their names within the layer.

    Raises:
        ModelError: none found under a known name.
        ConfigError: no such layer.
    """
    block = layer_at(model, layer)
    roots = {path.split(".")[0] for path in DOWN_PATHS} | {"fc1"} if part == "mlp" else set(ATTENTION_PATHS)
    found = {name: p for name, p in block.named_parameters() if part == "all" or name.split(".")[0] in roots}
    if not found:
        raise ModelError(f"no {part} parameters in {type(block).__name__}", f"one of {', '.join(sorted(roots))}")
    return found


def value_matrix(model: Any, layer: int) -> Tensor:
    """W_down [d, h] of a layer as a view of the live parameter; column j is the value vector v_j.

    Linear maps store [out, in], GPT-2's Conv1D [in, out]; the view has one orientation for both, so writing to it
    (under `torch.no_grad`) writes to the model.

    Raises:
        ModelError: neither kind, and the shape does not tell (square), or no floating-point weight (quantised).
        ConfigError: no such layer.
    """
    module = down_projection(model, layer)
    module = getattr(module, "get_base_layer", lambda: module)()
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        raise ModelError(
            f"the down-projection of layer {layer} is a {type(module).__name__} without a floating-point matrix",
            "a linear map", "load the model without quantisation",
        )  # fmt: skip
    width = int(base_model(model).get_input_embeddings().weight.shape[1])
    names = {cls.__name__ for cls in type(module).__mro__}
    if "Linear" in names:
        return weight
    if "Conv1D" in names:
        return weight.T
    rows, columns = weight.shape
    if rows == columns or width not in (rows, columns):
        raise ModelError(
            f"the down-projection of layer {layer} is a {type(module).__name__} of shape [{rows}, {columns}]",
            f"Linear, Conv1D, or a shape with one side of {width}", "its orientation cannot be told",
        )  # fmt: skip
    return weight if rows == width else weight.T


def _module(model: Any, site: Site) -> Any:
    if site.kind == "embedding":
        return base_model(model).get_input_embeddings()
    if site.kind == "residual":
        return layer_at(model, site.layer)
    if site.kind == "attention":
        return attention_of(model, site.layer)
    if site.kind == "gate":
        return gate_projection(model, site.layer)
    return down_projection(model, site.layer)


class _Tap:
    """Hooks on one site that give and take [B, T, D], also where the architecture flattens its MLP to [B T, D] (OPT)."""

    def __init__(self, model: Any, site: Site, change: Change) -> None:
        self.change = change
        self.rows: int | None = None
        module = _module(model, site)
        self.handles = []
        if site.kind in ("mlp", "keys", "gate"):
            layer = layer_at(model, site.layer)
            self.handles.append(layer.register_forward_pre_hook(self._see, with_kwargs=True))
        if site.kind == "keys":
            self.handles.append(module.register_forward_pre_hook(self._before))
        else:
            self.handles.append(module.register_forward_hook(self._after))

    def _see(self, _: Any, args: Any, kwargs: Any) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        self.rows = len(states)

    def _put(self, value: Tensor) -> Tensor:
        if value.ndim == 2 and self.rows is not None:
            return self.change(value.view(self.rows, -1, value.shape[-1])).reshape(value.shape)
        return self.change(value)

    def _before(self, _: Any, args: Any) -> Any:
        return (self._put(args[0]), *args[1:])

    def _after(self, _: Any, args: Any, output: Any) -> Any:
        return (self._put(output[0]), *output[1:]) if isinstance(output, tuple) else self._put(output)


@contextlib.contextmanager
def _tapped(model: Any, changes: Mapping[Site, Change]) -> Iterator[None]:
    taps: list[_Tap] = []
    try:
        for site, change in changes.items():
            taps.append(_Tap(model, site, change))
        yield
    finally:
        for tap in taps:
            for handle in tap.handles:
                handle.remove()


@contextlib.contextmanager
def recorded(model: Any, sites: Iterable[Site], *, detach: bool = True) -> Iterator[dict[Site, Tensor]]:
    """What the next forward passes put through the sites; each pass replaces the last one's.

    Args:
        model: a causal LM, bare or in a PEFT wrapper.
        sites: where to read.
        detach: cut the graph; False keeps it, for gradients with respect to a state.

    Yields:
        A dictionary that fills as the model runs: site -> [B, T, D] ([B, T, h] for keys and gate).

    Raises:
        ModelError, ConfigError: an unknown architecture or layer, before anything runs.
    """
    found: dict[Site, Tensor] = {}

    def keep(site: Site) -> Change:
        def change(value: Tensor) -> Tensor:
            found[site] = value.detach() if detach else value
            return value

        return change

    with _tapped(model, {site: keep(site) for site in sites}):
        yield found


@contextlib.contextmanager
def replaced(model: Any, changes: Mapping[Site, Change]) -> Iterator[None]:
    """Every forward pass inside the block runs with the sites' values put through the given functions.

    Args:
        model: as in `recorded`.
        changes: site -> function of the value there, [B, T, D] -> [B, T, D]; it gets a copy.

    Raises:
        ModelError, ConfigError: an unknown architecture or layer, before anything runs.
    """

    def on_copy(change: Change) -> Change:
        return lambda value: change(value.clone())

    with _tapped(model, {site: on_copy(change) for site, change in changes.items()}):
        yield


def at_positions(states: Tensor, positions: Tensor) -> Tensor:
    """states [B, T, D] at one position a row, [B] -> [B, D]."""
    return states[torch.arange(len(states), device=states.device), positions.to(states.device)]


__all__ = [
    "LAYER", "Change", "Kind", "Site", "at_path", "at_positions", "attention_of", "base_model", "down_projection",
    "gate_projection", "layer_at", "layers_of", "part_parameters", "recorded", "replaced", "value_matrix",
]  # fmt: skip
