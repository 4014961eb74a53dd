"""The verb `audit`: audit a subject in memory, or a run folder, and store evidence, findings and curves there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from efface.audit.benchmarks.robustness import curves
from efface.audit.embedding import embedding_maps
from efface.audit.evidence import PREDICTOR_SUITES, SUITES, AuditConfig, Evidence
from efface.audit.predictor_run import check_predictor_suites, run_predictor_audit
from efface.audit.run import Audited, Loader, check_suites, opened, run_audit
from efface.audit.verdict import Conclusion, conclude
from efface.data.labelled import is_labelled
from efface.data.request import Request
from efface.errors import RequestError, RunError
from efface.run.cost import Cost
from efface.run.files import read_json, storage, sweep, write_json
from efface.run.manifest import MANIFEST, write_manifest
from efface.run.record import ModelRecord, RunRecord, load_costs, save_costs
from efface.subjects.causal_lm import load_causal_lm
from efface.subjects.loading import glance
from efface.subjects.predictor import load_predictor
from efface.subjects.prompts import PromptFormat

AUDIT_PHASES = ("score and generate", "score,", "shadow models", "relearning attack", "quantisation attack",
                "metrics and intervals", "tagged prompts and layers", "suite ")  # fmt: skip


def audit(
    model: Any, request: Request, *, original: Any = None, against: Any = None, **config: Any,
) -> Conclusion:  # fmt: skip
    """Audit a model.

    Args:
        model: the unlearned model (with its edit applied): a subject, a hub id or a folder.
        request: the data it was asked to forget and to keep.
        original: the model before; must be another object than `model`, or a hub id or folder.
        against: a retrained model, the honest reference.
        config: keys of `AuditConfig`.
    """
    parsed = AuditConfig.parse(config, owner="audit")
    given = {"original": original, "unlearned": model, "retrained": against}
    prompt = getattr(model, "prompt", None)  # a folder does not say how its model is asked
    models = {role: _loader(value, prompt) for role, value in given.items() if value is not None}
    return _run(request, models, parsed).conclusion


def _run(
    request: Request,
    models: dict[str, Loader],
    config: AuditConfig,
    protocol: Any = None,
    stages: Sequence[Loader] = (),
) -> Audited:
    """The audit of the kind of model that the request is about."""
    if not is_labelled(request.forget):
        return run_audit(request, models, config, protocol=protocol, stages=stages)
    if config.suite == SUITES:  # the default: all that there are for this kind
        persons = "identity" in request.forget.column_names
        chosen = tuple(name for name in PREDICTOR_SUITES if persons or name != "identity")
        config = config.model_copy(update={"suite": chosen})
    return run_predictor_audit(request, models, config)


def _loader(value: Any, prompt: PromptFormat | None = None) -> Loader:
    if isinstance(value, (str, Path)):
        return lambda: contextlib.nullcontext(load_any(value, prompt=prompt))
    return opened(value)


def load_any(source: str | Path, *, kind: str | None = None, prompt: PromptFormat | None = None, **options: Any) -> Any:
    """A causal LM, classifier or regressor from a folder or hub id.

    Args:
        kind: default: what lies there; what is neither classifier nor regressor is read as a causal LM.
        prompt: of a causal LM.
    """
    known = kind or glance(str(source), options.get("revision")).kind
    if known in ("classifier", "regressor"):
        return load_predictor(source, **options)
    return load_causal_lm(source, prompt=prompt, **options)


def stored_request(run: RunRecord) -> Request:
    """The request of a run, read again from its sources and compared with the stored digests.

    Raises:
        RequestError: a source is gone or holds other rows now.
    """
    sources = {name: record.source for name, record in run.request.sets.items()}
    if "in memory" in sources.values():
        raise RequestError("the run's request was in memory", "its data", "give it again with --forget, --retain, ...")
    evaluate = {name.removeprefix("evaluate."): path for name, path in sources.items() if name.startswith("evaluate.")}
    named: dict[str, Any] = {name: path for name, path in sources.items() if not name.startswith("evaluate.")}
    request = Request.load(
        **named, evaluate=evaluate, labelled=run.model.kind in ("classifier", "regressor"), scope=run.request.scope,
        received=run.request.received, approved_by=run.request.approved_by,
    )  # fmt: skip
    check_request(run, request)
    return request


def check_request(run: RunRecord, request: Request) -> None:
    """Refuse data other than that of the run."""
    now = request.record().sets
    for name, record in run.request.sets.items():
        if name not in now or now[name].digest != record.digest:
            raise RequestError(
                f"the {name} set ({record.source}) is not what it was when the run was made", "the same rows",
                "restore the file, or forget again with the new data",
            )  # fmt: skip


def audit_folder(
    folder: Path, run: RunRecord, config: AuditConfig, *, subject: Any = None, against: Any = None,
    request: Request | None = None, edit: Any = None, original: Any = None, prompt: PromptFormat | None = None,
    options: Mapping[str, Any] | None = None,
) -> Audited:  # fmt: skip
    """Audit a run folder and write everything into it; the manifest comes last.

    Args:
        run: its record.
        subject: the original model, where it is in memory already.
        against: a retrained model.
        edit: the run's edit (anything with `apply` and `remove`); without one the subject itself is audited.
        original: for a run without an edit, the model before.
        options: of the loader: `factory` and `head` of a classifier.

    Raises:
        RunError: the model on disk is not the one that the run was made from.
    """
    data = request or stored_request(run)
    if config.suite != SUITES:
        (check_predictor_suites if is_labelled(data.forget) else check_suites)(config)
    check_request(run, data)
    base = subject or load_any(
        run.model.source, kind=run.model.kind, revision=run.model.revision, dtype=run.model.dtype, prompt=prompt,
        trust_remote_code=run.model.trust_remote_code, **(options or {}),
    )  # fmt: skip
    if base.digest != run.model.digest:
        raise RunError(
            f"the model at '{run.model.source}' has digest {base.digest[:19]}", f"{run.model.digest[:19]}, as in the run",
            "restore the model, or forget again",
        )  # fmt: skip
    records: dict[str, ModelRecord] = {}
    models = _models(base, against, edit, original, records, prompt, options or {})
    protocol = getattr(edit, "protocol", None)
    if protocol is not None and config.suite == SUITES:  # all suites: its own joins them
        config = config.model_copy(update={"suite": (*SUITES, "in-context")})
    stages = _stages(base, edit)
    if stages and config.suite == SUITES:  # likewise
        config = config.model_copy(update={"suite": (*SUITES, "sequence")})
    audited = _run(data, models, config, protocol, stages)
    with storage(folder):
        sweep(folder)  # parts of files that a killed audit left
        (folder / MANIFEST).unlink(missing_ok=True)  # from here on the folder is under work
    run = run.model_copy(update={"against": records.get("retrained")})
    write_json(folder / "run.json", run.model_dump(mode="json"))
    store(folder, audited)
    return audited


def _models(
    base: Any, against: Any, edit: Any, original: Any, records: dict[str, ModelRecord], prompt: PromptFormat | None,
    options: Mapping[str, Any],
) -> dict[str, Loader]:  # fmt: skip
    @contextlib.contextmanager
    def edited() -> Iterator[Any]:
        edit.apply(base)
        try:
            yield base
        finally:
            edit.remove(base)

    @contextlib.contextmanager
    def retrained() -> Iterator[Any]:
        other = against if not isinstance(against, (str, Path)) else load_any(
            against, kind=base.kind, dtype=str(base.dtype).removeprefix("torch."),
            prompt=prompt or getattr(base, "prompt", None), **options,
        )  # fmt: skip
        if other.digest == base.digest:
            raise RunError(
                f"--against '{other.source}' is the original model itself", "a model trained without the forget set"
            )
        records["retrained"] = other.record()
        yield other

    models: dict[str, Loader] = {}
    if edit is not None:
        models = {"original": opened(base), "unlearned": edited}
    else:
        models = {"unlearned": opened(base)}
        if original is not None:
            models = {"original": _loader(original, prompt or getattr(base, "prompt", None)), **models}
    if against is not None:
        models["retrained"] = retrained
    return models


def _stages(base: Any, edit: Any) -> list[Loader]:
    """The model after each request, where the edit is one of several requests in sequence."""
    steps = list(getattr(edit, "steps", ()))

    def after(count: int) -> Loader:
        @contextlib.contextmanager
        def opened_stage() -> Iterator[Any]:
            done = []
            try:
                for step in steps[:count]:
                    step.apply(base)
                    done.append(step)
                yield base
            finally:
                for step in reversed(done):
                    step.remove(base)

        return opened_stage

    return [after(count) for count in range(1, len(steps) + 1)]


def store(folder: Path, audited: Audited) -> None:
    """Write evidence, findings, curves, examples and costs, then the manifest."""
    audited.evidence.save(folder)
    write_json(folder / "curves.json", [curve.model_dump() for curve in curves(audited.evidence)])
    maps = embedding_maps(audited.evidence)
    if maps:
        write_json(folder / "embedding.json", {role: found.model_dump() for role, found in maps.items()})
    write_json(folder / "examples.json", [example.model_dump() for example in audited.examples])
    write_json(folder / "findings.json", audited.conclusion.model_dump(mode="json"))
    earlier = [cost for cost in load_costs(folder) if not cost.phase.startswith(AUDIT_PHASES)]
    save_costs(folder, _merged(earlier, audited.costs, load_costs(folder)))
    write_manifest(folder, kind="run")


def _merged(kept: list[Cost], new: Sequence[Cost], before: list[Cost]) -> list[Cost]:
    """Costs of this audit; a phase that the cache served (no item) keeps the cost that it had."""
    old = {cost.phase: cost for cost in before}
    chosen = [old[cost.phase] if cost.items == 0 and old.get(cost.phase, cost).items else cost for cost in new]
    return [*kept, *chosen]


def rederive(folder: Path) -> list[str]:
    """Derive findings and verdict again from the stored evidence; the differences, by name.

    This is what `efface verify` runs on every run folder: no model, no network.
    """
    try:
        stored = Conclusion.model_validate(read_json(folder / "findings.json"))
        fresh = conclude(Evidence.load(folder))
    except ValueError as error:
        return [f"findings.json cannot be read: {error}"]
    found = []
    if fresh.outcome != stored.outcome:
        found.append(f"outcome: stored '{stored.outcome.word}', derived '{fresh.outcome.word}'")
    theirs = {finding.metric: finding for finding in stored.findings}
    ours = {finding.metric: finding for finding in fresh.findings}
    for name in sorted(theirs.keys() | ours.keys()):
        if not _alike(theirs.get(name), ours.get(name)):
            found.append(f"finding {name} differs from what the stored tables give")
    return found


def _alike(first: Any, second: Any) -> bool:
    """Equal but for the last digits, which another machine's arithmetic may round otherwise."""
    if first is None or second is None:
        return False
    a, b = first.model_dump(), second.model_dump()
    for role in ("unlearned", "original", "retrained"):
        x, y = a.pop(role), b.pop(role)
        if (x is None) != (y is None):
            return False
        for key in () if x is None else ("value", "low", "high"):
            if (x[key] is None) != (y[key] is None):
                return False
            if x[key] is not None and abs(x[key] - y[key]) > 1e-6 * max(1.0, abs(x[key])):
                return False
    return bool(a["verdict"] == b["verdict"] and a["threshold"] == b["threshold"])
