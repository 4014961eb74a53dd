"""kill -9 at random moments: nothing looks finished that is not, and the same command ends with the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from small_world import Rows, small_world

from efface.cli import run
from efface.errors import RunError
from efface.forget.edit import Edit
from efface.forget.run import read_run
from efface.run.files import PARTIAL
from efface.run.manifest import MANIFEST, check_manifest

MAIN = [sys.executable, "-W", "error", "-c", "from efface.cli import main; main()"]
STEPS = 300
FORGET = [
    "forget", "npo", "--model", "model", "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--holdout", "holdout.jsonl",
    "retain_term=nll", "learning_rate=1e-3", "batch_size=4", f"epochs={STEPS // 2}", "checkpoint_seconds=0.2",
]  # fmt: skip
AUDIT = ["max_new_tokens=8", "relearning.max_steps=20", "relearning.every=5", "--against", "twin"]


def kill_after(argv: list[str], seconds: float) -> bool:
    """Start a command, wait until it has read its configuration, then kill it; False where it was done before."""
    process = subprocess.Popen(
        [*MAIN, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first.startswith("efface "), first
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    _, errors = process.communicate()
    assert "Traceback" not in errors
    assert process.returncode in (-signal.SIGKILL, 0, 1), errors
    return process.returncode == -signal.SIGKILL


def looks_unfinished_or_is_whole(folder: Path) -> None:
    """Whatever stands under a final name after a kill is whole."""
    for path in (folder / "edit").rglob("*.safetensors"):
        assert load_file(path)
    if (folder / "edit").exists():
        Edit.load(folder / "edit")._check_files()
    if (folder / "run.json").exists():
        assert (folder / "edit" / "edit.json").exists()
        assert (folder / "costs.json").exists()
    if (folder / MANIFEST).exists():
        assert check_manifest(folder) == []
        assert (folder / "run.json").exists()


@pytest.fixture
def place(tmp_path: Path, sets: dict[str, Rows], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder; one cache for the disturbed commands, another for the undisturbed ones."""
    world = small_world(tmp_path, sets, rows=8, width=32)
    monkeypatch.chdir(world)
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))
    return world


def undisturbed(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The command in this process, with a cache of its own."""
    with monkeypatch.context() as patch:
        patch.setenv("EFFACE_CACHE", str(Path("cache-undisturbed").resolve()))
        return run(argv)


def test_forget_and_audit_killed_five_times_each(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert undisturbed([*FORGET, "--out", "whole"], monkeypatch) == 0
    rng = np.random.default_rng(9)
    kills = checkpoints = 0
    for seconds in np.sort(rng.uniform(0.2, 2.0, 5)):
        kills += kill_after([*FORGET, "--out", "run"], float(seconds))
        looks_unfinished_or_is_whole(place / "run")
        checkpoints += any((place / "run").glob("work/checkpoints/checkpoint-*"))
        if not Path("run/run.json").exists():
            with pytest.raises(RunError, match="unfinished"):
                read_run(place / "run")
        assert run(["verify", "run"]) == (0 if Path("run", MANIFEST).exists() else 1)
    assert kills >= 3
    assert checkpoints >= 1, "no kill hit the training"
    assert run([*FORGET, "--out", "run"]) == 0
    assert Path("run/edit/delta.safetensors").read_bytes() == Path("whole/edit/delta.safetensors").read_bytes()
    assert Path("run/edit/edit.json").read_bytes() == Path("whole/edit/edit.json").read_bytes()
    assert not Path("run/work").exists()
    assert check_manifest(place / "run") == []

    assert undisturbed(["audit", "whole", *AUDIT], monkeypatch) in (0, 1)
    findings = Path("whole/findings.json").read_bytes()
    kills = 0
    for seconds in np.sort(rng.uniform(0.2, 2.0, 5)):
        kills += kill_after(["audit", "run", *AUDIT], float(seconds))
        looks_unfinished_or_is_whole(place / "run")
        if run(["verify", "run"]) == 0 and Path("run/findings.json").exists():
            assert Path("run/findings.json").read_bytes() == findings
    assert kills >= 2
    Path("run/tables").mkdir(exist_ok=True)
    for name in (
        f"run/{PARTIAL}7-audit.json",
        f"run/tables/{PARTIAL}7-forget.arrow",
    ):  # the rarest moment: within a write
        Path(name).write_bytes(b"half")
    assert run(["audit", "run", *AUDIT]) in (0, 1)
    assert Path("run/findings.json").read_bytes() == findings
    assert not list(Path("run").rglob(f"{PARTIAL}*"))
    capsys.readouterr()
    assert run(["verify", "run"]) == 0, capsys.readouterr().out
