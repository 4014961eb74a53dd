"""What a certificate states about one run, and where copies of its data may be: facts from its records.

No row of the data is stated, and not the forget set's plain digest: a plain hash of personal data is still
personal data. Of absolute paths only the last part is stated, since paths name people.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from efface.errors import RunError
from efface.report.claim import claim_of
from efface.report.data import MethodResult
from efface.report.merkle import CANONICALISATION
from efface.report.stored import StoredRun, file_in
from efface.run.digests import digest_value
from efface.run.record import ModelRecord, RequestRecord, RunRecord


def _source(source: str) -> str:
    """A hub id as it is; of an absolute path the last part only, since paths name people."""
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(source).is_absolute() or source.startswith("~"):
            return kind(source).name
    return source


def _model(model: ModelRecord) -> dict[str, Any]:
    return {**model.model_dump(), "source": _source(model.source)}


def _request(request: RequestRecord, done: str) -> dict[str, Any]:
    return {
        "id": request.id,
        "received": request.received,
        "done": done,
        "scope": request.scope,
        "approved_by": request.approved_by,
    }


def _forget_set(request: RequestRecord) -> dict[str, Any]:
    return {
        "rows": request.sets["forget"].rows,
        "merkle_root": request.merkle_root,
        "canonicalisation": CANONICALISATION,
        "found_by": "the rows of the request, by their ids; near duplicates were not searched for",
    }


def _method(run: RunRecord, seconds: float, ceiling: str | None) -> dict[str, Any]:
    if run.edit is None:
        raise RunError(
            f"the run of '{run.method}' has no edit",
            "a run in which something was forgotten",
            "certify a run of efface forget",
        )
    env = run.environment
    return {
        "name": run.method,
        "system": run.system,
        "intention": run.intention,
        "claim_declared": run.claim,
        "claim_ceiling": ceiling,
        "config": run.config,
        "config_digest": digest_value(run.config),
        "seed": run.config.get("seed"),
        "determinism": env.determinism,
        "edit_kind": run.edit.kind,
        "tensors_touched": run.edit.tensors,
        "parameters_touched": run.edit.parameters,
        "relative_change": run.edit.relative_change,
        "wall_seconds": seconds,
        "versions": {
            "efface": env.efface,
            "python": env.python,
            "torch": env.torch,
            "transformers": env.transformers,
        },
        "hardware": {"machine": env.machine, "accelerator": env.accelerator, "threads": env.threads},
    }


def describe_run(place: str, result: MethodResult, ceiling: str | None = None) -> dict[str, Any]:
    """All that a certificate states about one run.

    Args:
        place: the run's folder below the certified folder.
        result: the audited run.
        ceiling: the claim level on the method's card.

    Raises:
        RunError: nothing was forgotten in it, no forget set, unknown level or outcome.
    """
    run = result.run
    if "forget" not in run.request.sets:
        raise RunError(f"the run of '{run.method}' names no forget set", "a run of efface forget")
    method = _method(run, sum(cost.seconds for cost in result.costs), ceiling)
    edit = run.edit
    return {
        "claim": claim_of(run, result.outcome, ceiling),
        "label": result.label,
        "folder": place,
        "request": _request(run.request, run.created),
        "forget_set": _forget_set(run.request),
        "other_sets": {
            name: {"rows": row.rows, "digest": row.digest} for name, row in run.request.sets.items() if name != "forget"
        },
        "model_before": _model(run.model),
        "model_after": edit and {"edit": edit.digest, "base": edit.base_digest, "edited": edit.edited_digest},
        "method": method,
        "evidence": {
            "outcome": result.outcome.model_dump(),
            "reference_model": run.against and _model(run.against),
            "findings": [row.model_dump(exclude_none=True) for row in result.findings],
            "quantisation": [row.model_dump(exclude_none=True) for row in result.quantisation],
            "relearning": [curve.model_dump(exclude_none=True) for curve in result.relearning],
        },
    }


def known_copies(folder: Path, runs: list[StoredRun]) -> list[dict[str, Any]]:
    """The places where a run itself leaves the data or something made from it, each with its state."""

    def present(name: str) -> list[str]:
        return [file_in(run.place, name) for run in runs if (folder / run.place / name).exists()]

    bases = sorted({_source(run.run.model.source) for run in runs})
    copies: list[dict[str, Any]] = [
        {
            "place": "base checkpoint",
            "where": bases,
            "what": "the model before; it knows the forget set",
            "state": "kept: the run neither changed nor deleted it",
        },
        {
            "place": "reference caches",
            "where": ["EFFACE_CACHE"],
            "what": "scores of the data, made during training",
            "state": "not checked by the certificate",
        },
    ]
    inside = {
        "edit": ("edit", "with the edited model it gives back the model before"),
        "tables": ("score tables", "ids and scores of the forget rows"),
        "attacks": ("attack results", "scores of the forget rows"),
        "examples.json": ("examples", "questions and answers in clear text"),
    }
    for name, (place, what) in inside.items():
        if where := present(name):
            copies.append({"place": place, "where": where, "what": what, "state": "kept in the run folder"})
    return copies
