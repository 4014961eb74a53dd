"""Run by test_distributed.py in one or two processes: train the tiny model and store its weights."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from safetensors.torch import save_file

import efface
from efface.data import Request
from efface.train import engine
from efface.train.config import TrainConfig
from efface.train.supervised import answer_loss, supervised_schedule


def main() -> None:
    """Arguments: model folder, JSONL of rows, folder for the result."""
    model, data, out = (Path(word) for word in sys.argv[1:])
    subject = efface.load(model)
    rows = subject.encode_rows(Request.load(forget=data).forget)
    config = TrainConfig(
        learning_rate=1e-2, epochs=3, batch_size=8, micro_batch_size=2, seed=1, checkpoint_seconds=1e9, weight_decay=0.0
    )
    rank = os.environ.get("RANK", "0")
    engine.train(
        subject.model, supervised_schedule(rows, config), answer_loss, config, folder=out / f"work{rank}", pad_id=0
    )
    if rank == "0":
        save_file(
            {name: value.detach().clone() for name, value in subject.weights().items()}, out / "weights.safetensors"
        )


if __name__ == "__main__":
    main()
