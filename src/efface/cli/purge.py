"""efface purge: list and remove caches that derive from data to be forgotten."""

from __future__ import annotations

from typing import Any

import typer

from efface.cli import values as v


def purge(
    yes: bool = typer.Option(False, "--yes", help="Remove; without it, only list."),
    json_output: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> int:
    """List (and with --yes remove) reference caches, score tables, attack results and lab models."""
    import shutil

    from efface.errors import StorageError
    from efface.train.reference import cache_folder

    root = cache_folder()
    parts = ("reference", "tables", "attacks", "lab")
    rows: list[dict[str, Any]] = []
    for part in parts:
        files = [path for path in (root / part).rglob("*") if path.is_file()]
        rows.append({"kind": part, "files": len(files), "bytes": sum(path.stat().st_size for path in files)})
        if yes and (root / part).exists():
            try:
                shutil.rmtree(root / part)
            except OSError as error:
                raise StorageError(f"cannot remove {root / part}: {error.strerror or error}") from error
    if json_output:
        v.emit({"folder": str(root), "removed": yes, "parts": rows})
        return 0
    for row in rows:
        v.tell(f"  {row['kind']:<10} {row['files']:>6} files  {row['bytes'] / 2**20:>9.1f} MiB")
    v.tell(f"{root}: {'removed' if yes else 'listed; --yes removes them'}")
    return 0
