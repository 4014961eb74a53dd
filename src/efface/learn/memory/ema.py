"""A slowly moving copy of a module: the momentum encoder whose keys change little from step to step.

Paper: MoCo, He et al., arXiv 1911.05722, equation 2, k <- m k + (1 - m) q, m = 0.999; the cosine schedule to 1 is BYOL's,
Grill et al., arXiv 2006.07733: m = 1 - (1 - m0) (cos(pi t / T) + 1) / 2. Departure from the peers: buffers (running
statistics) follow by a stated rule and are never left as they were at the start.
"""

from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from efface.errors import ConfigError, ModelError


class EMA(nn.Module):
    """A copy of a module that follows it: `module` is the copy, `update(source)` moves it, calling it runs it.

    Nothing in it has a gradient. Whether it runs in training or evaluation mode is the caller's choice (`train()`,
    `eval()`); it starts in the source's. Copy and step count are in the state_dict.

    Args:
        source: what is copied.
        momentum: m, in [0, 1]; at the cosine schedule m0.
        schedule: `constant`, or `cosine` from m0 to 1 over `steps` updates.
        steps: T, updates of the whole run; needed for `cosine`.
        buffers: real buffers are averaged as parameters are, or copied. Others (counts, masks) are always copied.

    Raises:
        ConfigError: momentum outside [0, 1], or `cosine` without steps.
        ModelError: a module with lazily initialised or half-precision parameters, or one that cannot be copied.
    """

    step: Tensor

    def __init__(
        self, source: nn.Module, *, momentum: float = 0.999, schedule: Literal["constant", "cosine"] = "constant",
        steps: int | None = None, buffers: Literal["copy", "average"] = "copy",
    ) -> None:  # fmt: skip
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ConfigError(f"momentum={momentum}", "a number from 0 to 1")
        if schedule == "cosine" and (steps is None or steps < 1):
            raise ConfigError(f"a cosine momentum over steps={steps}", "1 or more", "give the updates of the whole run")
        _refuse(source)
        try:
            self.module = copy.deepcopy(source)
        except (RuntimeError, TypeError) as error:
            raise ModelError(f"a {type(source).__name__} cannot be copied ({error})", "a plain module") from error
        self.module.requires_grad_(False)
        for parameter in self.module.parameters():
            parameter.grad = None
        self.start, self.schedule, self.steps, self.buffer_rule = momentum, schedule, steps, buffers
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @property
    def momentum(self) -> float:
        """m of the next update."""
        if self.schedule == "constant" or self.steps is None:
            return self.start
        done = min(1.0, int(self.step) / self.steps)
        return 1 - (1 - self.start) * (math.cos(math.pi * done) + 1) / 2

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The copy's output, without gradient."""
        with torch.no_grad():
            return self.module(*args, **kwargs)

    @torch.no_grad()
    def update(self, source: nn.Module) -> None:
        """Move towards the source's present state; call it once after each optimiser step.

        Raises:
            ModelError: the source's parameters or buffers differ in name or shape from the copy's.
        """
        m = self.momentum
        mine, theirs = dict(self.module.named_parameters()), dict(source.named_parameters())
        states, sources = dict(self.module.named_buffers()), dict(source.named_buffers())
        _check({**mine, **states}, {**theirs, **sources})
        for name, parameter in mine.items():
            parameter.lerp_(theirs[name].to(parameter), 1 - m)
        for name, state in states.items():
            if self.buffer_rule == "average" and state.is_floating_point():
                state.lerp_(sources[name].to(state), 1 - m)
            else:
                state.copy_(sources[name])
        self.step += 1


def _refuse(source: nn.Module) -> None:
    for name, tensor in (*source.named_parameters(), *source.named_buffers()):
        if is_lazy(tensor):
            raise ModelError(
                f"'{name}' has no shape yet (a lazily initialised module)", None, "run one batch through it before"
            )
    for name, tensor in source.named_parameters():
        if tensor.dtype in (torch.float16, torch.bfloat16):
            # (1 - m) of a step is below the spacing of the numbers, so that the copy would never move
            raise ModelError(
                f"a moving average of '{name}' in {tensor.dtype}", "float32 parameters",
                "keep the weights in float32 and use precision=bfloat16 (autocast)",
            )  # fmt: skip


def _check(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name in sorted(mine.keys() ^ theirs.keys()):
        where = "copy" if name in mine else "source"
        raise ModelError(
            f"'{name}' is in the {where} only", "the module that was copied", "do not change its structure"
        )
    for name, tensor in mine.items():
        if tensor.shape != theirs[name].shape:
            raise ModelError(
                f"'{name}' has the shape {list(theirs[name].shape)} in the source",
                f"{list(tensor.shape)}, as in the copy",
            )
