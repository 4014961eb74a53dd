"""The manifest of a finished folder: every file with its SHA-256, written last.

A folder without a manifest is not finished. The manifest is in canonical form and carries the digest of its own
list, so that a single flipped byte anywhere, the manifest included, shows and is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.errors import StorageError
from efface.run.digests import canonical, digest_file, digest_value
from efface.run.files import PARTIAL, write_bytes

MANIFEST = "manifest.json"
OUTSIDE = {MANIFEST, "certificate.json", "certificate.dsse.json"}
"""Files at the top of a folder that vouch for the others and so stand outside the list."""


@dataclass(frozen=True)
class Mismatch:
    """One file that is not what the manifest says."""

    file: str
    problem: str


def listed_files(folder: Path) -> list[str]:
    """Every file below `folder` that a manifest covers, as POSIX paths, sorted.

    A nested folder's own manifest and certificate are ordinary files of the outer folder.
    """
    names = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or path.is_file():
            if name in OUTSIDE or path.name.startswith(PARTIAL):
                continue
            names.append(name)
    return sorted(names)


def write_manifest(folder: Path, **facts: Any) -> str:
    """Write `manifest.json` for everything in `folder` now; returns the digest of the list.

    Args:
        folder: the finished folder.
        facts: further JSON values to record beside the list (kind of folder, version).
    """
    files = {name: digest_file(folder / name) for name in listed_files(folder)}
    body: dict[str, Any] = {"files": files, **facts}
    body["digest"] = digest_value(body)
    write_bytes(folder / MANIFEST, canonical(body))
    return str(body["digest"])


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read and check the manifest itself (form and own digest).

    Raises:
        StorageError: missing, not JSON, not in canonical form, or its own digest does not fit.
    """
    import json

    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(
            f"{path} is missing: the folder is not a finished run; run its command again to finish it"
        ) from error
    try:
        body = json.loads(data.decode("utf-8"))
        own = body.pop("digest")
        whole = canonical({**body, "digest": own}) == data and digest_value(body) == own
        whole = whole and isinstance(body["files"], dict)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise StorageError(f"{path} was changed after it was written ({type(error).__name__})") from error
    if not whole:
        raise StorageError(f"{path} was changed after it was written (its own digest does not fit)")
    return {**body, "digest": own}


def check_manifest(folder: Path) -> list[Mismatch]:
    """Compare every file with the manifest: changed, missing or added files, each by name."""
    try:
        files: dict[str, str] = read_manifest(folder)["files"]
    except StorageError as error:
        return [Mismatch(MANIFEST, str(error))]
    found = []
    present = set(listed_files(folder))
    for name, digest in files.items():
        if name not in present:
            found.append(Mismatch(name, "missing"))
        elif digest_file(folder / name) != digest:
            found.append(Mismatch(name, "changed after it was written"))
    found.extend(Mismatch(name, "not in the manifest") for name in sorted(present - files.keys()))
    return found
