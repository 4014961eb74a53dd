"""Activation maps: where in its layers a network is active, as unit vectors that do not depend on the number of channels.

Q(A) = normalise_2(mean_c A_c^2) for each row (attention transfer, Zagoruyko and Komodakis, arXiv 1612.03928; Tarun et al.,
arXiv 2210.08196). [B, C, H, W] gives H W numbers; [B, H] has no channels, so h^2 itself is normalised;
[B, T, H] gives one number a position, of texts without the padding. Nothing is kept of an activation but its map.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad
from transformers.activations import GELUActivation

from efface.errors import ConfigError, ModelError, nearest

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, GELUActivation)
"""Modules whose outputs are matched by default."""


class ActivationMap(NamedTuple):
    """`values` [B, P], rows of unit norm (or zero); `places` [B], how many numbers a row has; `ragged`, whether it is padded."""

    values: Tensor
    places: Tensor
    ragged: bool = False


def activation_map(activation: Tensor, mask: Tensor | None = None) -> ActivationMap:
    """Q(A) of [B, C, H, W] (or more sides), [B, T, H] or [B, H].

    Args:
        mask: [B, T] of texts, 0 for padding.

    Raises:
        ModelError: activations that are none of these, or do not fit the mask.
    """
    a = activation.float()
    if a.ndim < 2:
        raise ModelError(f"an activation {list(a.shape)}", "[B, C, H, W], [B, T, H] or [B, H]", "set layers_matched")
    energy = a.square()
    energy = energy if a.ndim == 2 else energy.mean(2 if a.ndim == 3 else 1).flatten(1)  # [B, P]
    places = torch.full((len(a),), float(energy.shape[1]), device=a.device)
    if mask is None or a.ndim != 3:
        return ActivationMap(normalize(energy, dim=1), places)
    if mask.shape != energy.shape:
        raise ModelError(
            f"an activation {list(a.shape)} for texts of {list(mask.shape)} tokens", "one vector a token", "set layers_matched"
        )  # fmt: skip
    return ActivationMap(normalize(energy * mask, dim=1), mask.sum(1).float(), ragged=True)


def map_distance(own: Sequence[ActivationMap], proxy: Sequence[Tensor]) -> Tensor:
    """sum_j mean_k (Q_jk - Q^p_jk)^2 of every row, [B].

    Args:
        own: of the model.
        proxy: the same of the proxy, [B, P_j].

    Raises:
        ModelError: lists of unequal length, or maps of unequal size.
    """
    if len(own) != len(proxy):
        raise ModelError(
            f"{len(own)} activation maps of the model and {len(proxy)} of the proxy", "as many of both",
            "match layers that run once in every pass: set layers_matched",
        )  # fmt: skip
    total = torch.zeros_like(own[0].places) if own else torch.zeros(())
    for j, (ours, theirs) in enumerate(zip(own, proxy, strict=True)):
        q, p = ours.values, theirs
        if ours.ragged:
            width = max(q.shape[1], p.shape[1])
            q, p = (pad(values, (0, width - values.shape[1])) for values in (q, p))
        if q.shape != p.shape:
            raise ModelError(
                f"activation map {j}: {list(q.shape)} of the model, {list(p.shape)} of the proxy", "equal shapes",
                "inputs of one size, or layers_matched=...",
            )  # fmt: skip
        total = total + (q - p).square().sum(1) / ours.places
    return total


def matched_layers(model: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """The modules whose outputs are matched: those named, or every activation.

    Raises:
        ConfigError: no such module, or no activation that is a module.
    """
    known = {name: module for name, module in model.named_modules() if name}
    for name in names:
        if name not in known:
            raise ConfigError(f"layers_matched: no module '{name}'", None, nearest(name, known))
    found = tuple(names) or tuple(name for name, module in known.items() if isinstance(module, ACTIVATIONS))
    if not found:
        raise ConfigError(
            f"{type(model).__name__} has no activation that is a module", "modules to match",
            "set layers_matched, or map_weight=0",
        )  # fmt: skip
    return found


@contextlib.contextmanager
def activation_maps(model: nn.Module, names: Sequence[str], mask: Tensor | None) -> Iterator[list[ActivationMap]]:
    """The maps of what these modules put out inside the block, in the order of the calls."""
    caught: list[ActivationMap] = []

    def hook(_: Any, given: Any, out: Any) -> None:
        caught.append(activation_map(out[0] if isinstance(out, tuple) else out, mask))

    handles = [model.get_submodule(name).register_forward_hook(hook) for name in names]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


__all__ = ["ACTIVATIONS", "ActivationMap", "activation_map", "activation_maps", "map_distance", "matched_layers"]
