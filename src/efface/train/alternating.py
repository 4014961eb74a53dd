"""Training with several optimisers that take turns within a step; what the engine's one optimiser cannot do.

A step is one batch. Each turn computes its own loss on it with the weights that the turn before left, and its own optimiser
moves its own parameters: two losses on one network (label-agnostic forgetting), or two parts of it against each other. The
loop stands on Accelerate alone; everything with a single optimiser and a checkpointed schedule belongs to `engine.train`,
small side models of such a system (one turn) may come here.

A checkpoint holds the moving weights, buffers, every optimiser's state, the generators' states and the step, as safetensors
and JSON under a manifest; a run killed at any moment goes on from the newest whole one and ends with the bits of a run that
was never killed (same machine, same threads).
"""

from __future__ import annotations

import contextlib
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import get_scheduler

from efface.errors import ConfigError, InputError
from efface.run.digests import digest_value
from efface.run.files import make_folder, read_json, sweep, whole_folder, write_json
from efface.run.manifest import write_manifest
from efface.run.progress import track
from efface.train.config import TrainConfig
from efface.train.engine import (
    Diverged,
    LossFunction,
    TrainLog,
    first_process,
    isolated_rng,
    newest_checkpoint,
    wait_for_all,
    world_size,
)
from efface.train.rows import RowSchedule
from efface.train.streams import Schedule

TENSORS, STATE = "state.safetensors", "state.json"


@dataclass(frozen=True)
class Turn:
    """One optimiser and what it minimises.

    Args:
        name: in the log, in errors and in checkpoints.
        loss: as in the engine: (model, batch) -> (this process's share of the step's loss, numbers for the log).
        learning_rate: its peak; the shape over time is the configuration's.
        parameters: what it moves, all of the model; default: the parameters that require a gradient.
    """

    name: str
    loss: LossFunction
    learning_rate: float
    parameters: Sequence[nn.Parameter] | None = None


@dataclass
class _Seat:
    """A turn at work: its parameters by name, its optimiser and its learning-rate schedule."""

    turn: Turn
    named: dict[str, nn.Parameter]
    optimiser: torch.optim.Optimizer
    schedule: Any


def alternate(
    model: nn.Module, schedule: Schedule | RowSchedule, turns: Sequence[Turn], config: TrainConfig, *, folder: Path,
    collator: Callable[[Any], dict[str, Any]], label: str = "train", training: bool = True,
    after: Callable[[int], bool] | None = None,
) -> TrainLog:  # fmt: skip
    """Train `model` in place; its mode and its `requires_grad` flags come back, and no gradient is left behind.

    Args:
        model: holds the parameters of all turns (two networks go into one `ModuleList`).
        schedule: every batch of the run.
        turns: in the order in which they come within a step.
        config: kind of optimiser, momentum, decay (of matrices), warm-up, schedule, clipping, precision, seed, time between
            checkpoints; its `learning_rate` is not read.
        folder: where checkpoints live while the run is under way; emptied by the caller when done.
        collator: items of the schedule to a batch.
        label: name in the progress bar.
        training: mode of the model throughout; False: dropout off, batch norms by their stored statistics.
        after: called with the number of finished steps after each; True ends the run there. Must rest on the weights and
            that number alone, so that a resumed run decides alike.

    Raises:
        Diverged: a loss is NaN or infinite.
        ConfigError: no turns, two of one name, or micro-batches, which a loss over the whole batch cannot have.
        InputError: a turn without parameters, or with parameters that are not the model's.
        StorageError: a checkpoint cannot be written.
    """
    _refuse(turns, schedule, config)
    make_folder(folder)
    sweep(folder)
    chosen = {turn.name: _named(model, turn) for turn in turns}
    log = TrainLog([], [])
    with isolated_rng(config.seed), _at_work(model, chosen, training):
        AcceleratorState._reset_state(reset_partial_state=True)  # as the Trainer does: no earlier run's settings bind
        accelerator = Accelerator(cpu=not torch.cuda.is_available(), device_placement=world_size() > 1)
        wrapped = accelerator.prepare_model(model)  # one process: the model itself, where it is
        device = next(model.parameters()).device
        seats = [_seat(turn, chosen[turn.name], schedule.steps, config) for turn in turns]
        key = _key(seats, schedule, config)
        done = _resume(folder, model, seats, key)
        with track(label, schedule.steps, start=done) as advance:
            last = time.monotonic()
            for step in range(done, schedule.steps):
                batch = send_to_device(collator(_items(schedule, step)), device)
                numbers: dict[str, float] = {}
                for seat in seats:
                    numbers |= _take(accelerator, wrapped, model, seat, batch, config, step)
                log.steps.append(step)
                log.values.append(numbers)
                advance(1)
                if after is not None and after(step + 1):
                    break
                if time.monotonic() - last >= config.checkpoint_seconds and step + 1 < schedule.steps:
                    _save(folder, step + 1, model, seats, key)
                    last = time.monotonic()
    return TrainLog(log.steps, log.values, resumed_from=done)


def _refuse(turns: Sequence[Turn], schedule: Schedule | RowSchedule, config: TrainConfig) -> None:
    names = [turn.name for turn in turns]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"the turns {names}", "at least one, each with a name of its own")
    if config.micro_batch_size not in (None, schedule.batch_size // world_size()):
        raise ConfigError(
            f"micro_batch_size={config.micro_batch_size} with alternating optimisers", "the whole batch in one forward pass",
            "leave it out, or lower batch_size",
        )  # fmt: skip
    if schedule.batch_size % world_size():
        raise ConfigError(f"batch_size={schedule.batch_size} on {world_size()} processes", "a multiple of them")


def _named(model: nn.Module, turn: Turn) -> dict[str, nn.Parameter]:
    """The parameters of a turn by their names in the model."""
    names = {id(p): name for name, p in model.named_parameters()}
    wanted = [p for p in model.parameters() if p.requires_grad] if turn.parameters is None else list(turn.parameters)
    if not wanted or any(id(p) not in names for p in wanted):
        raise InputError(
            f"turn '{turn.name}' moves {'a parameter outside the model' if wanted else 'nothing'}",
            "at least one parameter, all of the model", "put all networks of the run into one module",
        )  # fmt: skip
    return {names[id(p)]: p for p in wanted}


@contextlib.contextmanager
def _at_work(model: nn.Module, chosen: dict[str, dict[str, nn.Parameter]], training: bool) -> Iterator[None]:
    """Only the turns' parameters require gradients; afterwards modes, flags and gradients are as before, or gone."""
    moving = {id(p) for named in chosen.values() for p in named.values()}
    modes = {module: module.training for module in model.modules()}
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for p, _ in flags:
            p.requires_grad_(id(p) in moving)
        model.train(training)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for p, flag in flags:
            p.requires_grad_(flag)
            p.grad = None


def _seat(turn: Turn, named: dict[str, nn.Parameter], steps: int, config: TrainConfig) -> _Seat:
    groups = [
        {"params": [p for p in named.values() if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in named.values() if p.dim() < 2], "weight_decay": 0.0},
    ]  # biases, norms and temperatures are not pulled to zero
    groups = [group for group in groups if group["params"]]
    rate = turn.learning_rate
    optimiser: torch.optim.Optimizer
    if config.optimizer == "sgd":
        optimiser = torch.optim.SGD(groups, lr=rate, momentum=config.momentum)
    else:
        optimiser = (torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW)(groups, lr=rate)
    warm = round(config.warmup_ratio * steps)
    made = get_scheduler(config.schedule, optimiser, num_warmup_steps=warm, num_training_steps=steps)
    return _Seat(turn, named, optimiser, made)


def _items(schedule: Schedule | RowSchedule, step: int) -> list[Any]:
    """This process's part of a batch."""
    part = schedule.batch_size // world_size()
    rank = torch.distributed.get_rank() if world_size() > 1 else 0
    start = step * schedule.batch_size + rank * part
    return [schedule[position] for position in range(start, start + part)]


def _take(
    accelerator: Any, wrapped: Any, model: nn.Module, seat: _Seat, batch: dict[str, Any], config: TrainConfig, step: int
) -> dict[str, float]:
    """One turn: forward, backward, clip, step. No gradient of another turn's loss takes part."""
    for p in model.parameters():
        p.grad = None
    half = config.precision == "bfloat16"
    with torch.autocast(next(model.parameters()).device.type, dtype=torch.bfloat16, enabled=half):
        loss, numbers = seat.turn.loss(wrapped, batch)
    if not bool(torch.isfinite(loss.detach())):
        raise Diverged(
            f"the {seat.turn.name} loss became {float(loss.detach())} at step {step}; lower its learning rate; nothing was "
            "written"
        )
    accelerator.backward(loss * world_size())  # several processes average their gradients; the shares of a step add up
    accelerator.clip_grad_norm_(list(seat.named.values()), config.max_grad_norm)
    seat.optimiser.step()
    seat.schedule.step()
    return {seat.turn.name: float(loss.detach()), **numbers}


# -- checkpoints ---------------------------------------------------------------------------------------------------


def _key(seats: Sequence[_Seat], schedule: Schedule | RowSchedule, config: TrainConfig) -> str:
    """Digest of what a checkpoint must have been made under to be gone on from."""
    return digest_value({
        "turns": [[seat.turn.name, seat.turn.learning_rate, list(seat.named)] for seat in seats],
        "steps": schedule.steps, "batch_size": schedule.batch_size,
        "config": config.model_dump(mode="json", exclude={"checkpoint_seconds"}),
    })  # fmt: skip


def _live(model: nn.Module, seats: Sequence[_Seat]) -> dict[str, Tensor]:
    """What a run may change in the model: the turns' parameters, and the stored buffers (norms' statistics)."""
    stored = set(model.state_dict())
    found: dict[str, Tensor] = {name: buffer for name, buffer in model.named_buffers() if name in stored}
    return found | {name: p for seat in seats for name, p in seat.named.items()}


def _save(folder: Path, step: int, model: nn.Module, seats: Sequence[_Seat], key: str) -> None:
    """Write a checkpoint, whole or not at all, and delete the older ones."""
    if first_process():
        tensors = {f"model/{name}": tensor.detach() for name, tensor in _live(model, seats).items()}
        tensors["random/torch"] = torch.get_rng_state()
        for index, state in enumerate(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ()):
            tensors[f"random/cuda/{index}"] = state
        plain: dict[str, Any] = {}
        for seat in seats:
            own = seat.optimiser.state_dict()
            numbers: dict[str, dict[str, Any]] = {}
            for index, entries in own["state"].items():
                numbers[str(index)] = {k: v for k, v in entries.items() if not isinstance(v, Tensor)}
                place = f"turn/{seat.turn.name}/{index}"
                tensors |= {f"{place}/{k}": v for k, v in entries.items() if isinstance(v, Tensor)}
            plain[seat.turn.name] = {
                "groups": own["param_groups"], "numbers": numbers, "schedule": seat.schedule.state_dict()
            }  # fmt: skip
        words: Any = np.random.get_state(legacy=False)
        words["state"]["key"] = words["state"]["key"].tolist()
        path = folder / f"checkpoint-{step}"
        with whole_folder(path) as partial:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial / TENSORS)
            facts = {"step": step, "key": key, "python": random.getstate(), "numpy": words}
            write_json(partial / STATE, {**facts, "turns": plain})
            write_manifest(partial, step=step)
        for other in folder.glob("checkpoint-*"):
            if other != path:
                shutil.rmtree(other, ignore_errors=True)
    wait_for_all()


def _resume(folder: Path, model: nn.Module, seats: Sequence[_Seat], key: str) -> int:
    """Put the newest whole checkpoint of this very run in place; the number of steps that it has done, 0 without one."""
    start = newest_checkpoint(folder)
    state = None if start is None else read_json(start / STATE)
    if start is None or state is None or state["key"] != key:
        wait_for_all()
        for other in folder.glob("checkpoint-*"):
            shutil.rmtree(other, ignore_errors=True)
        return 0
    tensors = load_file(start / TENSORS)
    with torch.no_grad():
        for name, live in _live(model, seats).items():
            live.copy_(tensors[f"model/{name}"])
    for seat in seats:
        own = state["turns"][seat.turn.name]
        entries = {int(index): dict(numbers) for index, numbers in own["numbers"].items()}
        place = f"turn/{seat.turn.name}/"
        for name in [name for name in tensors if name.startswith(place)]:
            index, _, k = name.removeprefix(place).partition("/")
            entries[int(index)][k] = tensors[name]
        seat.optimiser.load_state_dict({"state": entries, "param_groups": own["groups"]})
        seat.schedule.load_state_dict(own["schedule"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    state["numpy"]["state"]["key"] = np.asarray(state["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state(state["numpy"])
    torch.set_rng_state(tensors["random/torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all([tensors[name] for name in sorted(tensors) if name.startswith("random/cuda/")])
    return int(state["step"])


__all__ = ["Turn", "alternate"]
