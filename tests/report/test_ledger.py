"""The ledger: a whole chain passes; a changed, missing, swapped or cut entry is named; a kill leaves no half line."""

from __future__ import annotations

import json
import os
import random
import threading
from pathlib import Path

import pytest

from efface.errors import CheckFailed, RunError, StorageError
from efface.report.ledger import GENESIS, append_entry, check_statement, next_link, read_ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.jsonl"
    for index in range(5):
        append_entry(f"sha256:{index}", f"2026-01-0{index + 1}", path=path)
    return path


def test_entries_are_chained(ledger: Path) -> None:
    entries = read_ledger(ledger)
    assert [entry.index for entry in entries] == [0, 1, 2, 3, 4]
    assert entries[0].previous == GENESIS
    assert [entry.previous for entry in entries[1:]] == [entry.digest for entry in entries[:-1]]
    assert next_link(ledger) == {"index": 5, "previous": entries[-1].digest}
    assert check_statement("sha256:2", {"index": 2, "previous": entries[1].digest}, ledger) == entries[2]


def test_default_place_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_HOME", str(tmp_path / "home"))
    assert next_link() == {"index": 0, "previous": GENESIS}
    append_entry("sha256:x", "t")
    assert (tmp_path / "home" / "ledger.jsonl").read_bytes().count(b"\n") == 1


def test_every_changed_bit_is_found_at_its_entry(ledger: Path) -> None:
    whole = ledger.read_bytes()
    starts = [0] + [i + 1 for i, byte in enumerate(whole[:-1]) if byte == 10]
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] ^= 1 << random.Random(position).randrange(8)
        ledger.write_bytes(changed)
        bad = sum(start <= position for start in starts) - 1
        with pytest.raises(CheckFailed, match=rf"entry {bad} "):
            read_ledger(ledger)


@pytest.mark.parametrize("gone", [0, 1, 2, 3])
def test_a_missing_entry_shows(ledger: Path, gone: int) -> None:
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:gone] + lines[gone + 1 :]))
    with pytest.raises(CheckFailed, match=rf"entry {gone} has the index {gone + 1}.*missing"):
        read_ledger(ledger)


def test_swapped_and_renumbered_entries_show(ledger: Path, tmp_path: Path) -> None:
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join([lines[0], lines[2], lines[1], *lines[3:]]))
    with pytest.raises(CheckFailed, match="entry 1 "):
        read_ledger(ledger)
    other = tmp_path / "other.jsonl"
    for name in ("sha256:0", "sha256:forged"):
        append_entry(name, "2026-01-01", path=other)
    forged = other.read_bytes().splitlines(keepends=True)[1]
    ledger.write_bytes(b"".join([lines[0], forged, *lines[2:]]))
    with pytest.raises(CheckFailed, match="entry 2 does not follow"):
        read_ledger(ledger)


def test_a_cut_line_shows_and_nothing_is_added_to_it(ledger: Path) -> None:
    ledger.write_bytes(ledger.read_bytes()[:-1])
    before = ledger.read_bytes()
    with pytest.raises(CheckFailed, match="entry 4 does not end"):
        append_entry("sha256:x", "t", path=ledger)
    assert ledger.read_bytes() == before


def test_entries_cut_off_the_end_show_at_their_statement(ledger: Path) -> None:
    link = {"index": 4, "previous": read_ledger(ledger)[3].digest}
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:4]))
    read_ledger(ledger)
    with pytest.raises(CheckFailed, match="entry 4 is missing"):
        check_statement("sha256:4", link, ledger)


def test_a_statement_is_bound_to_its_place(ledger: Path) -> None:
    entries = read_ledger(ledger)
    for digest, link in [
        ("sha256:other", {"index": 2, "previous": entries[1].digest}),
        ("sha256:2", {"index": 2, "previous": entries[0].digest}),
    ]:
        with pytest.raises(CheckFailed, match="another statement"):
            check_statement(digest, link, ledger)


def test_a_place_that_was_taken_is_refused(ledger: Path) -> None:
    link = next_link(ledger)
    append_entry("sha256:first", "t", link=link, path=ledger)
    with pytest.raises(RunError, match="certify again"):
        append_entry("sha256:second", "t", link=link, path=ledger)
    assert len(read_ledger(ledger)) == 6


def test_many_writers_lose_nothing(ledger: Path) -> None:
    threads = [
        threading.Thread(target=append_entry, args=(f"sha256:t{i}", "t"), kwargs={"path": ledger}) for i in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {entry.statement for entry in read_ledger(ledger)} >= {f"sha256:t{i}" for i in range(12)}


def test_a_kill_before_the_rename_leaves_the_old_ledger(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ledger.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        append_entry("sha256:x", "t", path=ledger)
    monkeypatch.undo()
    assert ledger.read_bytes() == before
    assert append_entry("sha256:x", "t", path=ledger).index == 5


def test_a_ledger_inside_a_run_and_an_unreadable_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RunError, match="inside the run folder"):
        append_entry("sha256:x", "t", path=tmp_path / "ledger.jsonl")
    with pytest.raises(StorageError, match="cannot read"):
        read_ledger(tmp_path)


def test_lines_are_plain_json(ledger: Path) -> None:
    first = json.loads(ledger.read_text(encoding="utf-8").splitlines()[0])
    assert set(first) == {"index", "time", "statement", "previous", "digest"}
