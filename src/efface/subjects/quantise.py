"""Round trips through 8 and 4 bit: what is left of the weights when someone quantises the model to deploy it.

Symmetric round-to-nearest with one scale a row (absmax), on every two-dimensional weight of a linear layer.
Embeddings, norms and a tied output head are left as they are and reported as skipped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from efface.errors import ConfigError


def round_trip(weight: Tensor, bits: int) -> Tensor:
    """Quantise to `bits` and back.

    Args:
        weight: [rows, columns].
        bits: 2 to 8; codes run from -(2^(bits-1) - 1) to 2^(bits-1) - 1.

    Raises:
        ConfigError: another width.
    """
    if not 2 <= bits <= 8:
        raise ConfigError(f"{bits} bits", "2 to 8")
    top = 2 ** (bits - 1) - 1
    scale = weight.float().abs().amax(dim=1, keepdim=True) / top
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))  # a row of zeros stays zero
    codes = (weight.float() / safe).round().clamp(-top, top)
    return (codes * safe).to(weight.dtype)


def linear_weights(model: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The weights that are quantised, by name, and the names of the other tensors of two or more dimensions.

    A tensor appears once, also where an adapter's wrapper shows its base layer's weight as its own; an adapter's two
    factors are rounded each for itself.
    """
    seen = {id(model.get_input_embeddings().weight)} if hasattr(model, "get_input_embeddings") else set()
    chosen: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if type(module).__name__ not in {"Linear", "Conv1D"} or not isinstance(weight, Tensor) or weight.dim() != 2:
            continue
        if id(weight) not in seen:
            seen.add(id(weight))
            chosen[f"{name}.weight"] = weight
    ids = {id(weight) for weight in chosen.values()}
    skipped = [name for name, p in model.named_parameters() if p.dim() >= 2 and id(p) not in ids]
    return chosen, skipped
