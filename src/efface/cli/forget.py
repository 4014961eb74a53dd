"""efface forget METHOD --model M --forget F [--retain R] --out RUN [key=value ...]"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from efface.cli import values as v

OPTIONS = (
    "method",
    "model",
    "data",
    "forget",
    "retain",
    "holdout",
    "evaluate",
    "concept",
    "scope_words",
    "received",
    "approved_by",
    "out",
)
REQUEST_HELP = "JSONL, JSON, CSV, Parquet (also .gz) or hub name user/name:config"


def in_sequence(given: dict[str, Any]) -> bool:
    """Whether several requests were given, to be forgotten one after another."""
    forget = given.get("forget")
    return isinstance(forget, (list, tuple)) and len(forget) > 1


def read_request(given: dict[str, Any], kind: str = "causal-lm") -> Any:
    """The request of the command's options.

    Raises:
        ConfigError: --data for a language model.
    """
    from efface.data.request import Request
    from efface.errors import ConfigError

    if in_sequence(given):
        from efface.data.joined import JOIN

        if kind in v.PREDICTORS:
            raise ConfigError(f"several --forget for a {kind}", "one", "requests in sequence are for language models")
        for source in map(str, given["forget"]):
            if JOIN in source:
                raise ConfigError(f"--forget '{source}' among several", f"a name without '{JOIN}'", "rename the file")
        given = {**given, "forget": JOIN.join(map(str, given["forget"]))}
    elif isinstance(given.get("forget"), (list, tuple)):
        given = {**given, "forget": given["forget"][0]}
    if given.get("data") and kind not in v.PREDICTORS:
        raise ConfigError("--data for a language model", "--forget and --retain", "give the rows themselves")
    if given.get("data"):  # a selection of one set: the rest is kept
        data, chosen = (
            given["data"],
            str(v.need(given, "forget", "what to forget of --data, as class=..., target=LOW:HIGH, identity=...")),
        )
        given = {**given, "forget": f"{data}#{chosen}", "retain": given.get("retain") or f"{data}#!{chosen}"}

    fields: dict[str, Any] = {
        "scope": given.get("scope_words") or "",
        "received": given.get("received"),
        "approved_by": given.get("approved_by"),
    }
    return Request.load(
        v.need(given, "forget", "the rows to forget"), given.get("retain"), given.get("holdout"),
        v.named(given.get("evaluate"), "evaluate"), labelled=kind in v.PREDICTORS, concepts=v.concepts(given.get("concept")),
        **fields,
    )  # fmt: skip


def load_model(values: dict[str, Any], source: str, prompt: Any, kind: str = "causal-lm") -> Any:
    """The subject of `--model` with the model keys among the values.

    Raises:
        ConfigError: a key that this kind of model does not have.
    """
    from efface.errors import ConfigError
    from efface.subjects.causal_lm import load_causal_lm
    from efface.subjects.predictor import load_predictor

    options = v.take(values, v.MODEL)
    foreign = {"adapter", "device_map"} if kind in v.PREDICTORS else {"factory", "head"}
    wrong = sorted(foreign & options.keys()) + (["prompt"] if prompt is not None and kind in v.PREDICTORS else [])
    if wrong:
        raise ConfigError(f"{wrong[0]} for a {kind}", None, "leave it out")
    return (
        load_predictor(source, **options) if kind in v.PREDICTORS else load_causal_lm(source, prompt=prompt, **options)
    )


def forget(
    method: str | None = typer.Argument(None, help="A method's name; 'efface systems' lists them."),
    settings: list[str] | None = typer.Argument(
        None, help="key=value settings of the method, the model and the prompt."
    ),
    model: str | None = typer.Option(None, help="Hub id or folder (safetensors)."),
    data: str | None = typer.Option(
        None,
        help="For a classifier or regressor: all training rows; --forget then says which (class=3, target=0:30, "
        "identity=ann, random=0.1:0, ids=FILE) and the rest is kept.",
    ),
    forget: list[str] | None = typer.Option(
        None, help=f"Rows to forget: {REQUEST_HELP}. Repeat for requests that come one after another."
    ),
    retain: str | None = typer.Option(None, help="Rows to keep."),
    holdout: str | None = typer.Option(None, help="Rows like the forget rows that the model has never seen."),
    evaluate: list[str] | None = typer.Option(None, help="name=path of further sets for utility; repeat."),
    concept: list[str] | None = typer.Option(
        None,
        help="A name to forget, or NAME=REPLACEMENT, for methods that take names; repeat. Personal data, as the rows are.",
    ),
    scope_words: str | None = typer.Option(
        None, help="The request in words, without naming a person; goes into the certificate."
    ),
    received: str | None = typer.Option(None, help="Date on which the request was received."),
    approved_by: str | None = typer.Option(None, help="Who approved it (a role, not a person)."),
    out: Path | None = typer.Option(None, help="Run folder; the same command goes on there after a stop."),
    config: Path | None = typer.Option(None, help="YAML file with the same keys."),
    json_output: bool = typer.Option(False, "--json", help="Print one JSON document."),
    dry_run: bool = typer.Option(False, help="Check everything, print the configuration, do nothing."),
) -> int:
    """Fit a forgetting method and write a run folder."""
    from efface.forget.method import find_method
    from efface.forget.run import forget_into
    from efface.forget.sequence import check_stackable

    if method and "=" in method:  # the method came from --config, the word is a setting
        settings, method = [method, *(settings or [])], None
    options = {
        "method": method, "model": model, "data": data, "retain": retain,
        "forget": forget[0] if forget and len(forget) == 1 else forget, "holdout": holdout,
        "evaluate": evaluate, "concept": concept, "scope_words": scope_words, "received": received, "approved_by": approved_by,
        "out": out,
    }  # fmt: skip
    values = v.merge(config, options, settings)
    given = v.take(values, OPTIONS)
    chosen = find_method(str(v.need(given, "method", "a method's name")))
    prompt = v.prompt_format(values)
    model_keys = v.take(values, v.MODEL)
    parsed = chosen.configure(values)
    folder = Path(str(v.need(given, "out", "a run folder")))
    source = str(v.need(given, "model", "a hub id or folder"))
    v.show_config(
        f"efface forget {chosen.card.name}",
        {**{k: x for k, x in given.items() if x}, **model_keys, **parsed.model_dump(mode="json")}, json_output=json_output,
    )  # fmt: skip
    kind = v.kind_of(source)
    request = read_request(given, kind)
    chosen.check(request, parsed)
    sequence = in_sequence(given)
    if sequence:
        check_stackable(chosen, parsed)
    v.show_progress(json_output)
    subject = load_model(dict(model_keys), source, prompt, kind)
    chosen.check_subject(subject)
    if dry_run:
        v.tell(
            f"dry run: {subject}, {len(request.forget)} rows to forget; nothing was written", json_output=json_output
        )
        return 0
    edit = forget_into(subject, request, chosen, parsed, folder, merkle_root=merkle_root(request), sequence=sequence)
    return _summary(folder, edit, json_output)


def merkle_root(request: Any) -> str:
    """Root over keyed hashes of the forget rows; the key stays in EFFACE_HOME."""
    from efface.data.labelled import is_labelled, plain_row
    from efface.report import merkle
    from efface.run.digests import canonical

    plain = plain_row if is_labelled(request.forget) else dict
    return merkle.merkle_root(
        ((row["id"], canonical(plain(row))) for row in request.forget), merkle.load_or_create_key()
    )


def _summary(folder: Path, edit: Any, json_output: bool) -> int:
    from efface.run.record import load_costs

    costs = load_costs(folder)
    if json_output:
        v.emit({"run": str(folder), "edit": edit.record.model_dump(), "costs": [cost.model_dump() for cost in costs]})
        return 0
    facts = edit.facts
    for line in v.cost_lines(costs):
        v.tell(line)
    v.tell(f"{facts.tensors} tensors changed by {facts.relative_change:.2%} of their norm")
    v.tell(f"run folder: {folder}    next: efface audit {folder} [--against RETRAINED]")
    return 0
