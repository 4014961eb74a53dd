"""The training engine: `transformers.Trainer` with paired batches, exact resume, and no global state left behind.

A checkpoint counts only when its manifest, written last, fits its files; a run killed at any moment goes on from the
newest such checkpoint and ends with the bits of a run that was never killed (same machine, same threads).
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from efface.errors import EffaceError, StorageError
from efface.run.files import TORCH_WRITER, explain, storage
from efface.run.manifest import MANIFEST, check_manifest, write_manifest
from efface.run.progress import track
from efface.subjects.quiet import quiet_transformers
from efface.train.config import TrainConfig
from efface.train.rows import RowSchedule
from efface.train.streams import Collator, Schedule

LossFunction = Callable[[Any, dict[str, Any]], tuple[Tensor, dict[str, float]]]
"""(model, batch) -> (scalar loss, numbers to log). The loss is this process's share of the optimiser step's mean: for
batches of streams weighted by `token_share` or `row_share`, for embeddings divided by the rows of all processes."""


class Diverged(EffaceError):
    """The loss is not a number any more."""

    exit_code = 1


@dataclass(frozen=True)
class TrainLog:
    """What a run leaves for the record: one entry a logged step."""

    steps: list[int]
    values: list[dict[str, float]]
    resumed_from: int = 0


@contextlib.contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed every global generator inside the block; outside, their states are as before."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(enabled=True):
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


class _Watch(TrainerCallback):  # type: ignore[misc]
    """Progress, checkpoints by the clock, and the manifest that makes a checkpoint count."""

    def __init__(self, folder: Path, seconds: float, advance: Callable[[int], None]) -> None:
        self.folder, self.seconds, self.advance = folder, seconds, advance
        self.last = time.monotonic()
        self.seen = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.advance(state.global_step - self.seen)
        self.seen = state.global_step
        if time.monotonic() - self.last >= self.seconds and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            path = self.folder / f"checkpoint-{state.global_step}"
            write_manifest(path, step=state.global_step)
            for other in self.folder.glob("checkpoint-*"):
                if other != path:
                    shutil.rmtree(other, ignore_errors=True)
        self.last = time.monotonic()


class _Engine(Trainer):  # type: ignore[misc]
    """Trainer whose batches come in the schedule's order and whose loss is a given function."""

    def __init__(self, *args: Any, loss: LossFunction, scale: float, settings: TrainConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = settings
        self.model_accepts_loss_kwargs = False
        self._loss = loss
        self._scale = scale
        self.log_rows: list[tuple[int, dict[str, float]]] = []

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """The Trainer's rule, and no decay on scalars: a learnt temperature is not to be pulled to one."""
        shapes = {name: parameter.dim() for name, parameter in model.named_parameters()}
        return [name for name in super().get_decay_parameter_names(model) if shapes.get(name, 1) > 0]

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """AdamW by the Trainer; the others over the same groups of parameters."""
        if getattr(self, "optimizer", None) is None and self._settings.optimizer != "adamw":
            decayed = set(self.get_decay_parameter_names(self.model))
            groups: list[dict[str, Any]] = [
                {"params": [], "weight_decay": self._settings.weight_decay}, {"params": [], "weight_decay": 0.0},
            ]  # fmt: skip
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    groups[name not in decayed]["params"].append(parameter)
            rate = self._settings.learning_rate
            adam = self._settings.optimizer == "adam"
            made: Any = (
                torch.optim.Adam(groups, lr=rate)
                if adam
                else torch.optim.SGD(groups, lr=rate, momentum=self._settings.momentum)
            )
            self.optimizer = made
            return made
        return super().create_optimizer(*args, **kwargs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The step's mean: `scale` undoes the averages over accumulation and processes that the Trainer takes."""
        loss, numbers = self._loss(model, inputs)
        if not bool(torch.isfinite(loss.detach())):
            raise Diverged(
                f"the loss became {float(loss.detach())} at step {self.state.global_step}; lower learning_rate, or choose a "
                "bounded loss; nothing was written"
            )
        self.log_rows.append((int(self.state.global_step), numbers))
        return (loss * self._scale, None) if return_outputs else loss * self._scale


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; broken ones are deleted."""
    found = []
    for path in folder.glob("checkpoint-*"):
        if (path / MANIFEST).exists() and not check_manifest(path):
            found.append((int(path.name.rpartition("-")[2]), path))
        else:
            shutil.rmtree(path, ignore_errors=True)
    return max(found)[1] if found else None


def train(
    model: Any, schedule: Schedule | RowSchedule, loss: LossFunction, config: TrainConfig, *, folder: Path,
    pad_id: int = 0, collator: Callable[[Any], dict[str, Any]] | None = None, label: str = "train",
    callbacks: tuple[Any, ...] = (),
) -> TrainLog:  # fmt: skip
    """Train `model` in place.

    Args:
        model: parameters that require gradients are optimised, no others.
        schedule: every batch of the run.
        loss: the objective; see `LossFunction`.
        folder: where checkpoints live while the run is under way; emptied by the caller when done.
        pad_id: fills up batches of token streams.
        collator: items of the schedule to a batch; default: padded token streams.
        label: name in the progress bar.

    Raises:
        Diverged: the loss is NaN or infinite.
        StorageError: a checkpoint cannot be written.
    """
    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
    mode = model.training
    start = newest_checkpoint(folder)
    with isolated_rng(config.seed), quiet_transformers():
        args, scale = _arguments(schedule, config, folder)
        done = int(start.name.rpartition("-")[2]) if start else 0
        with track(label, schedule.steps, start=done) as advance:
            watch = _Watch(folder, config.checkpoint_seconds, advance)
            watch.seen = done
            engine = _Engine(
                model=model, args=args, train_dataset=schedule, data_collator=collator or Collator(pad_id), loss=loss,
                scale=scale, settings=config, callbacks=[watch, *callbacks],
            )  # fmt: skip
            engine.remove_callback(PrinterCallback)
            engine.remove_callback(ProgressCallback)
            try:
                engine.train(resume_from_checkpoint=str(start) if start else None)
                mode = model.training  # done: the caller goes on with it as training left it
            except (OSError, RuntimeError) as error:
                if isinstance(error, OSError) or any(word in str(error) for word in (*TORCH_WRITER, "No space")):
                    raise explain(error, folder) from error
                raise
            except Exception as error:
                if type(error).__name__ == "SafetensorError":
                    raise explain(error, folder) from error
                raise
            finally:
                model.train(mode)  # after a failure: dropout as it was
                _release(engine)
    rows = engine.log_rows
    return TrainLog([step for step, _ in rows], [numbers for _, numbers in rows], resumed_from=done)


def _arguments(schedule: Schedule | RowSchedule, config: TrainConfig, folder: Path) -> tuple[TrainingArguments, float]:
    world = world_size()
    micro = config.micro_batch_size or max(1, schedule.batch_size // world)
    accumulate = schedule.batch_size // (micro * world)
    args = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=micro, gradient_accumulation_steps=accumulate,
        learning_rate=config.learning_rate, max_steps=schedule.steps, weight_decay=config.weight_decay,
        warmup_steps=round(config.warmup_ratio * schedule.steps), lr_scheduler_type=config.schedule,
        max_grad_norm=config.max_grad_norm, bf16=config.precision == "bfloat16", use_cpu=not torch.cuda.is_available(),
        seed=config.seed, data_seed=config.seed, report_to="none", save_strategy="no", logging_strategy="no",
        disable_tqdm=True, remove_unused_columns=False, dataloader_num_workers=0, dataloader_pin_memory=False,
        optim="adamw_torch",
    )  # fmt: skip
    return args, float(accumulate * world)


def world_size() -> int:
    """Number of processes of this run (set by `accelerate launch` or `torchrun`)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first_process() -> bool:
    """Whether this process is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def wait_for_all() -> None:
    """Until every process has come here; nothing in a single one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def _release(engine: Trainer) -> None:
    """Drop the optimiser's state and the wrapped model, so that a later phase starts with the memory free."""
    engine.optimizer = None
    engine.lr_scheduler = None
    with contextlib.suppress(AttributeError):
        engine.accelerator.free_memory()
    engine.model_wrapped = None


__all__ = ["Diverged", "LossFunction", "StorageError", "TrainLog", "isolated_rng", "newest_checkpoint", "train"]
