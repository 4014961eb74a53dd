"""World size 2 gives the result of world size 1: the engine under gloo on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("distributed_script.py")


def trained(command: list[str], model: Path, data: Path, out: Path) -> dict[str, torch.Tensor]:
    """Run the script and read the weights that it stored."""
    out.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    words = [*command, str(SCRIPT), str(model), str(data), str(out)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(out / "weights.safetensors")


def test_two_processes_equal_one(tiny_folder: Path, files: dict[str, Path], tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    one = trained([sys.executable], tiny_folder, files["retain"], tmp_path / "one")
    two = trained(launch, tiny_folder, files["retain"], tmp_path / "two")
    start = load_file(tiny_folder / "model.safetensors")
    assert any((one[name] - start[name]).abs().max() > 1e-3 for name in start), "training must have moved something"
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=2e-5, rtol=1e-4, msg=name)
