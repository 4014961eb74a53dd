"""Train a small CLIP in as many processes as `torch.distributed.run` starts: learn_script.py DATA OUT CHUNK."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from efface.learn.run import learn

if __name__ == "__main__":
    torch.set_num_threads(1)
    data, out, chunk = sys.argv[1:]
    learn(
        "clip", data, Path(out), batch_size=8, epochs=2, learning_rate=1e-3, chunk=int(chunk) or None,
        start={"width": 32, "depth": 1, "heads": 2, "image_size": 16, "patch": 8, "context": 8},
    )  # fmt: skip
