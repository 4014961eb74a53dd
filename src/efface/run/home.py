"""What is kept apart from every run: keys and the ledger, in `EFFACE_HOME` (default `~/.efface`).

A run folder is handed on; a key or a ledger inside it would be handed on too, and would change the folder
after its manifest was written. So every path here is refused when it lies inside a run.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from efface.errors import RunError, StorageError
from efface.run.files import storage, write_with
from efface.run.manifest import MANIFEST


def home() -> Path:
    """`EFFACE_HOME`, or `~/.efface`."""
    return Path(os.environ.get("EFFACE_HOME") or Path.home() / ".efface")


def _is_run(folder: Path) -> bool:
    if (folder / "run.json").is_file() or any(folder.glob("runs/*/run.json")):
        return True
    try:
        body = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False  # no manifest, or some other program's file of that name
    return isinstance(body, dict) and {"files", "digest"} <= body.keys()


def refuse_inside_run(path: Path, what: str) -> Path:
    """Give back `path` as an absolute path.

    Args:
        path: where a key or the ledger is or shall be.
        what: what it is, for the message.

    Raises:
        RunError: it lies inside a run folder.
    """
    whole = Path(path).expanduser().resolve()
    for folder in whole.parents:
        if _is_run(folder):
            raise RunError(
                f"{what} {whole} lies inside the run folder {folder}",
                "a place outside every run",
                "choose another path or set EFFACE_HOME",
            )
    return whole


def write_secret(path: Path, data: bytes) -> Path:
    """Write a secret in one step, readable by its owner only (mode 0600, from its first byte on)."""

    def writer(partial: Path) -> None:
        partial.unlink(missing_ok=True)
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as sink:
            sink.write(data)

    with storage(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return write_with(path, writer)


def read_secret(path: Path, what: str) -> bytes:
    """Read a secret.

    Raises:
        RunError: absent, or others than its owner may read it.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise RunError(f"{what} is not at {path}", None, "check the path") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    if mode & 0o077:
        raise RunError(f"{what} {path} can be read by others (mode {mode:04o})", "mode 0600", f"chmod 600 {path}")
    return data
