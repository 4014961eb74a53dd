"""Two gloo processes give the losses and gradients of one, for every recipe of several views, of a queue and of weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

SCRIPT = str(Path(__file__).with_name("view_script.py"))


def test_two_processes_are_one(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, command in (("one", [sys.executable]), ("two", launch)):
        words = [*command, SCRIPT, str(tmp_path / name)]
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    assert set(one) == set(two)
    recipes = {key.split(".")[0] for key in one}
    assert len(recipes) == 10
    for recipe in recipes:
        values = {key: value for key, value in one.items() if key.startswith(f"{recipe}.1.")}
        assert any(float(value.abs().max()) > 1e-3 for key, value in values.items() if not key.endswith("loss")), recipe
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=2e-6, rtol=2e-5, msg=lambda text, key=key: f"{key}: {text}")
