"""Locks between processes: one at a time where two would write the same."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from efface.errors import StorageError
from efface.run.files import storage

WAIT = 30.0
"""Seconds to wait for another process that holds a lock."""


@contextlib.contextmanager
def locked(path: Path, *, wait: float = WAIT) -> Iterator[None]:
    """Hold the lock of `path` (a file `<name>.lock` beside it); a killed holder gives it up at once.

    Raises:
        StorageError: the lock cannot be made, or another process holds it for longer than `wait` seconds.
    """
    lock = path.with_name(path.name + ".lock")
    with storage(lock):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        limit = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise StorageError(f"cannot lock {lock}: {error.strerror}") from error
                if time.monotonic() > limit:
                    raise StorageError(
                        f"{lock} is held by another efface process; wait for it, then try again"
                    ) from error
                time.sleep(min(0.02, wait))
        yield
    finally:
        os.close(handle)
