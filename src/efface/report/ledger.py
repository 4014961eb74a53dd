"""The ledger: one line for each certificate, chained by digests, so that nothing can be taken out of it.

Each entry holds its index, the time, the digest of the statement, and the digest of the entry before it.
Entries are added under a lock by writing the whole file anew and renaming it, so a kill leaves the old ledger
or the new one, never half a line. Lines cut off the end do not show in the ledger alone: they show when a
certificate, which names its own index and predecessor, is checked against it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.errors import CheckFailed, RunError, StorageError
from efface.run.digests import canonical, digest_value
from efface.run.files import write_bytes
from efface.run.home import home, refuse_inside_run
from efface.run.locks import locked

GENESIS = "sha256:" + "0" * 64
"""What the first entry names as the one before it."""

_KEYS = {"index", "time", "statement", "previous", "digest"}


@dataclass(frozen=True)
class LedgerEntry:
    """One certificate in the ledger; `digest` is over the other four."""

    index: int
    time: str
    statement: str
    previous: str
    digest: str

    def line(self) -> bytes:
        """The entry as a line of the file."""
        return canonical(vars(self)) + b"\n"


def _file(path: Path | None) -> Path:
    return Path(path or home() / "ledger.jsonl")


def _parse(line: bytes, index: int, previous: str) -> LedgerEntry:
    """One line, with its place in the chain checked; `ValueError` says what is wrong with it."""
    try:
        body: Any = json.loads(line.decode("utf-8"))
        whole = isinstance(body, dict) and canonical(body) == line and set(body) == _KEYS
    except (ValueError, RecursionError) as error:
        raise ValueError("is not a whole JSON line") from error
    if not whole or digest_value({k: v for k, v in body.items() if k != "digest"}) != body["digest"]:
        raise ValueError("was changed after it was written (its own digest does not fit)")
    if body["index"] != index:
        raise ValueError(f"has the index {body['index']}, {index} was expected: an entry is missing or out of place")
    if body["previous"] != previous:
        raise ValueError("does not follow on the entry before it: that one was changed, replaced or taken out")
    return LedgerEntry(**body)


def read_ledger(path: Path | None = None) -> list[LedgerEntry]:
    """All entries, the whole chain checked. An absent file is an empty ledger.

    Raises:
        CheckFailed: names the first bad entry and what is wrong with it.
        StorageError: the file cannot be read.
    """
    target = _file(path)
    try:
        data = target.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"cannot read {target}: {error.strerror or error}") from error
    lines = data.split(b"\n")
    tail = lines.pop()
    entries: list[LedgerEntry] = []
    previous = GENESIS
    for index, line in enumerate(lines):
        try:
            entries.append(_parse(line, index, previous))
        except ValueError as error:
            raise CheckFailed(f"{target}: entry {index} {error}") from error
        previous = entries[-1].digest
    if tail:
        raise CheckFailed(f"{target}: entry {len(lines)} does not end with a line end: it was cut or changed")
    return entries


def _link(entries: list[LedgerEntry]) -> dict[str, Any]:
    return {"index": len(entries), "previous": entries[-1].digest if entries else GENESIS}


def next_link(path: Path | None = None) -> dict[str, Any]:
    """The place that the next entry will have: `index`, and `previous`, the digest of the last entry.

    Raises:
        CheckFailed: the ledger is broken.
    """
    return _link(read_ledger(path))


def append_entry(
    statement_digest: str, time: str, *, link: dict[str, Any] | None = None, path: Path | None = None
) -> LedgerEntry:
    """Add an entry.

    Args:
        statement_digest: `sha256:<hex>` of the certificate's statement.
        time: UTC, ISO 8601.
        link: the place that the statement names (from `next_link`).
        path: the ledger; default in `EFFACE_HOME`.

    Raises:
        RunError: the ledger lies inside a run folder, or another entry took the place that `link` names.
        CheckFailed: the ledger is broken; nothing is added to a broken chain.
        StorageError: it cannot be written.
    """
    target = refuse_inside_run(_file(path), "the ledger")
    with locked(target):
        entries = read_ledger(target)
        here = _link(entries)
        if link is not None and link != here:
            raise RunError(
                f"the statement names entry {link.get('index')} of the ledger",
                f"entry {here['index']}, the next free one",
                "certify again",
            )
        body = {**here, "time": time, "statement": statement_digest}
        entry = LedgerEntry(**body, digest=digest_value(body))
        write_bytes(target, b"".join(old.line() for old in [*entries, entry]))
    return entry


def check_statement(statement_digest: str, link: dict[str, Any], path: Path | None = None) -> LedgerEntry:
    """The entry of a statement.

    Args:
        statement_digest: `sha256:<hex>` of the statement.
        link: index and previous digest, as the statement names them.
        path: the ledger; default in `EFFACE_HOME`.

    Raises:
        CheckFailed: the chain is broken, the entry is missing, or it belongs to another statement.
    """
    entries = read_ledger(path)
    target = _file(path)
    index = link.get("index")
    if not isinstance(index, int) or not 0 <= index < len(entries):
        raise CheckFailed(f"{target}: entry {index} is missing (the ledger has {len(entries)} entries)")
    entry = entries[index]
    if entry.statement != statement_digest or entry.previous != link.get("previous"):
        raise CheckFailed(f"{target}: entry {index} belongs to another statement")
    return entry
