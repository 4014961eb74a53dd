"""DEXML with labels in shards, cMIM's factor over all codes, and MCL's stages: two gloo processes give what one gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import efface

SCRIPT = Path(__file__).with_name("stages_script.py")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """What one and what two processes left."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    out = tmp_path_factory.mktemp("stages")
    for name, command, more in (("one", [sys.executable], []), ("two", launch, ["processes"])):
        done = subprocess.run(
            [*command, str(SCRIPT), str(out / name), *more],
            capture_output=True,
            text=True,
            env=environment,
            timeout=400,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return out / "one", out / "two"


def test_shares_and_their_gradients_add_up(both: tuple[Path, Path]) -> None:
    one, two = (load_file(folder / "shares.safetensors") for folder in both)
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, atol=2e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    for name in ("decoupled.False", "soft-top-k.True", "shortlist", "cmim"):
        moving = [value for key, value in one.items() if key.startswith(name) and not key.endswith(".loss")]
        assert all(float(value.abs().max()) > 1e-6 for value in moving), f"{name}: nothing to compare"


def test_stages_end_alike(both: tuple[Path, Path]) -> None:
    one, two = (efface.load(folder / "mcl") for folder in both)
    assert one.width == two.width == 12
    items = [[9.0, 0, 1, 0], [-9.0, 0, 0, 1], [1.0, 2.0, 3.0, 4.0]]
    torch.testing.assert_close(two.embed(items), one.embed(items), atol=1e-4, rtol=0)
