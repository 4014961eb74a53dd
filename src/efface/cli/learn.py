"""efface learn RECIPE --data D --out DIR [key=value ...], or efface learn --compare A,B,C --data D --out DIR"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from efface.cli import values as v

OPTIONS = ("recipe", "data", "out", "model", "tokenizer_data", "test", "compare", "seeds")


def learn(
    recipe: str | None = typer.Argument(None, help="A recipe's name; 'efface systems' lists them."),
    settings: list[str] | None = typer.Argument(
        None, help="key=value settings of the recipe, the model and the prompt."
    ),
    data: list[str] | None = typer.Option(
        None, help="Training data: file, folder of pictures or hub name; repeat to join several."
    ),
    out: Path | None = typer.Option(None, help="Model folder; the same command goes on there after a stop."),
    model: str | None = typer.Option(
        None, help="Hub id or folder to fine-tune; without it a small model is trained from scratch."
    ),
    tokenizer_data: list[str] | None = typer.Option(None, help="Further texts that a new tokenizer must know."),
    test: str | None = typer.Option(None, help="Unseen rows on which the curves (and a comparison) are read."),
    compare: str | None = typer.Option(None, help="Recipes with commas between: train each alike, and make one table."),
    seeds: str | None = typer.Option(None, help="Of a comparison: seeds with commas between; default 0."),
    config: Path | None = typer.Option(None, help="YAML file with the same keys."),
    json_output: bool = typer.Option(False, "--json", help="Print one JSON document."),
    dry_run: bool = typer.Option(False, help="Check everything, print the configuration, do nothing."),
) -> int:
    """Train a model by a recipe, or compare several on the same rows."""
    from efface.catalog import find
    from efface.learn.run import learn as run_learn
    from efface.learn.run import read_sets
    from efface.run.files import read_json

    if recipe and "=" in recipe:
        settings, recipe = [recipe, *(settings or [])], None
    options = {
        "recipe": recipe, "data": data, "out": out, "model": model, "tokenizer_data": tokenizer_data, "test": test,
        "compare": compare, "seeds": seeds,
    }  # fmt: skip
    values = v.merge(config, options, settings)
    given = v.take(values, OPTIONS)
    if given.get("compare"):
        return _compare(given, values, json_output=json_output, dry_run=dry_run)
    name = str(v.need(given, "recipe", "a recipe's name"))
    entry = find(name, "learn")
    prompt = v.prompt_format(values)
    model_keys = v.take(values, v.MODEL)
    parsed = entry.module.CONFIG.parse(values, owner=name)
    folder = Path(str(v.need(given, "out", "a model folder")))
    sources = v.need(given, "data", "training data")
    sets = read_sets(entry.module, [sources] if isinstance(sources, str) else sources)
    extra = given.get("tokenizer_data") or []
    known = read_sets(entry.module, [extra] if isinstance(extra, str) else extra)
    v.show_config(
        f"efface learn {name}", {**given, **model_keys, **parsed.model_dump(mode="json")}, json_output=json_output
    )
    if dry_run:
        v.tell(f"dry run: {sum(map(len, sets))} rows; nothing was written", json_output=json_output)
        return 0
    v.show_progress(json_output)
    start = None
    if given.get("model"):
        from efface.subjects.load import load

        start = load(str(given["model"]), **({} if prompt is None else {"prompt": prompt}), **model_keys)
    subject = run_learn(
        name, sets, folder, model=start, prompt=prompt, tokenizer_data=known, test=given.get("test"), **values
    )
    facts = read_json(folder / "learn.json")
    if json_output:
        last = {name: value for name, value in facts.items() if name.startswith("final_")}
        v.emit({"model": str(folder), "digest": subject.digest, **last, "cost": facts["cost"]})
        return 0
    cost, loss = facts["cost"], facts.get("final_nll", facts.get("final_loss"))
    ended = (
        "" if loss is None else f", last loss {loss:.3f}"
    )  # a private base does not say: its loss is of protected rows
    v.tell(f"{subject} trained in {cost['seconds']:.1f} s, peak {cost['peak_mb']:,.0f} MiB{ended}")
    for warning in facts.get("warnings", []):
        v.tell(f"warning: {warning}")
    v.tell(f"model folder: {folder}")
    if "losses" in facts:
        from efface.report.learning import write_learning

        v.tell(f"report: {write_learning(folder)}")
    return 0


def _compare(given: dict[str, Any], values: dict[str, Any], *, json_output: bool, dry_run: bool) -> int:
    """Several recipes on the same rows."""
    from efface.errors import ConfigError
    from efface.learn.compare import compare, markdown, recipes_of, settings_of
    from efface.report.learning import write_learning

    names = _listed(given["compare"])
    if given.get("recipe") or given.get("tokenizer_data"):
        raise ConfigError("a recipe or --tokenizer-data beside --compare", "--compare alone", "leave it out")
    try:
        seeds = [int(seed) for seed in _listed(given.get("seeds", "0"))]
    except ValueError as error:
        raise ConfigError(f"--seeds {given.get('seeds')}", "whole numbers with commas between") from error
    modules = recipes_of(names)
    own = {name: dict(values.pop(name)) for name in names if isinstance(values.get(name), dict)}
    folder = Path(str(v.need(given, "out", "a folder for the comparison")))
    sources = v.need(given, "data", "training data")
    v.show_config(f"efface learn --compare {','.join(names)}", {**given, **values, **own}, json_output=json_output)
    settings_of(modules, values, own)
    if dry_run:
        v.tell("dry run: nothing was written", json_output=json_output)
        return 0
    v.show_progress(json_output)
    found = compare(
        names, sources, folder, test=given.get("test"), model=given.get("model"), seeds=seeds, own=own, **values
    )
    page = write_learning(folder)
    if json_output:
        v.emit({**found.model_dump(mode="json"), "report": str(page)})
        return 0
    v.tell(markdown(found))
    v.tell(f"report: {page}")
    return 0


def _listed(given: Any) -> list[str]:
    """Words with commas between, or a list from a config file."""
    parts = given.split(",") if isinstance(given, str) else given if isinstance(given, list) else [given]
    return [str(part).strip() for part in parts if str(part).strip()]
