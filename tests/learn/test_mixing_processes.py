"""MoCHi's shared queue and mixes, SupReMix's mixes and SimLAP's gates: two processes train what one trains."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from efface.run.files import read_json


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label = np.arange(48) % 4
    np.savez(
        tmp_path / "rows.npz", features=(rng.normal(size=(48, 6)) + 3 * np.eye(4, 6)[label]).astype("float32"),
        labels=label, targets=(label + rng.integers(0, 3, 48)).astype("float64"),
    )  # fmt: skip
    script = str(Path(__file__).with_name("mixing_script.py"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, command in (("one", [sys.executable]), ("two", launch)):
        words = [*command, script, str(tmp_path / "rows.npz"), str(tmp_path / name)]
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=400)
        assert done.returncode == 0, done.stderr[-2000:]
    for recipe in ("mochi", "supremix", "simlap"):
        one, two = (load_file(tmp_path / name / recipe / "model.safetensors") for name in ("one", "two"))
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, atol=1e-4, rtol=0, msg=f"{recipe} {key}")
        steps = [read_json(tmp_path / name / recipe / "learn.json")["steps"] for name in ("one", "two")]
        assert steps[0] == steps[1] == 9
    gates = [load_file(tmp_path / name / "simlap" / "gate" / "model.safetensors") for name in ("one", "two")]
    for key, value in gates[0].items():
        torch.testing.assert_close(gates[1][key], value, atol=1e-4, rtol=0)
