"""Finished runs as they lie in a folder: read back for the certificate and for its check.

A folder holds one run (`run.json` at its top) or several (`runs/<name>/run.json`: the demo, a comparison).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from efface.audit.finding import Finding
from efface.errors import RunError
from efface.report.data import Outcome
from efface.run.cost import Cost
from efface.run.files import read_json
from efface.run.record import Curve, RunRecord, load_costs

_FINDINGS, _CURVES = TypeAdapter(list[Finding]), TypeAdapter(list[Curve])
_LINES = TypeAdapter(list[str])


@dataclass(frozen=True)
class StoredRun:
    """One run on the disk.

    Attributes:
        place: its folder as a POSIX path below the outer folder; `.` is the folder itself.
        outcome: None where `findings.json` holds findings only.
        quantisation: None where `findings.json` holds none of its own.
        not_tested: what the audit says it did not test.
        relearning: the curves of `curves.json`; None where there is no such file.
    """

    place: str
    run: RunRecord
    findings: list[Finding]
    outcome: Outcome | None
    quantisation: list[Finding] | None
    costs: list[Cost]
    not_tested: list[str]
    relearning: list[Curve] | None


def run_places(folder: Path) -> list[str]:
    """The places of all runs in `folder`, sorted."""
    places = ["."] if (folder / "run.json").is_file() else []
    return places + sorted(path.parent.relative_to(folder).as_posix() for path in folder.glob("runs/*/run.json"))


def file_in(place: str, name: str) -> str:
    """The POSIX path of a run's file below the outer folder."""
    return name if place == "." else f"{place}/{name}"


def _findings(value: Any) -> tuple[list[Finding], Outcome | None, list[Finding] | None, list[str]]:
    """`findings.json` is a list of findings, or an object that holds it beside the outcome."""
    if isinstance(value, list):
        return _FINDINGS.validate_python(value), None, None, []
    outcome, quantisation = value.get("outcome"), value.get("quantisation")
    return (
        _FINDINGS.validate_python(value["findings"]),
        None if outcome is None else Outcome.model_validate(outcome),
        None if quantisation is None else _FINDINGS.validate_python(quantisation),
        _LINES.validate_python(value.get("not_tested", [])),
    )


def read_run(folder: Path, place: str) -> StoredRun:
    """Read one run.

    Raises:
        StorageError: a file is missing or no JSON.
        RunError: a file is not what its name says; names it.
    """
    name = "run.json"
    try:
        run = RunRecord.model_validate(read_json(folder / place / name))
        name = "findings.json"
        findings, outcome, quantisation, not_tested = _findings(read_json(folder / place / name))
        name = "costs.json"
        costs = load_costs(folder / place)
        name = "curves.json"
        path = folder / place / name
        relearning = _CURVES.validate_python(read_json(path)) if path.exists() else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(
            f"{file_in(place, name)} is not what efface writes ({reason})", None, "run its command again"
        ) from error
    return StoredRun(place, run, findings, outcome, quantisation, costs, not_tested, relearning)


def read_runs(folder: Path) -> list[StoredRun]:
    """Read every run in `folder`.

    Raises:
        StorageError, RunError: see `read_run`.
    """
    return [read_run(folder, place) for place in run_places(folder)]
