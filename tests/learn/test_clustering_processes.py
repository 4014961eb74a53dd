"""swav and beclr over two processes: losses, weights, queues, memories and teacher of one process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from clustering_script import SETTINGS, found
from safetensors.torch import load_file
from torch import Tensor


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("two")
    script = str(Path(__file__).with_name("clustering_script.py"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, script, str(folder)],
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {name: load_file(folder / f"{name}.safetensors") for name in SETTINGS}


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_are_one(name: str, two: dict[str, dict[str, Tensor]]) -> None:
    one = found(name)
    assert one.keys() == two[name].keys()
    if name == "swav":
        assert int(one["queues.0.count"]) == 19, "the queue must have filled and wrapped"
    else:
        assert int(one["memories.teacher.clusterings"]) == 2, "clusters must have been made anew"
        assert int(one["memories.teacher.ring.count"]) == 32
    for key, value in one.items():
        torch.testing.assert_close(
            two[name][key], value, atol=1e-11, rtol=1e-9, msg=lambda text, key=key: f"{key}: {text}"
        )
