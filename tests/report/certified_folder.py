"""Small finished folders for the tests of certificate and check: one run, or several as the demo makes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from efface.audit.finding import Estimate, Finding, Threshold, judge, not_measured
from efface.report.certificate import build_statement, write_certificate
from efface.report.data import MethodResult, Outcome
from efface.report.verify import Check
from efface.run.cost import Cost
from efface.run.files import write_bytes, write_json, write_text
from efface.run.manifest import write_manifest
from efface.run.record import Curve, EditRecord, Environment, ModelRecord, RequestRecord, RunRecord, SetRecord

ISSUED = "2026-03-01T12:00:00Z"
ENVIRONMENT = Environment(
    efface="0.1.0", python="3.11", torch="2", transformers="5", machine="Linux", accelerator="none", threads=2
)
FINDINGS = [
    judge(
        Finding(
            metric="tofu/probability/forget",
            title="Probability",
            meaning="m",
            group="forgetting",
            direction="retrained",
            unlearned=Estimate(value=0.2, low=0.1, high=0.3, n=32),
            original=Estimate(value=0.9, n=32),
            retrained=Estimate(value=0.19, n=32),
            threshold=Threshold(quantity="gap", relation="<=", bound=0.1),
            verdict="informative",
        )
    ),
    not_measured("mia/loss/auc", "Membership", "m", "privacy", "needs a holdout set"),
]


def make_run(method: str = "gentle-edit", claim: str = "empirical", **changes: Any) -> RunRecord:
    """A run record; `changes` replace fields of it or, as `edit_<field>`, of its edit."""
    edit = {key.removeprefix("edit_"): changes.pop(key) for key in list(changes) if key.startswith("edit_")}
    sets = {
        name: SetRecord(source=f"{name}.jsonl", rows=rows, digest=f"sha256:{name}")
        for name, rows in [("forget", 32), ("retain", 160)]
    }
    facts: dict[str, Any] = {
        "kind": "weights",
        "digest": "sha256:e",
        "base_digest": "sha256:b",
        "edited_digest": "sha256:a",
        "tensors": 4,
        "parameters": 1000,
        "relative_change": 0.0125,
    }
    fields: dict[str, Any] = {
        "kind": "forget",
        "created": "2026-02-28T09:00:00Z",
        "method": method,
        "system": "npo",
        "claim": claim,
        "intention": "removal",
        "config": {"seed": 3, "learning_rate": 1e-05, "layers": [1, 2]},
        "model": ModelRecord(source="/home/anna/models/tiny", digest="sha256:b"),
        "request": RequestRecord(id="r1", scope="one person", received="2026-02-01", sets=sets, merkle_root="sha256:m"),
        "environment": ENVIRONMENT,
        "edit": EditRecord(**{**facts, **edit}),
        "against": ModelRecord(source="retrained", digest="sha256:r"),
    }
    return RunRecord(**{**fields, **changes})


def make_result(run: RunRecord, word: str = "removal-consistent", label: str | None = None) -> MethodResult:
    """A result whose numbers are invented."""
    return MethodResult(
        label=label or run.method,
        run=run,
        outcome=Outcome(word=word, sentence="s"),
        findings=FINDINGS,
        costs=[Cost(phase="forget", seconds=1.5), Cost(phase="audit", seconds=2.25)],
        relearning=[Curve(role="unlearned", steps=[0, 10], values=[0.1, 0.2])],
    )


def fill_run(folder: Path, result: MethodResult, *, outcome_on_disk: bool = True) -> None:
    """Write the files of one run, its manifest last."""
    write_json(folder / "run.json", result.run.model_dump(mode="json"))
    findings: Any = [row.model_dump(mode="json") for row in result.findings]
    if outcome_on_disk:
        findings = {
            "outcome": result.outcome.model_dump(mode="json"),
            "findings": findings,
            "not_tested": ["Left out."],
        }
    write_json(folder / "findings.json", findings)
    write_json(folder / "costs.json", [cost.model_dump() for cost in result.costs])
    write_json(folder / "curves.json", [curve.model_dump() for curve in result.relearning])
    write_json(folder / "examples.json", [])
    write_json(folder / "attacks" / "relearning.json", {"steps": [0, 10]})
    write_bytes(folder / "tables" / "unlearned" / "forget.arrow", bytes(range(256)))
    write_bytes(folder / "edit" / "delta.safetensors", b"\x01\x02" * 40)
    write_text(folder / "report.html", "<!doctype html><p>é</p>")
    write_text(folder / "README.md", "# A run\n")
    write_manifest(folder, kind="forget")


def certify(folder: Path, results: list[MethodResult], **options: Any) -> dict[str, Any]:
    """Build and write the certificate with plain choices; returns the statement."""
    key = options.pop("signing_key", None)
    fields: dict[str, Any] = {"not_tested": ["Adversarial prompts."], "copies": [], "chain": None, "issued": ISSUED}
    statement = build_statement(folder, results, **{**fields, **options})
    write_certificate(folder, statement, signing_key=key)
    return statement


def single(folder: Path, **options: Any) -> Path:
    """A certified folder with one run."""
    result = make_result(make_run())
    fill_run(folder, result)
    certify(folder, [result], **options)
    return folder


def demo(folder: Path, **options: Any) -> Path:
    """A certified folder with two runs, each with its own manifest, and a model."""
    results = [make_result(make_run("npo")), make_result(make_run("ga"), "damaged")]
    for result in results:
        fill_run(folder / "runs" / result.run.method, result)
    write_bytes(folder / "models" / "original" / "model.safetensors", b"\x07" * 64)
    write_text(folder / "report.html", "<!doctype html>")
    write_manifest(folder, kind="demo")
    certify(folder, results, **options)
    return folder


def load(folder: Path, name: str) -> Any:
    """Parse a JSON file of a folder."""
    return json.loads((folder / name).read_text(encoding="utf-8"))


def failed(checks: list[Check]) -> list[Check]:
    """The checks that do not hold."""
    return [check for check in checks if not check.ok]


def named(checks: list[Check]) -> set[str | None]:
    """The files that they name."""
    return {check.file for check in failed(checks)}
