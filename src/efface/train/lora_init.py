"""Low-rank adapters that begin with a part of the weights: W = residual + s B A, so that the network starts unchanged.

With a row weight d the part is the best rank-r approximation of diag(d) W, taken back through diag(1/d): FILA (LoKU, Cha et
al., arXiv 2408.06621, section 3.3) with d from a Fisher ratio, PiSSA (arXiv 2404.02948) with d = 1.

The trained factors hold pretrained knowledge, so the residual base belongs to the adapter: on the original base the adapter
is useless, and saving it alone is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from efface.errors import ConfigError, ModelError, RunError
from efface.subjects.hooks import LAYER
from efface.train.engine import isolated_rng
from efface.train.scopes import depth_of, layer_indices

FULL_SVD = 2048
"""Matrices whose smaller side is at most this get the exact decomposition; larger ones the randomised one."""

FLOOR = 1e-3
"""Floors relative to the data: of the retain Fisher information, to its mean; of d, to its largest."""

PUBLISHED_FLOOR = 1e-5
"""The official code's floor for both."""

RESIDUAL = "efface_residual_base"
"""Attribute of an adapted model whose base weights are residuals."""


class Factors(NamedTuple):
    """W ~ s B A. `A` [r, i], `B` [o, r], both float32."""

    A: Tensor
    B: Tensor


class RowWeight(NamedTuple):
    """`d` [o] float32, and the share of rows whose retain information lies below the floor."""

    d: Tensor
    floored: float


def row_weight(fisher_forget: Tensor, fisher_retain: Tensor, *, compat: bool = False) -> RowWeight:
    """d = sqrt(sum over columns of F_f / (F_r + eps)), per output row.

    Args:
        fisher_forget, fisher_retain: [o, i] mean squared gradients.
        compat: eps = 1e-5 as published; otherwise 1e-3 of the mean of F_r, since squared gradients are far below 1e-5 in
            most models and the floor alone would then decide.
    """
    f_f, f_r = fisher_forget.float(), fisher_retain.float()
    eps = PUBLISHED_FLOOR if compat else max(FLOOR * float(f_r.mean()), torch.finfo(torch.float32).tiny)
    d = (f_f / (f_r + eps)).sum(1).sqrt()
    return RowWeight(d, float((f_r.mean(1) < eps).float().mean()))


def lora_from_svd(
    W: Tensor, row_weight: Tensor | None, r: int, s: float, *, compat: bool = False, seed: int = 0
) -> Factors:
    """Rank-r factors with s B A ~ W, the best for the row-weighted error ||diag(d) (W - s B A)||.

    Args:
        W: [o, i].
        row_weight: [o], not negative; None or ones is PiSSA. Rows that weigh less than 1e-3 of the heaviest count as that
            (a dead neuron's row would blow B up); all zero counts as ones.
        r: rank, at most min(o, i).
        s: the adapter's scale, alpha / r.
        compat: 1 / (d + 1e-5) instead of the floor, as published.
        seed: of the randomised decomposition of large matrices.

    Raises:
        ConfigError: a rank or scale out of range.
        ModelError: a shape that is no matrix, or a weight that does not fit.
    """
    if W.dim() != 2:
        raise ModelError(f"a weight of shape {tuple(W.shape)}", "[out, in]", "adapt linear layers only")
    o, i = W.shape
    if not 1 <= r <= min(o, i) or not s > 0:
        raise ConfigError(f"rank {r} and scale {s} for a weight of shape [{o}, {i}]", f"1 to {min(o, i)}, above 0")
    if row_weight is not None and row_weight.shape != (o,):
        raise ModelError(f"a row weight of shape {tuple(row_weight.shape)}", f"[{o}], one a row of W")
    w = W.detach().float()
    d = torch.ones(o, device=w.device) if row_weight is None else row_weight.detach().float().to(w.device)
    top = float(d.max())
    if not top > 0:
        d, top = torch.ones_like(d), 1.0
    d = d if compat else d.clamp_min(FLOOR * top)
    inverse = 1 / (d + PUBLISHED_FLOOR) if compat else 1 / d
    scaled = d[:, None] * w
    if min(o, i) <= FULL_SVD:
        U, S, Vh = torch.linalg.svd(scaled, full_matrices=False)
        U, S, Vh = U[:, :r], S[:r], Vh[:r]
    else:
        with isolated_rng(seed):
            U, S, V = torch.svd_lowrank(scaled, q=min(r + 16, o, i), niter=4)
        U, S, Vh = U[:, :r], S[:r], V[:, :r].T
    root = (S / s).sqrt()
    return Factors(root[:, None] * Vh, inverse[:, None] * U * root)


# -- on a model -----------------------------------------------------------------------------------------------------


def linear_targets(model: Any, targets: str, layers: str | None = None) -> dict[str, torch.nn.Module]:
    """The linear modules to adapt, by name.

    Args:
        targets: `all-linear` (all but the output head) or comma-separated ends of names, as peft takes them.
        layers: only in these layers ('0,3-5').

    Raises:
        ConfigError: nothing fits.
        ModelError: a target whose weight is tied to the embedding, or quantised.
    """
    head = model.get_output_embeddings()
    ends = None if targets == "all-linear" else [part.strip() for part in targets.split(",")]
    chosen = None if layers is None else layer_indices(layers, depth_of(model))
    embedding = model.get_input_embeddings().weight
    found: dict[str, torch.nn.Module] = {}
    for name, module in model.named_modules():
        if type(module).__name__ not in {"Linear", "Conv1D"}:
            continue
        if ends is None and module is head:
            continue
        if ends is not None and not any(name == end or name.endswith(f".{end}") for end in ends):
            continue
        match = LAYER.search(f"{name}.")
        if chosen is not None and (match is None or int(match[1]) not in chosen):
            continue
        if module.weight is embedding:
            raise ModelError(
                f"'{name}' shares its weight with the embedding", "weights of their own", "leave it out of lora_targets"
            )
        if not module.weight.is_floating_point():
            raise ModelError(f"'{name}' is quantised", "weights in floating point", "load it in full precision")
        found[name] = module
    if not found:
        raise ConfigError(f"lora_targets='{targets}'", "names of linear modules of this model", "try all-linear")
    return found


def matrix(module: Any) -> Tensor:
    """The module's weight seen as [out, in]: GPT-2's Conv1D stores the transpose."""
    weight: Tensor = module.weight
    return weight.T if type(module).__name__ == "Conv1D" else weight


def start_from(adapted: Any, factors: Mapping[str, Factors]) -> None:
    """Put factors into a PEFT model's fresh adapter and take s B A off the base, in place.

    The residual is rounded to the base's precision once, from float32.

    Raises:
        ModelError: the adapter lacks one of the modules.
    """
    layers = _adapter_layers(adapted)
    if set(layers) != set(factors):
        raise ModelError(f"the adapter sits on {len(layers)} modules", f"{len(factors)}, those with factors")
    with torch.no_grad():
        for name, layer in layers.items():
            key = layer.active_adapters[0]
            layer.lora_A[key].weight.copy_(factors[name].A)
            layer.lora_B[key].weight.copy_(factors[name].B)
            base = matrix(layer.get_base_layer())
            base.copy_(base.float() - _product(layer))
    setattr(adapted, RESIDUAL, True)


def merge_back(adapted: Any) -> None:
    """Add s B A to the base, in place: the whole of the change is then in the weights and the adapter can go."""
    with torch.no_grad():
        for layer in _adapter_layers(adapted).values():
            base = matrix(layer.get_base_layer())
            base.copy_(base.float() + _product(layer))


def _product(layer: Any) -> Tensor:
    key = layer.active_adapters[0]
    product: Tensor = layer.scaling[key] * (layer.lora_B[key].weight.float() @ layer.lora_A[key].weight.float())
    return product


def _adapter_layers(adapted: Any) -> dict[str, Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        name: module for name, module in adapted.get_base_model().named_modules() if isinstance(module, BaseTunerLayer)
    }


def refuse_residual(adapted: Any) -> None:
    """Refuse to save the adapter of a residual base by itself.

    Raises:
        RunError: `start_from` was used on this model.
    """
    if getattr(adapted, RESIDUAL, False):
        raise RunError(
            "the adapter began with a part of the weights: without its residual base it is useless",
            "adapter and residual base together", "use merge_back and store the change of the weights",
        )  # fmt: skip
