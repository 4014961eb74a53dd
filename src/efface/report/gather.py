"""Gather finished, audited run folders into the data of one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from efface.audit.embedding import EmbeddingMap
from efface.audit.verdict import Conclusion
from efface.errors import RunError, StorageError
from efface.report.data import LayerSets, MethodResult, ReportData
from efface.run.files import read_json
from efface.run.record import Curve, Example, RunRecord, load_costs

_CURVES, _EXAMPLES = TypeAdapter(list[Curve]), TypeAdapter(list[Example])
_SETS, _MAPS = TypeAdapter(LayerSets), TypeAdapter(dict[str, EmbeddingMap])


def read_result(folder: Path, label: str | None = None) -> tuple[MethodResult, list[str]]:
    """One audited run, and what its audit did not test.

    Raises:
        RunError: no run, or a run that was not audited.
    """
    if not (folder / "run.json").exists():
        raise RunError(f"'{folder}' holds no finished run", "a folder made by 'efface forget'", "check the path")
    if not (folder / "findings.json").exists():
        raise RunError(f"'{folder}' was not audited", "findings", f"run 'efface audit {folder}' first")

    def optional(name: str, adapter: TypeAdapter[Any]) -> Any:
        return adapter.validate_python(read_json(folder / name)) if (folder / name).exists() else []

    try:
        run = RunRecord.model_validate(read_json(folder / "run.json"))
        conclusion = Conclusion.model_validate(read_json(folder / "findings.json"))
        result = MethodResult(
            label=label or run.method, run=run, outcome=conclusion.outcome, findings=conclusion.findings,
            costs=load_costs(folder), relearning=optional("curves.json", _CURVES), examples=optional("examples.json", _EXAMPLES),
            layers=_layers(folder / "attacks" / "in-context.json"), embedding=_maps(folder / "embedding.json"),
        )  # fmt: skip
    except ValueError as error:
        raise RunError(f"a record in '{folder}' is not what efface writes", None, "run its command again") from error
    return result, conclusion.not_tested


def _layers(path: Path) -> dict[str, LayerSets]:
    """The layer readings of an in-context run; nothing for any other, or where the suite was left out."""
    if not path.exists():
        return {}
    records = {role: record for role, record in read_json(path).items() if isinstance(record, dict)}
    return {role: _SETS.validate_python(record["sets"]) for role, record in records.items()}


def _maps(path: Path) -> dict[str, EmbeddingMap]:
    """The maps of the feature space; nothing for a language model."""
    return _MAPS.validate_python(read_json(path)) if path.exists() else {}


def gather(
    folders: list[Path], *, title: str, story: str, created: str, labels: list[str] | None = None, certified: Path | None = None,
    **more: Any,
) -> ReportData:  # fmt: skip
    """The page of one or several runs.

    Args:
        folders: run folders, in the order in which they are named to the reader.
        certified: folder whose certificate, if there, is named on the page.
        more: further fields of `ReportData`.
    """
    results, not_tested = [], []
    for index, folder in enumerate(folders):
        result, untested = read_result(folder, labels[index] if labels else None)
        results.append(result)
        not_tested += [line for line in untested if line not in not_tested]
    return ReportData(
        title=title, story=story, created=created, results=results, not_tested=not_tested,
        certificate=None if certified is None else statement_digest(certified), **more,
    )  # fmt: skip


def statement_digest(folder: Path) -> str | None:
    """The digest that a certificate in the folder carries, if there is one."""
    path = folder / "certificate.json"
    if not path.exists():
        return None
    try:
        return str(json.loads(path.read_bytes()).get("digest"))
    except ValueError as error:
        raise StorageError(f"{path} is not JSON; it was changed after it was written") from error
