"""Gathering rows: the gradient of two gloo processes is the gradient of one; wrong shapes are named on every process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gather_script import Towers, data
from safetensors.torch import load_file

from efface.errors import InputError
from efface.train.gather import gather_plain, gather_rows, processes, rank

SCRIPT = Path(__file__).with_name("gather_script.py")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes filled."""
    out = tmp_path_factory.mktemp("gather")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(SCRIPT), str(out)], capture_output=True, text=True, env=environment, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def single() -> dict[str, torch.Tensor]:
    """Loss and gradients of one process without gather or caching: both directions of the whole matrix."""
    model = Towers()
    first, second = (model.embed({"x": x}) for x in data())
    logits = model.log_scale.exp() * first @ second.T
    rows, columns = logits.log_softmax(1).diagonal(), logits.log_softmax(0).diagonal()
    loss = -(rows.mean() + columns.mean()) / 2
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**found, "loss": loss.detach()}


@pytest.mark.parametrize("way", ["plain", "ddp", "cached1", "cached4"])
def test_two_processes_give_the_gradient_of_one(two: Path, way: str) -> None:
    expected = single()
    assert len(expected) == 6
    for process in range(2):
        found = load_file(two / f"rank{process}.safetensors")
        for name, value in expected.items():
            torch.testing.assert_close(found[f"{way}.{name}"], value, atol=1e-10, rtol=0, msg=f"{way} {name}")
    assert all(value.abs().max() > 1e-3 for value in expected.values())


def test_each_row_gets_what_every_process_owes_it(two: Path) -> None:
    for process in range(2):
        found = load_file(two / f"rank{process}.safetensors")
        rows = torch.tensor([1.0, 2.0], dtype=torch.float64) + 2 * process
        torch.testing.assert_close(found["owed"], (3 * rows)[:, None].expand(2, 3))  # 3: one and two times
        assert found["ids"].tolist() == [0, 1, 2, 10, 11, 12]
        assert found["flags"].tolist() == [False, True]
        assert found["half"].tolist() == [2.0, 2.0]
        assert found["half"].dtype == torch.bfloat16


def test_unequal_processes_are_named_on_both(two: Path) -> None:
    for process in range(2):
        assert "[2, 3] float32, [3, 3] float32 (by rank)" in (two / f"rows{process}.txt").read_text()
        assert "[2] float32, [2] float64 (by rank)" in (two / f"type{process}.txt").read_text()


def test_caching_of_a_module_that_ddp_wraps_is_refused(two: Path) -> None:
    for process in range(2):
        assert "that DDP wraps; expected an encoder inside" in (two / f"wrapped{process}.txt").read_text()


def test_one_process_keeps_its_tensor() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert gather_rows(x) is x
    assert gather_plain(x) is x
    assert (rank(), processes()) == (0, 1)


def test_what_has_no_rows_is_refused() -> None:
    with pytest.raises(InputError, match=r"shape \[\]"):
        gather_rows(torch.zeros(()))
    with pytest.raises(InputError, match="complex64"):
        gather_plain(torch.zeros(2, dtype=torch.complex64))
