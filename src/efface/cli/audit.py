"""efface audit RUN|MODEL --suite NAME [--against RETRAINED], and --import-log FILE for published logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from efface.cli import values as v
from efface.cli.forget import OPTIONS as REQUEST_OPTIONS
from efface.cli.forget import REQUEST_HELP, load_model, merkle_root, read_request

OPTIONS = ("target", "suite", "against", "original", *REQUEST_OPTIONS[2:])


def audit(
    target: str | None = typer.Argument(
        None, help="A run folder made by 'efface forget', or a model (hub id or folder)."
    ),
    settings: list[str] | None = typer.Argument(None, help="key=value settings, for example relearning.max_steps=100."),
    suite: str | None = typer.Option(
        None,
        help="Comma-separated. Language models: tofu, membership, memorisation, relearning, quantisation, in-context. "
        "Classifiers and regressors: accuracy, membership, representation, identity, relearning, quantisation, "
        "and shadows (LiRA and RMIA; trains models of its own). "
        "Default: all that apply.",
    ),
    against: str | None = typer.Option(
        None, help="A retrained model (or, with --import-log, its log): the honest reference."
    ),
    original: str | None = typer.Option(None, help="For a model: the model before forgetting."),
    data: str | None = typer.Option(
        None, help="For a classifier or regressor: all training rows, as in efface forget."
    ),
    forget: str | None = typer.Option(None, help=f"For a model: rows that were to be forgotten: {REQUEST_HELP}."),
    retain: str | None = typer.Option(None, help="Rows that were to be kept."),
    holdout: str | None = typer.Option(None, help="Rows like the forget rows that no model has seen."),
    evaluate: list[str] | None = typer.Option(None, help="name=path of further sets for utility; repeat."),
    out: Path | None = typer.Option(None, help="For a model: the folder to write to."),
    import_log: Path | None = typer.Option(
        None, help="Score a published evaluation log instead of a model (suite tofu)."
    ),
    show_texts: bool = typer.Option(
        False, help="Store generated texts and show examples (they may hold what is forgotten)."
    ),
    config: Path | None = typer.Option(None, help="YAML file with the same keys."),
    json_output: bool = typer.Option(False, "--json", help="Print one JSON document."),
) -> int:
    """Audit a run folder or a model; exit code 1 where a threshold does not hold."""
    if target and "=" in target and not Path(target).exists():
        settings, target = [target, *(settings or [])], None
    options = {
        "target": target, "suite": suite, "against": against, "original": original, "data": data, "forget": forget,
        "retain": retain, "holdout": holdout, "evaluate": evaluate, "out": out, "keep_texts": show_texts,
    }  # fmt: skip
    values = v.merge(config, options, settings)
    given = v.take(values, OPTIONS)
    suites = given.get("suite")
    if suites:
        values["suite"] = tuple(suites.split(",")) if isinstance(suites, str) else tuple(suites)
    if import_log is not None:
        return _import(import_log, given.get("against"), values, json_output)
    place = str(v.need(given, "target", "a run folder or a model"))
    return _audit(place, given, values, json_output)


def _audit(place: str, given: dict[str, Any], values: dict[str, Any], json_output: bool) -> int:
    from efface.audit.evidence import AuditConfig
    from efface.audit.folder import audit_folder
    from efface.errors import RunError
    from efface.forget.edit import Edit
    from efface.forget.run import begin, read_inputs, read_run

    prompt = v.prompt_format(values)
    model_keys = v.take(values, v.MODEL)
    config = AuditConfig.parse(values, owner="audit")
    folder = Path(place)
    is_run = (folder / "run.json").exists() or (folder / "inputs.json").exists()
    if not is_run and not given.get("forget"):
        raise RunError(
            f"'{place}' holds no run",
            "a folder made by 'efface forget', or a model with --forget and --out",
            "check the path",
        )
    v.show_config("efface audit", {**given, **config.model_dump(mode="json")}, json_output=json_output)
    v.show_progress(json_output)
    prediction: dict[str, Any] = {key: model_keys[key] for key in ("factory", "head") if key in model_keys}
    if is_run and read_run(folder).kind == "forget":
        from efface.subjects.prompts import PromptFormat

        run = read_run(folder)
        predictor = run.model.kind in v.PREDICTORS
        stored = None if predictor else PromptFormat.parse(read_inputs(folder).get("prompt", {}), owner="inputs.json")
        data = read_request(given, run.model.kind) if given.get("forget") else None
        audited = audit_folder(
            folder, run, config, against=given.get("against"), request=data, edit=Edit.load(folder / "edit"),
            prompt=prompt or stored, options=prediction,
        )  # fmt: skip
        return _summary(folder, audited, json_output)
    kind = v.kind_of(place)
    request = read_request(given, kind)
    out = Path(str(v.need(given, "out", "a folder for the evidence")))
    subject = load_model(dict(model_keys), place, prompt, kind)
    run, inputs = _model_run(subject, request, config)
    with begin(out, inputs):
        audited = audit_folder(
            out, run, config, subject=subject, against=given.get("against"), request=request, original=given.get("original"),
            options=prediction,
        )  # fmt: skip
    return _summary(out, audited, json_output)


def _model_run(subject: Any, request: Any, config: Any) -> tuple[Any, dict[str, Any]]:
    """The record of an audit of a model that was not made by a run of efface, and what it was asked."""
    from efface.forget.run import now, prompt_of
    from efface.run.record import RunRecord, environment

    record = request.record(merkle_root(request))
    inputs = {
        "method": "given", "config": config.model_dump(mode="json"), "model": subject.digest, "request": record.id,
        "prompt": prompt_of(subject),
    }  # fmt: skip
    run = RunRecord(
        kind="audit", created=now(), method="given", system="given", claim="empirical", intention="none",
        config=config.model_dump(mode="json"), model=subject.record(), request=record, environment=environment(),
    )  # fmt: skip
    return run, inputs


def _summary(folder: Path, audited: Any, json_output: bool) -> int:
    conclusion = audited.conclusion
    missed = [row for row in conclusion.findings if row.verdict == "does not hold"]
    bad = bool(missed) or conclusion.outcome.word in {"not forgotten", "damaged", "suppressed"}
    if json_output:
        v.emit({"run": str(folder), **conclusion.model_dump(mode="json")})
        return int(bad)
    for line in v.cost_lines(audited.costs):
        v.tell(line)
    v.tell(f"\n{conclusion.outcome.word.upper()}: {conclusion.outcome.sentence}")
    for row in conclusion.findings:
        if row.threshold is not None or row.verdict == "not measured":
            v.tell(f"  {_value(row):>28}  {row.title}: {row.verdict}{f' ({row.reason})' if row.reason else ''}")
    v.tell(f"\nnext: efface report {folder}")
    return int(bad)


def _value(finding: Any) -> str:
    own = finding.unlearned
    if own is None:
        return "-"
    spread = "" if own.low is None else f" [{own.low:.3g}, {own.high:.3g}]"
    return f"{own.value:.4g}{spread}"


def _import(path: Path, against: Any, values: dict[str, Any], json_output: bool) -> int:
    """Model utility and forget quality of published logs."""
    from efface.audit.metrics.published_logs import read_published_log
    from efface.errors import ConfigError

    suite = values.pop("suite", ("tofu",))
    if tuple(suite) != ("tofu",):
        raise ConfigError(f"--import-log with suite {','.join(suite)}", "suite tofu", "leave --suite out")
    v.refuse_unknown(values, (), "--import-log")
    log = read_published_log(path)
    found: dict[str, Any] = {"log": str(path), "layout": log.layout}
    lines = [f"{path} ({log.layout} layout)"]
    utility = log.model_utility()
    found["model_utility"] = utility.value.model_dump()
    found["parts"] = {name: part.model_dump() for name, part in utility.parts.items()}
    lines.append(f"model utility {utility.value.value:.6f} [{utility.value.low:.3f}, {utility.value.high:.3f}]")
    lines += [
        f"  {name}: {part.value:.4f} [{part.low:.4f}, {part.high:.4f}] n={part.n}"
        for name, part in utility.parts.items()
    ]
    if against:
        quality = log.forget_quality(read_published_log(Path(str(against))))
        found["forget_quality"] = {
            "p": quality.p, "log10_p": quality.log10_p, "statistic": quality.statistic, "n_unlearned": quality.n_unlearned,
            "n_retrained": quality.n_retrained, "median_unlearned": quality.median_unlearned.value,
            "median_retrained": quality.median_retrained.value,
        }  # fmt: skip
        lines.append(
            f"forget quality p = {quality.p:.4e} (log10 p = {quality.log10_p:.3f}, KS = {quality.statistic:.4f}, n = "
            f"{quality.n_unlearned} and {quality.n_retrained}, median truth ratio {quality.median_unlearned.value:.3f} "
            f"against {quality.median_retrained.value:.3f})"
        )
    else:
        lines.append("forget quality: not measured (needs the retrained model's log: --against FILE)")
    if json_output:
        v.emit(found)
    else:
        v.tell("\n".join(lines))
    return 0
