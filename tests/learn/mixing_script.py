"""Train three recipes in as many processes as `torch.distributed.run` starts: mixing_script.py DATA OUT.

The encoders have no batch norm and views are the items themselves, so that one process must give what two give.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from efface.learn.run import learn

RUNS: dict[str, dict[str, Any]] = {
    "mochi": {
        "queue_size": 24, "hard": 6, "mixed": 5, "with_anchor": 3, "momentum": 0.9, "synthesis_epoch": 1, "projector": 8,
    },
    "supremix": {"window": 0.3, "projector": 8},
    "simlap": {"width": 8, "hidden": 16, "label_width": 8, "gate_hidden": 16, "pairs": "distinct"},
}  # fmt: skip

if __name__ == "__main__":
    torch.set_num_threads(1)
    data, out = sys.argv[1:]
    for recipe, more in RUNS.items():
        learn(
            recipe, data, Path(out) / recipe, batch_size=16, epochs=3, learning_rate=1e-2, evaluations=0,
            start={"widths": (16, 8)}, feature_views={"corrupt": 0.0}, optimizer="sgd", **more,
        )  # fmt: skip
