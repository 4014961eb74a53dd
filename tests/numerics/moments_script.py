"""Run by test_moments.py in two processes: each takes its half of the rows, and both store the merged moments."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch.distributed

from efface.numerics.moments import Moments, merge_processes


def main() -> None:
    """Arguments: a .npy of rows, how many rows rank 0 takes, folder for the results."""
    rows = np.load(sys.argv[1], allow_pickle=False)
    split, out = int(sys.argv[2]), Path(sys.argv[3])
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    mine = rows[:split] if rank == 0 else rows[split:]
    merge_processes(Moments.of(mine, chunk=64)).save(out / f"rank{rank}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
