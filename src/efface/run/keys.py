"""Secret keys of this installation: what is hashed with one tells a stranger nothing, even if he guesses the text.

They lie in `keys/` of `EFFACE_HOME`, are made on first use, and never go into a run folder.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path
from typing import Any

from efface.errors import RunError
from efface.run.digests import canonical
from efface.run.home import home, read_secret, refuse_inside_run, write_secret
from efface.run.locks import locked

KEY_BYTES = 32


def secret_key(name: str, path: Path | None = None, *, lost: str = "restore it from a backup") -> bytes:
    """32 random bytes, made on first use.

    Args:
        name: of the key; its file is `keys/NAME.key` in `EFFACE_HOME`.
        path: another file.
        lost: what to do where the file is damaged, in words.

    Raises:
        RunError: the path lies inside a run folder, others may read the file, or it is no key.
        StorageError: it cannot be written or read.
    """
    what = f"the {name.capitalize()} key"
    target = refuse_inside_run(path or home() / "keys" / f"{name}.key", what)
    if not target.exists():
        with locked(target):
            if not target.exists():  # another process may have made it meanwhile
                write_secret(target, secrets.token_bytes(KEY_BYTES))
    key = read_secret(target, what)
    if len(key) != KEY_BYTES:
        raise RunError(f"{target} holds {len(key)} bytes", f"a {name.capitalize()} key of {KEY_BYTES} bytes", lost)
    return key


def keyed_digest(value: Any, name: str = "digests") -> str:
    """HMAC-SHA256 of a JSON value: equal values have equal digests here, and nobody else can check a guess."""
    return "hmac-sha256:" + hmac.new(secret_key(name), canonical(value), hashlib.sha256).hexdigest()
