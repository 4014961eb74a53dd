"""efface verify RUN: every byte, the certificate, and the verdict from the stored evidence; no network, no model."""

from __future__ import annotations

from pathlib import Path

import typer

from efface.cli import values as v


def verify(
    run: Path = typer.Argument(..., help="A run folder, or the folder that holds report.html."),
    public_key: Path | None = typer.Option(
        None, help="The signer's public key; without it a signature is checked against itself."
    ),
    ledger: Path | None = typer.Option(None, help="The ledger that the certificate was chained in."),
    json_output: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> int:
    """Verify a finished folder; exit code 1 and the file's name where anything does not fit."""
    from efface.audit.folder import rederive
    from efface.errors import RunError
    from efface.report.stored import run_places
    from efface.report.verify import verify_folder
    from efface.run.manifest import check_manifest

    if not run.is_dir():
        raise RunError(f"no folder at '{run}'", "a finished run", "check the path")

    def every_run(folder: Path) -> list[str]:
        found = []
        for place in run_places(folder):
            if check_manifest(folder / place):
                found.append(f"{place}: not derived again, since its files were changed")
            elif (folder / place / "findings.json").exists():
                found += [line if place == "." else f"{place}: {line}" for line in rederive(folder / place)]
        return found

    audited = any((run / place / "findings.json").exists() for place in run_places(run))
    checks = verify_folder(run, public_key=public_key, ledger=ledger, rederive=every_run if audited else None)
    bad = [check for check in checks if not check.ok]
    if json_output:
        rows = [{"check": c.name, "ok": c.ok, "detail": c.detail, "file": c.file} for c in checks]
        v.emit({"folder": str(run), "ok": not bad, "checks": rows})
        return int(bool(bad))
    for check in checks:
        place = f" {check.file}:" if check.file and not check.ok else ""
        v.tell(f"  {'ok ' if check.ok else 'BAD'} {check.name}:{place} {check.detail}")
    v.tell(f"{run}: {'everything fits' if not bad else f'{len(bad)} of {len(checks)} checks do not hold'}")
    return int(bool(bad))
