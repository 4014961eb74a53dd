"""Many models of one form trained together: one stack of parameters, one optimiser, each model on rows of its own.

Membership attacks ask how models treat an example with and without it in training, and need tens of models for that. Under
`torch.func.vmap` the parameters of M models are one tensor [M, ...] each, a step takes a batch [M, B, ...], and the models
do not touch each other: the sum of their losses splits into their gradients, SGD and Adam work by element, and the norm that
is clipped is each model's own. So a stack gives what the models would give one after another, to float rounding.

The recipe is the engine's (`efface.train.engine`): its loss, decay on the same parameters, the same schedules and clipping.
`micro_batch_size`, `precision` and checkpoints are not followed. Models whose batch norms keep running statistics, and models
whose forward pass refuses vmap, are trained one after another, by the same steps, and a note says so.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from transformers import get_scheduler
from transformers.trainer_pt_utils import get_parameter_names

from efface.errors import ConfigError, InputError
from efface.run.progress import track
from efface.subjects.answers import predicted, sample_answers
from efface.subjects.predictor import Predictor
from efface.subjects.samples import Inputs, Sample
from efface.train.config import TrainConfig
from efface.train.engine import Diverged, isolated_rng
from efface.train.streams import row_order

Keep = npt.NDArray[np.bool_]
"""[M, n]: which model may see which row."""

READY_BYTES = 2**30
"""Inputs of all rows are kept as one tensor up to this size; above it, batches are made when they come."""

NO_DECAY = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
"""The Trainer's patterns; scalars are spared too, as the engine does."""

OF_NORMS = "one after another: batch norms keep running statistics of their own model"


def batch_plan(keep: Keep, recipe: TrainConfig, seeds: Sequence[int]) -> npt.NDArray[np.int64]:
    """Row numbers [M, steps, B] of every batch; model m draws from the rows that it may see, in an order of its own seed.

    Every model makes as many steps as `epochs` passes over the smallest share take.

    Raises:
        InputError: a model that may see no row.
    """
    sizes = keep.sum(axis=1)
    if (sizes < 1).any():
        raise InputError(f"model {int(np.argmax(sizes < 1))} of the stack sees no row", "one row or more")
    smallest = int(sizes.min())
    batch = min(recipe.batch_size, smallest)
    steps = max(1, round(recipe.epochs * smallest / batch))
    plan = np.empty((len(keep), steps, batch), dtype=np.int64)
    for model, seed in enumerate(seeds):
        own = np.flatnonzero(keep[model])
        order = row_order(len(own), steps * batch, np.random.default_rng(seed))
        plan[model] = own[order].reshape(steps, batch)
    return plan


def train_stack(
    subject: Predictor, modules: Sequence[Any], rows: Sequence[Sample], keep: Keep, recipe: TrainConfig, *,
    seeds: Sequence[int], together: bool = True, label: str = "shadow models",
) -> str:  # fmt: skip
    """Train modules in place, module m on the rows with `keep[m]`.

    Args:
        subject: of the modules' form; makes the batches, and is not changed.
        modules: M, with different weights; parameters that require no gradient stay as they are.
        rows: n.
        keep: [M, n].
        recipe: optimiser, schedule, epochs, batch size, clipping.
        seeds: [M] of the batches' orders; the first of them is that of dropout too.
        together: false trains one after another whatever the modules are.

    Returns:
        why they were not trained together, or nothing.

    Raises:
        InputError: shapes that do not fit, or a model that may see no row.
        Diverged: a loss became NaN or infinite.
    """
    if keep.shape != (len(modules), len(rows)) or keep.dtype != np.bool_ or len(seeds) != len(modules) or not modules:
        raise InputError(
            f"keep {keep.dtype} {list(keep.shape)} and {len(seeds)} seeds for {len(modules)} models and {len(rows)} rows",
            "true and false [M, n], and M seeds",
        )  # fmt: skip
    plan = batch_plan(keep, recipe, seeds)
    feed = _feed(subject, rows)
    modes = [module.training for module in modules]
    for module in modules:
        module.to(subject.device).train()
    try:
        note = _why_not(modules, feed, plan[:, 0]) if together and len(modules) > 1 else ""
        with isolated_rng(seeds[0]), track(label, plan.shape[0] * plan.shape[1]) as advance:
            if together and len(modules) > 1 and not note:
                _train_together(modules, feed, plan, recipe, advance)
            else:
                for module, own in zip(modules, plan, strict=True):
                    _train_one(module, feed, own, recipe, advance)
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)
    return note


def outputs_of(subject: Predictor, module: Any, rows: Sequence[Sample], batch_size: int = 256) -> Tensor:
    """[n, K] float32 logits or numbers of a module of the subject's form, in evaluation mode, on the CPU."""
    mode = module.training
    module.to(subject.device).eval()
    try:
        with torch.no_grad():
            parts = [
                predicted(module, _inputs(subject.batch(rows[start : start + batch_size]))).cpu()
                for start in range(0, len(rows), batch_size)
            ]
    finally:
        module.train(mode)
    return torch.cat(parts)


# -- batches -------------------------------------------------------------------------------------------------------

Feed = Callable[[npt.NDArray[np.int64]], tuple[Inputs, Tensor]]
"""Row numbers [...] to inputs [..., *] by name and targets [...]."""


def _inputs(batch: dict[str, Inputs | Tensor]) -> Inputs:
    found = batch["inputs"]
    assert isinstance(found, dict)
    return found


def _feed(subject: Predictor, rows: Sequence[Sample]) -> Feed:
    def collated(chosen: Sequence[Sample]) -> tuple[Inputs, Tensor]:
        made = subject.batch(chosen)
        target = made["target"]
        assert isinstance(target, Tensor)
        return _inputs(made), target

    size = sum(tensor.numel() * tensor.element_size() for tensor in rows[0].make().values())
    if size * len(rows) <= READY_BYTES:
        inputs, targets = collated(rows)

        def ready(index: npt.NDArray[np.int64]) -> tuple[Inputs, Tensor]:
            place = torch.from_numpy(index).to(subject.device)
            return {name: tensor[place] for name, tensor in inputs.items()}, targets[place]

        return ready

    def made(index: npt.NDArray[np.int64]) -> tuple[Inputs, Tensor]:
        parts, target = collated([rows[i] for i in index.ravel().tolist()])
        return {name: part.view(*index.shape, *part.shape[1:]) for name, part in parts.items()}, target.view(
            index.shape
        )

    return made


# -- steps ---------------------------------------------------------------------------------------------------------


def _loss(model: Any, inputs: Inputs, target: Tensor) -> Tensor:
    answers = sample_answers(predicted(model, inputs), target)
    return -answers.logp_sum.mean()


def _together(base: Any) -> Callable[..., Tensor]:
    """(parameters, buffers, inputs, targets), all [M, ...], to losses [M]."""

    def one(params: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Inputs, target: Tensor) -> Tensor:
        def model(*args: Any, **named: Any) -> Any:
            return functional_call(base, (params, buffers), args, named)

        return _loss(model, inputs, target)

    mapped: Callable[..., Tensor] = vmap(one, randomness="different")
    return mapped


@contextlib.contextmanager
def _no_speed_advice() -> Iterator[None]:
    """vmap warns where an operator (attention) is looped over models; it is right, only slower."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*batching rule.*", category=UserWarning)
        yield


def _why_not(modules: Sequence[Any], feed: Feed, first: npt.NDArray[np.int64]) -> str:
    """Why these modules cannot be trained as a stack, by trying the first step; nothing is changed."""
    norms = torch.nn.modules.batchnorm._NormBase
    if any(isinstance(part, norms) and part.track_running_stats for part in modules[0].modules()):
        return OF_NORMS
    try:
        with isolated_rng(0), _no_speed_advice():
            params, buffers = stack_module_state(list(modules))
            live = [tensor for tensor in params.values() if tensor.requires_grad]
            losses = _together(modules[0])(params, buffers, *feed(first))
            torch.autograd.grad(losses.sum(), live, allow_unused=True)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:  # a true error comes again, one by one
        return f"one after another: the forward pass refuses vmap ({(str(error) or repr(error)).splitlines()[0][:160]})"
    return ""


def _train_together(
    modules: Sequence[Any], feed: Feed, plan: npt.NDArray[np.int64], recipe: TrainConfig, advance: Callable[[int], None]
) -> None:
    params, buffers = stack_module_state(list(modules))
    mapped = _together(modules[0])

    def losses(step: int) -> Tensor:
        return mapped(params, buffers, *feed(plan[:, step]))

    live = {name: tensor for name, tensor in params.items() if tensor.requires_grad}
    with _no_speed_advice():
        _descend(live, losses, plan.shape[1], recipe, _decayed(modules[0]), True, lambda n: advance(n * len(modules)))
    with torch.no_grad():
        for index, module in enumerate(modules):
            for name, tensor in live.items():
                module.get_parameter(name).copy_(tensor[index])
            for name, tensor in buffers.items():
                module.get_buffer(name).copy_(tensor[index])


def _train_one(
    module: Any, feed: Feed, plan: npt.NDArray[np.int64], recipe: TrainConfig, advance: Callable[[int], None]
) -> None:
    live = {name: tensor for name, tensor in module.named_parameters() if tensor.requires_grad}

    def losses(step: int) -> Tensor:
        return _loss(module, *feed(plan[step]))[None]

    _descend(live, losses, len(plan), recipe, _decayed(module), False, advance)
    module.zero_grad(set_to_none=True)


def _descend(
    live: dict[str, Tensor], losses: Callable[[int], Tensor], steps: int, recipe: TrainConfig, decayed: set[str],
    stacked: bool, advance: Callable[[int], None],
) -> None:  # fmt: skip
    optimizer = _optimizer(live, recipe, decayed)
    rates: Any = get_scheduler(
        recipe.schedule, optimizer, num_warmup_steps=round(recipe.warmup_ratio * steps), num_training_steps=steps
    )
    for step in range(steps):
        loss = losses(step)
        values = loss.detach()
        if not bool(values.isfinite().all()):
            place = int((~values.isfinite()).int().argmax())
            raise Diverged(
                f"the loss of model {place} of the stack became {float(values[place])} at step {step}; lower learning_rate"
            )
        grads = torch.autograd.grad(loss.sum(), list(live.values()), allow_unused=True)
        factor = _clip_factor([grad for grad in grads if grad is not None], recipe.max_grad_norm, stacked)
        for tensor, grad in zip(live.values(), grads, strict=True):
            shape = (-1, *[1] * (tensor.ndim - 1)) if stacked else (1,) * max(1, tensor.ndim)
            tensor.grad = None if grad is None else (grad * factor.view(shape)).view_as(tensor)
        optimizer.step()
        rates.step()
        advance(1)
    for tensor in live.values():
        tensor.grad = None


def _decayed(module: Any) -> set[str]:
    """Names of the parameters that weight decay acts on: the engine's rule."""
    shapes = {name: parameter.dim() for name, parameter in module.named_parameters()}
    return {name for name in get_parameter_names(module, [torch.nn.LayerNorm], NO_DECAY) if shapes.get(name, 0) > 0}


def _optimizer(live: dict[str, Tensor], recipe: TrainConfig, decayed: set[str]) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [
        {"params": [tensor for name, tensor in live.items() if name in decayed], "weight_decay": recipe.weight_decay},
        {"params": [tensor for name, tensor in live.items() if name not in decayed], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ConfigError(
            "models without a parameter that may move", "one or more", "let some parameter require a gradient"
        )
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=recipe.learning_rate)


def _clip_factor(grads: Sequence[Tensor], limit: float, stacked: bool) -> Tensor:
    """What gradients are scaled by to have a norm of at most `limit`: [M] for a stack, each model its own; else [1]."""
    rows = [grad.reshape(len(grad) if stacked else 1, -1) for grad in grads]
    norm = torch.stack([row.square().sum(1) for row in rows]).sum(0).sqrt()
    return (limit / (norm + 1e-6)).clamp(max=1.0)


__all__ = ["Keep", "batch_plan", "outputs_of", "train_stack"]
