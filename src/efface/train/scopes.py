"""Scopes: which parameters may move. All, some layers, a low-rank adapter, or the single weights of a mask.

A parameter outside the scope is not given to the optimiser at all, so neither weight decay nor momentum moves it. Single
weights outside a mask are held by a guard (see `mask_guard`).
"""

from __future__ import annotations

import contextlib
import re
import types
from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch.nn.modules.batchnorm import _BatchNorm

from efface.errors import ConfigError
from efface.run.settings import Settings
from efface.subjects.hooks import LAYER, part_parameters
from efface.train.weight_mask import WeightMask


class ScopeConfig(Settings):
    """The part of a configuration that says what may move."""

    scope: Literal["all", "layers", "lora", "mask"] = Field(
        "all", description="all weights, some layers, a LoRA adapter, or the single weights of a mask"
    )
    layers: str | None = Field(
        None, description="for scope=layers (and mask): indices and ranges, '0,3-5'; negative counts from the end"
    )
    part: Literal["all", "mlp", "attention"] = Field(
        "all", description="of the layers that may move (or be ranked): all of each, its MLP, or its attention"
    )
    norm_statistics: Literal["auto", "move", "frozen"] = Field(
        "auto",
        description="running statistics of batch norms, which no mask holds; auto: they move with scope=all only",
    )
    mask: str | None = Field(
        None, description="for scope=mask: a mask file, or wagle (default), gradient, snip, magnitude, random, reverse"
    )
    density: float = Field(0.95, gt=0, le=1, description="share of the weights that may move; WAGLE on TOFU: 0.95")
    mask_per_layer: bool = Field(
        False, description="rank within each tensor, not all weights together (WAGLE: together)"
    )
    mask_modules: str | None = Field(
        None, description="rank only these, comma-separated, from the name's beginning: 'model.layers.*.mlp'"
    )
    mask_exclude: str | None = Field(None, description="freeze these: '*.embed_tokens,model.layers.*.input_layernorm'")
    gamma: float | Literal["auto"] = Field(
        "auto", description="WAGLE: the retain Hessian's diagonal; auto: mean squared retain gradient of a row"
    )
    lora_rank: int = Field(8, ge=1, description="rank of the adapter (peft's default)")
    lora_alpha: float = Field(16, gt=0, description="scale of the adapter: alpha / rank")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")
    lora_targets: str = Field(
        "all-linear", description="modules that get an adapter: comma-separated names or all-linear"
    )

    @field_validator("gamma")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        if value != "auto" and not value > 0:
            raise ValueError("gamma is a positive number, or auto")
        return value

    @field_validator("layers", mode="before")
    @classmethod
    def _one_layer(cls, value: Any) -> Any:
        """`layers=0` on a command line is read as a number."""
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def layer_indices(text: str, depth: int) -> set[int]:
    """Parse '0,3-5,-1' for a model of `depth` layers.

    Raises:
        ConfigError: not of that form, or out of range.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?\d+)(?:\s*-\s*(\d+))?\s*", part)
        if not match:
            raise ConfigError(f"layers='{text}'", "indices and ranges such as '0,3-5' or '-1'")
        start = int(match[1])
        start = start + depth if start < 0 else start
        stop = int(match[2]) if match[2] else start
        if not (0 <= start <= stop < depth):
            raise ConfigError(f"layers='{text}'", f"layers between 0 and {depth - 1}", "count from 0")
        found.update(range(start, stop + 1))
    return found


def depth_of(model: torch.nn.Module) -> int:
    """Number of transformer layers, from parameter names."""
    found = [int(match[1]) for name, _ in model.named_parameters() if (match := LAYER.search(name))]
    return max(found) + 1 if found else 0


@contextlib.contextmanager
def scoped(model: Any, config: ScopeConfig, mask: WeightMask | None = None) -> Iterator[Any]:
    """Let only the scope's parameters require gradients; yields the model to train.

    With `lora` the yielded model is a PEFT model around the given one; on leaving, the adapter is taken off again.
    The former `requires_grad` flags come back in every case.

    Args:
        mask: for `scope=mask`; tensors without a movable weight are frozen here, single weights by a `MaskGuard`.

    Raises:
        ConfigError: the scope does not fit the model or the other keys, or this method takes no mask.
    """
    if config.scope != "mask" and config.mask is not None:
        raise ConfigError(f"mask='{config.mask}' with scope={config.scope}", "scope=mask", "set scope=mask")
    if config.scope == "mask" and mask is None:
        raise ConfigError("scope=mask with a method that takes none", "scope all or layers", "choose an objective")
    if config.scope == "lora" and config.part != "all":
        raise ConfigError(f"part={config.part} with scope=lora", "lora_targets", "name the modules in lora_targets")
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    try:
        if config.scope == "lora":
            yield _with_lora(model, config)
        elif mask is not None:
            movable = {name for name, part in mask.masks.items() if bool(part.any())}
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in movable)
            yield model
        else:
            _choose(model, config)
            yield model
    finally:
        _without_lora(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])
            parameter.grad = None


@contextlib.contextmanager
def resting_norms(model: torch.nn.Module, config: ScopeConfig) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the running statistics that training will move; where they are to rest, their norms stay in evaluation mode."""
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    still = config.norm_statistics == "frozen" or (config.norm_statistics == "auto" and config.scope != "all")
    if not still:
        yield {
            f"{name}.{key}" if name else key: tensor for name, module in norms.items()
            for key, tensor in module.named_buffers(recurse=False)
        }  # fmt: skip
        return
    modes = {name: module.training for name, module in norms.items()}
    try:
        for module in norms.values():
            module.eval()
            module.train = types.MethodType(lambda self, mode=True: self, module)  # type: ignore[method-assign]
        yield {}
    finally:
        for name, module in norms.items():
            module.__dict__.pop("train", None)
            module.train(modes[name])


def _choose(model: torch.nn.Module, config: ScopeConfig) -> None:
    if config.scope == "all":
        if config.layers is not None:
            raise ConfigError(f"layers='{config.layers}' with scope=all", "scope=layers", "set scope=layers")
        chosen = None
    else:
        if config.layers is None:
            raise ConfigError("scope=layers without layers", "layers='0,3-5'", "say which layers may move")
        chosen = layer_indices(config.layers, depth_of(model))
    names = set(part_names(model, config.part, chosen))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def part_names(model: torch.nn.Module, part: Literal["all", "mlp", "attention"], layers: set[int] | None) -> list[str]:
    """Names of the parameters of some layers (None: of the whole model), or of their MLPs or attentions alone.

    Raises:
        ModelError: no such part under a known name.
    """
    own = None
    if part != "all":
        numbers = range(depth_of(model)) if layers is None else sorted(layers)
        own = {id(p) for layer in numbers for p in part_parameters(model, layer, part).values()}
    found = []
    for name, parameter in model.named_parameters():
        match = LAYER.search(name)
        inside = layers is None or (match is not None and int(match[1]) in layers)
        if inside and (own is None or id(parameter) in own):
            found.append(name)
    return found


def _with_lora(model: Any, config: ScopeConfig) -> Any:
    from peft import LoraConfig, get_peft_model

    targets = config.lora_targets if config.lora_targets == "all-linear" else config.lora_targets.split(",")
    settings = LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout, target_modules=targets,
        task_type="CAUSAL_LM" if hasattr(model, "prepare_inputs_for_generation") else None,
    )  # fmt: skip
    try:
        with torch.random.fork_rng():  # the adapter's first weights are those of the seed, whatever was drawn before
            torch.manual_seed(getattr(config, "seed", 0))
            return get_peft_model(model, settings)
    except ValueError as error:
        raise ConfigError(
            f"lora_targets='{config.lora_targets}' ({str(error)[:120]})", "names of linear modules of this model"
        ) from error


def _without_lora(model: Any) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        return
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.get_base_layer())
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        if hasattr(model, attribute):
            with contextlib.suppress(AttributeError):
                delattr(model, attribute)
