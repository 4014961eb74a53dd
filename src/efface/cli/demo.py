"""efface demo: the whole story on embedded data: learn, forget by several methods, audit each, report, certify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from efface.cli import values as v

STORY = (
    "Forty-eight fictitious persons, made by the package itself. A small language model learnt six facts about each of "
    "forty of them. Eight of these asked to be forgotten; thirty-two are to stay, and so are the capitals and authors that "
    "the model knows. Eight further persons it never met. The retrained model is what an honest deletion looks like: the "
    "same training without the eight."
)
SCOPE = "Eight fictitious persons of the demo, all six facts of each."


def demo(
    out: Path = typer.Option(
        Path("efface-demo"), help="Folder for models, runs and report; the same command goes on there."
    ),
    seed: int = typer.Option(0, help="Of the persons, the models and every choice."),
    json_output: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> int:
    """Learn, forget by several methods, audit each, report, certify."""
    import time

    from efface.audit.evidence import AuditConfig
    from efface.data.persons import write_persons
    from efface.lab.people import DEMO_AUDIT, DEMO_METHODS, people
    from efface.subjects.causal_lm import load_causal_lm

    begun = time.perf_counter()
    v.one_thread()
    v.show_progress(json_output)
    v.tell(
        "1/4  learn: a small model of fictitious persons, and the same without those to be forgotten",
        json_output=json_output,
    )
    _open(out, seed)
    lab = people(seed)
    for name, subject in (("original", lab.original), ("retrained", lab.retrained)):
        if not (out / "models" / name / "config.json").exists():
            subject.save(out / "models" / name)
    paths = write_persons(out / "data", seed)
    request = _request(paths)
    original = load_causal_lm(out / "models" / "original")
    config = AuditConfig.parse(DEMO_AUDIT, owner="the demo's audit")
    results = {}
    for step, (name, settings) in enumerate(DEMO_METHODS.items(), 1):
        v.tell(f"2/4  forget and audit, {step} of {len(DEMO_METHODS)}: {name}", json_output=json_output)
        results[name] = _one(original, request, name, {"seed": seed, **settings}, config, out)
    v.tell("3/4  report", json_output=json_output)
    page = _report(out, list(DEMO_METHODS), lab.folder)
    v.tell("4/4  certificate", json_output=json_output)
    from efface.report.issue import issue

    issue(out)
    return _summary(out, page, results, time.perf_counter() - begun, json_output)


def _open(out: Path, seed: int) -> None:
    """A new or own folder; refuses any other."""
    from efface.forget.run import start
    from efface.run.manifest import MANIFEST

    start(out, {"demo": "persons", "seed": seed})
    for name in (MANIFEST, "certificate.json", "certificate.dsse.json"):
        (out / name).unlink(missing_ok=True)


def _request(paths: dict[str, Path]) -> Any:
    from efface.data.request import Request

    evaluate = {"retain": paths["retain_evaluation"], **{name: paths[name] for name in ("real_authors", "world_facts")}}
    return Request.load(paths["forget"], paths["retain"], paths["holdout"], evaluate, scope=SCOPE)


def _one(original: Any, request: Any, name: str, settings: dict[str, Any], config: Any, out: Path) -> Any:
    from efface.audit.folder import audit_folder
    from efface.cli.forget import merkle_root
    from efface.forget.method import find_method
    from efface.forget.run import forget_into, read_run

    method = find_method(name)
    folder = out / "runs" / name
    edit = forget_into(original, request, method, method.configure(settings), folder, merkle_root=merkle_root(request))
    return audit_folder(
        folder, read_run(folder), config, subject=original, against=out / "models" / "retrained", request=request, edit=edit
    )  # fmt: skip


def _report(out: Path, names: list[str], lab: Path) -> Path:
    from efface.forget.run import now
    from efface.report.gather import gather
    from efface.report.page import write_report
    from efface.run.cost import Cost
    from efface.run.files import read_json
    from efface.run.manifest import write_manifest

    costs = [
        Cost.model_validate({**read_json(lab / name / "learn.json")["cost"], "phase": f"train the {name} model"})
        for name in ("original", "retrained")
    ]
    data = gather(
        [out / "runs" / name for name in names], title="Eight persons asked to be forgotten", story=STORY, created=now(),
        labels=names, shared_costs=costs,
    )  # fmt: skip
    page = write_report(out, data)
    write_manifest(out, kind="demo")
    return page


def _summary(out: Path, page: Path, results: dict[str, Any], seconds: float, json_output: bool) -> int:
    rows = {name: audited.conclusion for name, audited in results.items()}
    if json_output:
        v.emit(
            {
                "report": str(page),
                "seconds": seconds,
                "outcomes": {name: row.outcome.word for name, row in rows.items()},
            }
        )
        return 0
    v.tell("")
    for name, row in rows.items():
        by_name = {finding.metric: finding for finding in row.findings}
        quality, utility = by_name["tofu/forget_quality_log10p"].unlearned, by_name["tofu/model_utility"].unlearned
        v.tell(
            f"  {name:<20} {row.outcome.word:<20} forget quality p = {10**quality.value if quality else float('nan'):<9.2g}"
            f" utility {utility.value if utility else float('nan'):.3f}"
        )
    v.tell(f"\nreport: {page.resolve()}\n{seconds:.0f} s in all    next: efface verify {out}")
    return 0
