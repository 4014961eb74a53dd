"""Ordinary training on answers: the one loss that learning, retraining, fine-tuning and relearning share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from efface.subjects.answers import answer_logits
from efface.train.config import TrainConfig
from efface.train.engine import world_size
from efface.train.streams import Schedule, Stream, whole_batch


def answer_loss(model: Any, batch: dict[str, dict[str, Tensor]]) -> tuple[Tensor, dict[str, float]]:
    """Mean negative log-probability of the answer tokens of the optimiser step."""
    part = batch["train"]
    loss = -(answer_logits(model, part).logp_sum * part["token_share"]).sum()
    return loss, {"nll": float(loss.detach())}


def supervised_schedule(rows: Sequence[Any], config: TrainConfig) -> Schedule:
    """Batches of one stream, `train`, in a fresh order each epoch."""
    batch = whole_batch(len(rows), config.batch_size, config.micro_batch_size, world_size())
    return Schedule({"train": Stream(rows)}, anchor="train", epochs=config.epochs, batch_size=batch, seed=config.seed)
