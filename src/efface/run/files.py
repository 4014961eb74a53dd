"""Files that are either whole or absent.

Every file is written under a temporary name in the same folder, flushed to the disk, and renamed. A kill at any
moment leaves the old file or the new one, never a part. A disk that is full or read-only is a `StorageError`
with the path in it, and the temporary file is removed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from efface.errors import StorageError

PARTIAL = ".partial-"
"""Prefix of every temporary name; whatever carries it is not finished and may be deleted."""

TORCH_WRITER = ("PytorchStreamWriter", "inline_container")
"""How torch's own writer calls itself when a file could not be written whole."""


def _remedy(path: Path) -> str:
    """What the user sets to move this path: the cache, the home of keys and ledger, or --out."""
    whole = Path(os.path.abspath(path))
    for name, default in (("EFFACE_CACHE", "~/.cache/efface"), ("EFFACE_HOME", "~/.efface")):
        if whole.is_relative_to(os.path.abspath(os.path.expanduser(os.environ.get(name) or default))):
            return f"set {name} to another folder"
    return "choose another folder with --out"


def explain(error: OSError | Exception, path: Path) -> StorageError:
    """Turn an operating-system error into one readable line."""
    number = getattr(error, "errno", None)
    text = str(error)
    remedy = _remedy(path)
    reasons = {
        errno.ENOSPC: "the disk is full; free space and run the same command again",
        errno.EDQUOT: "the disk quota is used up; free space and run the same command again",
        errno.EFBIG: f"the file would be larger than this system allows; {remedy}",
        errno.EROFS: f"the file system is read-only; {remedy}",
        errno.EACCES: f"permission denied; {remedy}",
        errno.EPERM: f"permission denied; {remedy}",
        errno.ENOTDIR: f"a part of this path is a file, not a folder; {remedy}",
        errno.ENOENT: f"the folder cannot be made here; {remedy}",
    }
    if number is None:  # libraries that wrap the number into their text (safetensors, pyarrow)
        for code in reasons:
            if f"os error {code})" in text or f"[errno {code}]" in text.lower() or os.strerror(code) in text:
                number = code
    reason = reasons.get(number or -1, text)
    if number is None and any(word in text for word in TORCH_WRITER):  # torch drops the number
        reason = f"the disk is full, or {reasons[errno.EFBIG]} or free space"
    return StorageError(f"cannot write {path}: {reason}")


@contextlib.contextmanager
def storage(path: Path) -> Iterator[None]:
    """Every failure to write inside this block becomes a `StorageError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise explain(error, path) from error
    except Exception as error:
        if type(error).__name__ == "SafetensorError" and "I/O" in str(error):
            raise explain(error, path) from error
        raise


def make_folder(path: Path) -> Path:
    """Create a folder and its parents."""
    with storage(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def flush(path: Path) -> None:
    """Ask the system to put a file or folder on the disk now."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def write_with(path: Path, writer: Callable[[Path], object]) -> Path:
    """Let `writer` fill a temporary file, then put it at `path` in one step.

    Args:
        path: where the finished file goes.
        writer: called with the temporary path; must create that file.
    """
    path = Path(path)
    make_folder(path.parent)
    partial = path.parent / f"{PARTIAL}{os.getpid()}-{path.name}"
    try:
        with storage(path):
            writer(partial)
            flush(partial)
            os.replace(partial, path)
            flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_bytes(path: Path, data: bytes) -> Path:
    """Write bytes atomically."""
    return write_with(path, lambda partial: partial.write_bytes(data))


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text atomically."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> Path:
    """Write readable JSON atomically; NaN and infinity are refused (they are not JSON)."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a broken file is a `StorageError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path} is not valid JSON ({error}); it was changed after it was written") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def refuse_occupied(path: Path) -> None:
    """Refuse a place that holds anything already: what is there may be the only copy.

    Raises:
        StorageError: a file, or a folder that is not empty.
    """
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        kind = "is a folder that is not empty" if path.is_dir() else "is a file"
        raise StorageError(f"cannot write {path}: it {kind}; choose a new or empty folder")


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Fill a temporary folder; on success it becomes `path` in one rename.

    Nothing is ever replaced: a folder with anything in it is refused before the work begins. On any error the
    temporary folder is removed and `path` stays as it was.

    Raises:
        StorageError: `path` is a file or a folder that is not empty, or cannot be written.
    """
    path = Path(path)
    refuse_occupied(path)
    make_folder(path.parent)
    with storage(path):
        partial = Path(tempfile.mkdtemp(prefix=f"{PARTIAL}{path.name}-", dir=path.parent))
    try:
        with storage(path):
            os.chmod(partial, 0o755)  # noqa: S103 - a finished run is for others to read
            yield partial
            for file in partial.rglob("*"):
                if file.is_file():
                    os.chmod(file, 0o644)  # some writers make a file their owner's only
                flush(file)
            os.replace(partial, path)  # over an empty folder at most; the system refuses any other
            flush(path.parent)
    finally:
        if partial.exists():
            shutil.rmtree(partial, ignore_errors=True)


def sweep(folder: Path) -> list[str]:
    """Delete what a killed run left unfinished in `folder` (recursively); returns the names."""
    gone = []
    for path in sorted(folder.rglob(f"{PARTIAL}*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        gone.append(path.name)
    return gone
