"""Train an ensemble of sliced models: every stage once, each from its rows, its parent and its own seed alone.

What a stage becomes depends on nothing else: the rows come in an order of their digests, the schedule is fixed (no early
stopping, no choice of checkpoints), the optimiser starts anew, and adapter, order and dropout are seeded by the stage's
name. So a stage whose slices lost no record is, bit for bit, the stage of a run that never saw the lost ones
(S3T, arXiv 2406.16257; the official code stops early and picks checkpoints on the test set, which lets influence through).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from efface.errors import RequestError
from efface.run.digests import digest_value
from efface.run.files import make_folder, write_with
from efface.subjects.prompts import Encoded
from efface.subjects.sliced import Node, SlicedLM, adapter_name
from efface.train.config import TrainConfig
from efface.train.engine import isolated_rng, train
from efface.train.supervised import answer_loss, supervised_schedule

NEVER = 1e9
"""Seconds between checkpoints within a stage: the stage is what a killed run goes on from."""


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    save_file(tensors, path)


def stage_seed(seed: int, node: Node) -> int:
    """A seed of its own for every stage."""
    return int(digest_value([seed, node[0], list(node[1])]).removeprefix("sha256:")[:8], 16)


def fresh_adapter(model: SlicedLM, node: Node, seed: int) -> None:
    """LoRA's start for one stage: A uniform as `torch.nn.Linear`, B zero."""
    with isolated_rng(stage_seed(seed, node)), torch.no_grad():
        for name, tensor in sorted(model.tensors_of(node).items()):
            if ".lora_A." in name:
                torch.nn.init.kaiming_uniform_(tensor, a=5**0.5)
            else:
                tensor.zero_()


def train_stages(
    model: SlicedLM, rows: Mapping[str, Encoded], config: TrainConfig, *, work: Path, pad_id: int
) -> tuple[int, int, float]:  # fmt: skip
    """Train every stage of every live prefix, in place; what a deletion has cut stays zero.

    Args:
        model: with its plan; requests in the plan's ledger count.
        rows: every record that the live prefixes need, by id. Others may be absent.
        work: finished stages are kept here, so that a killed run goes on with the next one.

    Returns:
        rows seen, tokens seen, and the mean loss of the last step over the stages.

    Raises:
        RequestError: a row of the plan is missing.
    """
    assert model.plan is not None
    plan = model.plan
    with torch.no_grad():
        model.requests.copy_(torch.from_numpy(plan.requests()))
        for node in model.nodes:
            for tensor in model.tensors_of(node).values():
                tensor.zero_()
    items = tokens = 0
    last: list[float] = []
    make_folder(work)
    for node in model.live_nodes():
        names = plan.rows(*node)
        absent = [name for name in names if name not in rows]
        if absent:
            raise RequestError(f"record '{absent[0]}' of the plan is not in the data", "every record of a live slice")
        own = model.tensors_of(node)
        stored = work / f"{adapter_name(node)}.safetensors"
        settings = config.model_copy(update={"seed": stage_seed(config.seed, node), "checkpoint_seconds": NEVER})
        schedule = supervised_schedule([rows[name] for name in names], settings)
        items, tokens = items + len(schedule), tokens + schedule.total_tokens
        if stored.exists():
            saved: dict[str, Any] = load_file(stored)
            with torch.no_grad():
                for name, tensor in own.items():
                    tensor.copy_(saved[name])
            continue
        fresh_adapter(model, node, config.seed)
        model.activate(*node)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for tensor in own.values():
            tensor.requires_grad_(True)
        log = train(
            model.base, schedule, answer_loss, settings, folder=work / "checkpoints", pad_id=pad_id,
            label=adapter_name(node),
        )  # fmt: skip
        last.append(log.values[-1]["nll"])
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in own.items()}
        write_with(stored, partial(_write, kept))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    model.eval()
    return items, tokens, sum(last) / len(last) if last else 0.0
