"""Keeps what a mask freezes bit-identical while an optimiser runs: it guards the update, not only the gradient.

The frozen entries' gradients are set to zero as soon as they are accumulated, that is, before the norm is clipped and
before the moments are formed; after every optimiser step the frozen entries get their bits back, which undoes what weight
decay does without a gradient. Kept for that are the frozen entries' values, nothing for those that may move.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from efface.errors import ConfigError
from efface.train.weight_mask import WeightMask


def refuse_masked(model: Any, what: str = "scope=mask") -> None:
    """Refuse a model whose own weights do not train: with adapters, or quantised.

    Args:
        what: is refused, in the words of the message.

    Raises:
        ConfigError: which of the two it is.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ConfigError(
            f"{what} on a model with an adapter", "a model whose own weights train",
            "merge the adapter, or use another scope",
        )  # fmt: skip
    packed = any(
        type(p).__name__ in {"Params4bit", "Int8Params"} or not p.is_floating_point() for p in model.parameters()
    )
    if packed or getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None) is not None:
        raise ConfigError(f"{what} on a quantised model", "weights in floating point", "load it in full precision")


class MaskGuard(TrainerCallback):  # type: ignore[misc]
    """Context manager around training, and a callback of the engine; with a bare optimiser use `attach`.

    Args:
        model: the module whose parameters train.
        mask: what may move; see `WeightMask.parameters` for what it must fit.

    Raises:
        ConfigError: the model has an adapter or is quantised.
        InputError: the mask does not fit the model.
    """

    def __init__(self, model: Any, mask: WeightMask) -> None:
        refuse_masked(model)
        self.parameters: list[tuple[Tensor, Tensor, Tensor]] = []  # parameter, frozen entries, their values
        self.handles: list[Any] = []
        for name, parameter in mask.parameters(model).items():
            frozen = mask.masks[name].to(parameter.device).logical_not()
            if parameter.requires_grad and bool(frozen.any()):
                self.parameters.append((parameter, frozen, parameter.detach()[frozen].clone()))

    def __enter__(self) -> MaskGuard:
        for parameter, frozen, _ in self.parameters:
            hook = parameter.register_post_accumulate_grad_hook(_forget_gradient(frozen))  # type: ignore[no-untyped-call]
            self.handles.append(hook)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self.handles:
            self.handles.pop().remove()

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Restore after each step of this optimiser, for loops without the engine."""
        self.handles.append(optimizer.register_step_post_hook(lambda *_: self.restore()))

    def restore(self) -> None:
        """Give the frozen entries their bits back."""
        with torch.no_grad():
            for parameter, frozen, values in self.parameters:
                parameter.masked_scatter_(frozen, values)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the engine after the step and before anything is saved."""
        self.restore()


def _forget_gradient(frozen: Tensor) -> Any:
    def hook(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.masked_fill_(frozen, 0.0)

    return hook


@contextlib.contextmanager
def guarding(model: Any, mask: WeightMask | None) -> Iterator[tuple[Any, ...]]:
    """The engine's callbacks while a mask is on; none without a mask."""
    if mask is None:
        yield ()
        return
    with MaskGuard(model, mask) as guard:
        yield (guard,)
