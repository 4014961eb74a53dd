"""efface prove NAME|--all: a system's published claim as a runnable check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from efface.cli import values as v

if TYPE_CHECKING:
    from efface.proofs.proof import ProofResult


def prove(
    name: str | None = typer.Argument(None, help="A system's name; 'efface prove --list' shows those with a proof."),
    everything: bool = typer.Option(False, "--all", help="Run every proof and print the table."),
    quick: bool = typer.Option(False, help="With --all: only the proofs that take less than a minute."),
    list_them: bool = typer.Option(False, "--list", help="List the proofs."),
    recorded: Path | None = typer.Option(
        None, help="JSON of outcomes: exit 0 where every outcome is as recorded there."
    ),
    write: Path | None = typer.Option(None, help="JSON of outcomes to bring up to date with what is found now."),
    json_output: bool = typer.Option(False, "--json", help="Print JSON, one document a proof."),
) -> int:
    """Run a proof; exit code 0 where the claim holds, 1 where it does not."""
    from efface.errors import ConfigError
    from efface.proofs.proof import find_proof, proofs

    if list_them:
        for proof in proofs().values():
            v.tell(f"{proof.system:<28} {'quick' if proof.quick else 'slow '}  {proof.claim}")
        return 0
    if bool(name) == everything:
        raise ConfigError(
            "a name and --all" if name else "neither a name nor --all", "one of them", "try 'efface prove --list'"
        )
    chosen = [p for p in proofs().values() if p.quick or not quick] if everything else [find_proof(str(name))]
    v.show_progress(json_output)
    v.one_thread()
    known = _recorded(recorded)
    held = True
    for proof in chosen:
        result = proof.run()
        held = held and result.holds == known.get(proof.system, True)
        if write is not None:
            _write(write, result)
        if json_output:
            v.emit(result.model_dump(mode="json"))
        else:
            v.tell(
                f"{result.system}: {'HOLDS' if result.holds else 'DOES NOT HOLD'} in {result.seconds:.1f} s\n  {result.claim}"
            )
            for check in result.checks:
                word = "   " if check.threshold is None else "ok " if check.holds else "BAD"
                bound = check.bound if check.threshold is None else f"threshold {check.bound}"
                beside = "" if check.baseline is None else f", baseline {check.baseline:.4g}"
                v.tell(f"  {word} {check.name}: {check.figure:.4g} ({bound}{beside})")
    return 0 if held else 1


def _write(path: Path, result: ProofResult) -> None:
    """Put one outcome into the record; the others stay."""
    from efface.run.files import read_json, write_json

    rows = read_json(path) if path.exists() else {}
    rows[result.system] = result.model_dump(mode="json", exclude={"figure", "baseline", "threshold", "system"})
    write_json(path, dict(sorted(rows.items())))


def _recorded(path: Path | None) -> dict[str, bool]:
    """Outcomes by system: a proof that is known not to hold is shown as such, and a change of it is noticed."""
    from efface.errors import ConfigError
    from efface.run.files import read_json

    if path is None:
        return {}
    values = read_json(path)
    if not isinstance(values, dict) or not all(isinstance(row, dict) and "holds" in row for row in values.values()):
        raise ConfigError(
            f"--recorded {path}", "an object: system -> holds: true or false", "see docs/results/proofs.json"
        )
    return {system: bool(row["holds"]) for system, row in values.items()}
