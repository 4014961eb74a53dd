"""A full disk and a folder that may not be written to: one line that names the path, and nothing half written."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_world import Rows, small_world

from efface.cli import run
from efface.run.files import PARTIAL
from efface.run.manifest import MANIFEST, check_manifest

FORGET = [
    "forget", "npo", "--model", "model", "--forget", "forget.jsonl", "--retain", "retain.jsonl", "retain_term=kl",
    "learning_rate=1e-3", "batch_size=4", "epochs=4", "checkpoint_seconds=1e-6",
]  # fmt: skip
AUDIT = ["--suite", "tofu", "max_new_tokens=2"]
NOBODY = 65534


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes (EFBIG; Python ignores the signal)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def tmpfs(folder: Path, size: int) -> Iterator[None]:
    """A file system of `size` bytes at `folder`; skipped where it may not be mounted."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no tmpfs here: {made.stderr.decode().strip()[:80]}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Permission checks as for an ordinary user: root may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, sets: dict[str, Rows]) -> Path:
    """The files, an undisturbed run, and nothing else."""
    place = small_world(tmp_path_factory.mktemp("world"), sets)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run([*FORGET, "--out", "whole"]) == 0
    return place


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own copy as the working folder, with an empty cache."""
    place = Path(shutil.copytree(world, tmp_path / "world"))
    monkeypatch.chdir(place)
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))
    return place


def the_error(capfd: pytest.CaptureFixture[str]) -> str:
    """The last line on stderr, which must be the only error."""
    shown = capfd.readouterr().err.splitlines()
    assert [line for line in shown if line.startswith("error: ")] == shown[-1:]
    assert not any("Traceback" in line for line in shown)
    return shown[-1]


def nothing_half_written(folder: Path) -> None:
    """No part of a file, and nothing that looks finished."""
    assert not list(folder.rglob(f"{PARTIAL}*"))
    assert not (folder / "edit").exists()
    assert not (folder / "run.json").exists()
    assert not (folder / MANIFEST).exists()


def goes_on(out: str) -> None:
    """With room again, the same command ends as if nothing had happened."""
    assert run([*FORGET, "--out", out]) == 0
    assert check_manifest(Path(out)) == []
    assert Path(out, "edit/delta.safetensors").read_bytes() == Path("whole/edit/delta.safetensors").read_bytes()


@pytest.mark.parametrize("size", [100, 700, 3_000, 9_000, 14_000, 20_000, 24_000])
def test_a_file_that_may_not_grow(size: int, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with largest_file(size):
        code = run([*FORGET, "--out", "out"])
    line = the_error(capfd)
    assert code == 2, line
    assert "larger than this system allows" in line
    assert str(here.parent) in line or " out/" in line
    nothing_half_written(here / "out")
    nothing_half_written(here.parent / "cache")
    goes_on("out")


@pytest.mark.parametrize("size", [8_192, 28_672, 61_440])
def test_a_full_disk(size: int, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with tmpfs(here / "disk", size):
        code = run([*FORGET, "--out", "disk/out"])
        line = the_error(capfd)
        assert code == 2, line
        assert "the disk is full" in line
        assert "free space" in line
        assert "disk/out" in line
        nothing_half_written(here / "disk")
        subprocess.run(["mount", "-o", "remount,size=9m", here / "disk"], check=True)
        goes_on("disk/out")


def test_a_full_disk_during_an_audit_keeps_the_run(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with largest_file(1_500):
        code = run(["audit", "whole", *AUDIT])
    line = the_error(capfd)
    assert code == 2
    assert "larger than this system allows" in line
    assert "cache" in line
    assert "EFFACE_CACHE" in line
    assert check_manifest(here / "whole") == []
    assert run(["audit", "whole", *AUDIT]) in (0, 1)
    assert check_manifest(here / "whole") == []


@pytest.fixture
def open_place(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy that everyone may read: pytest's own folders are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(shutil.copytree(here, Path(name) / "world"))
        for path in (Path(name), place, *place.rglob("*")):
            os.chmod(path, 0o755 if path.is_dir() else 0o644)
        for own in ("cache", "home"):
            (place / own).mkdir()
            os.chmod(place / own, 0o777)
            monkeypatch.setenv(f"EFFACE_{own.upper()}", str(place / own))
        monkeypatch.chdir(place)
        yield place
        os.chmod(place / "cache", 0o777)


def test_a_folder_that_may_not_be_written(open_place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    closed = open_place / "closed"
    closed.mkdir(mode=0o555)
    with as_nobody():
        code = run([*FORGET, "--out", "closed/out"])
    line = the_error(capfd)
    assert code == 2, line
    assert "closed/out" in line
    assert "permission denied; choose another folder with --out" in line
    assert not list(closed.iterdir())


def test_weights_that_may_not_be_read(open_place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.chmod(open_place / "model" / "model.safetensors", 0o000)
    with as_nobody():
        code = run([*FORGET, "--out", "out"])
    line = the_error(capfd)
    assert code == 2, line
    assert "cannot read model/model.safetensors: Permission denied; check its permissions" in line


def test_data_that_may_not_be_read(open_place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (open_place / "secret").mkdir(mode=0o700)
    shutil.copy("forget.jsonl", "secret/forget.jsonl")
    os.chmod(open_place / "secret", 0o000)
    with as_nobody():
        code = run([*FORGET, "--forget", "secret/forget.jsonl", "--out", "out"])
    os.chmod(open_place / "secret", 0o700)
    line = the_error(capfd)
    assert code == 2, line
    assert "secret/forget.jsonl" in line
    assert "Permission denied; check the path" in line


def test_a_run_that_may_not_be_written(open_place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.chmod(open_place / "whole", 0o555)
    with as_nobody():
        code = run(["audit", "whole", *AUDIT])
    line = the_error(capfd)
    assert code == 2, line
    assert "whole" in line
    assert "permission denied" in line
    assert check_manifest(open_place / "whole") == []


def test_a_cache_that_may_not_be_written(open_place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.chmod(open_place / "cache", 0o555)
    (open_place / "out").mkdir()
    os.chmod(open_place / "out", 0o777)
    with as_nobody():
        code = run([*FORGET, "--out", "out"])
    line = the_error(capfd)
    assert code == 2, line
    assert "permission denied; set EFFACE_CACHE to another folder" in line
    nothing_half_written(open_place / "out")


def test_a_place_where_no_folder_can_be(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if not Path("/proc/self").exists():
        pytest.skip("no /proc on this system")
    assert run([*FORGET, "--out", "/proc/efface/run"]) == 2
    line = the_error(capfd)
    assert "/proc/efface/run" in line
    assert "choose another folder with --out" in line
