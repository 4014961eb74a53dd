"""Files that are either whole or absent."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import pytest

from efface.errors import StorageError
from efface.run.files import (
    PARTIAL,
    explain,
    make_folder,
    read_json,
    storage,
    sweep,
    whole_folder,
    write_bytes,
    write_json,
    write_text,
    write_with,
)


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def test_a_writer_that_is_stopped_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "old")

    def writer(partial: Path) -> None:
        partial.write_text("ne", encoding="utf-8")
        raise Killed

    with pytest.raises(Killed):
        write_with(path, writer)
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_the_file_is_not_there_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.bin"

    def writer(partial: Path) -> None:
        partial.write_bytes(b"12")
        assert partial.parent == path.parent
        assert partial.name.startswith(PARTIAL)
        assert not path.exists()

    assert write_with(path, writer) == path
    assert path.read_bytes() == b"12"


def test_a_writer_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"a\.bin"):
        write_with(tmp_path / "a.bin", lambda partial: None)
    assert not list(tmp_path.iterdir())


def test_the_new_file_is_whole_when_the_rename_is_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_bytes(tmp_path / "a", b"old")

    def killed(source: object, target: object) -> None:
        assert Path(str(source)).read_bytes() == b"new"  # the kill hits between writing and renaming
        raise Killed

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Killed):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"


def test_a_folder_appears_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()  # an empty one may be there
    with whole_folder(path) as partial:
        write_text(partial / "inner" / "one.txt", "one")
        assert not (path / "inner").exists()
    assert [p.relative_to(path).as_posix() for p in path.rglob("*.txt")] == ["inner/one.txt"]
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    assert path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_there_is_never_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mine"
    precious = write_text(path / "thesis.txt" if kind == "folder" else path, "the only copy")
    with pytest.raises(StorageError, match="choose a new or empty folder"), whole_folder(path):
        pytest.fail("the work must not even begin")
    assert precious.read_text(encoding="utf-8") == "the only copy"
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_what_came_meanwhile_is_not_replaced_either(tmp_path: Path) -> None:
    path = tmp_path / "mine"

    def race() -> None:
        with whole_folder(path) as partial:
            write_text(partial / "a", "ours")
            write_text(path / "a", "theirs")

    with pytest.raises(StorageError):
        race()
    assert (path / "a").read_text(encoding="utf-8") == "theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "error", [Killed(), ValueError("x"), StorageError("x")], ids=lambda error: type(error).__name__
)
def test_a_folder_that_is_not_finished_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "folder"

    def spoil() -> None:
        with whole_folder(path) as partial:
            (partial / "a").write_text("new", encoding="utf-8")
            raise error

    with pytest.raises(type(error)):
        spoil()
    assert list(tmp_path.iterdir()) == []


def test_sweep_removes_what_a_kill_left_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "kept" / "a.txt", "a")
    (tmp_path / f"{PARTIAL}1-b").write_text("b", encoding="utf-8")
    (tmp_path / "kept" / f"{PARTIAL}c").mkdir()
    (tmp_path / "kept" / f"{PARTIAL}c" / f"{PARTIAL}d").write_text("d", encoding="utf-8")
    assert sorted(sweep(tmp_path)) == sorted([f"{PARTIAL}1-b", f"{PARTIAL}c", f"{PARTIAL}d"])
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["kept", "kept/a.txt"]
    assert sweep(tmp_path) == []


REASONS = {
    errno.ENOSPC: "the disk is full; free space",
    errno.EDQUOT: "the disk quota is used up; free space",
    errno.EFBIG: "larger than this system allows; choose another folder with --out",
    errno.EROFS: "read-only; choose another folder with --out",
    errno.EACCES: "permission denied; choose another folder with --out",
    errno.EPERM: "permission denied; choose another folder with --out",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
    errno.ENOENT: "the folder cannot be made here",
}


@pytest.mark.parametrize("number", REASONS, ids=[errno.errorcode[number] for number in REASONS])
@pytest.mark.parametrize("form", ["errno", "rust", "arrow", "words"])
def test_every_reason_is_readable_in_every_form(number: int, form: str, tmp_path: Path) -> None:
    words = os.strerror(number)
    error: Exception = {
        "errno": OSError(number, words),
        "rust": RuntimeError(f"I/O error: {words} (os error {number})"),
        "arrow": RuntimeError(f"[Errno {number}] Error writing bytes to file"),
        "words": RuntimeError(f"could not write: {words}"),
    }[form]
    line = str(explain(error, tmp_path / "a"))
    assert line.startswith(f"cannot write {tmp_path / 'a'}: ")
    if not (form == "words" and number in (errno.EACCES, errno.EPERM)):
        assert REASONS[number] in line
    assert "\n" not in line


def test_a_number_is_not_taken_for_its_prefix(tmp_path: Path) -> None:
    line = str(explain(RuntimeError("odd thing (os error 288)"), tmp_path))
    assert "odd thing" in line
    assert "disk is full" not in line


def test_an_unknown_reason_is_passed_on(tmp_path: Path) -> None:
    assert "Input/output error" in str(explain(OSError(errno.EIO, "Input/output error"), tmp_path))


def test_a_full_disk_in_torchs_words(tmp_path: Path) -> None:
    line = str(explain(RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1 vs 2"), tmp_path))
    assert "the disk is full" in line
    assert "enforce" not in line


@pytest.mark.parametrize("name", ["EFFACE_CACHE", "EFFACE_HOME"])
def test_the_remedy_names_the_setting_of_the_place(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, str(tmp_path / "own"))
    assert f"set {name} to" in str(explain(OSError(errno.EROFS, ""), tmp_path / "own" / "a"))
    assert "--out" in str(explain(OSError(errno.EROFS, ""), tmp_path / "owner" / "a"))


def test_storage_leaves_other_errors_alone(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), storage(tmp_path):
        raise ValueError("mine")
    with pytest.raises(StorageError, match="disk is full"), storage(tmp_path):
        raise OSError(errno.ENOSPC, "x")


def test_a_folder_below_a_file(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "a")
    with pytest.raises(StorageError, match="a part of this path is a file"):
        make_folder(tmp_path / "file" / "folder")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_that_is_none_is_refused(value: float, tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"x": [value]})
    assert read_json(path) == {"x": 1}


def test_json_keeps_letters_and_numbers(tmp_path: Path) -> None:
    value = {"é": ["Größe", 0.1 + 0.2, 10**20, None, True]}
    path = write_json(tmp_path / "a.json", value)
    assert read_json(path) == value
    assert "Größe" in path.read_text(encoding="utf-8")
    assert json.loads(path.read_bytes()) == value


@pytest.mark.parametrize("data", [b"{", b"\xff", b"", b"[" * 50_000], ids=["open", "binary", "empty", "deep"])
def test_broken_json_names_the_file(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(StorageError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_missing_json_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*a\.json: No such file"):
        read_json(tmp_path / "a.json")
