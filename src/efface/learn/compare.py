"""Several recipes on the same rows, views and passes, read on the same unseen rows: one table, every figure with an interval.

A figure is the mean over the seeds; its interval is a percentile bootstrap of the unseen rows (2000 resamples) of the mean
over the seeds, so that it says how much of a difference could be the choice of rows. `spread` is the standard deviation
over the seeds, which says how much could be chance in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from efface.catalog import find
from efface.errors import ConfigError, EffaceError, RequestError
from efface.learn.contrastive import items_digest, join, start_model
from efface.learn.objective import ContrastiveConfig, Recipe
from efface.learn.run import learn, read_sets
from efface.learn.watch import NEIGHBOURS, ridge_errors, standardised
from efface.numerics.spectrum import effective_rank
from efface.numerics.sphere import uniformity
from efface.run.files import make_folder, read_json, write_json
from efface.subjects.dual_encoder import DualEncoder
from efface.subjects.load import load

COMPARISON = "compare.json"
RESAMPLES = 2000
HELD_OUT = 0.2
Floats = npt.NDArray[np.float64]


class Figure(BaseModel):
    """A mean over seeds, its interval over the unseen rows, and its spread over the seeds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    low: float
    high: float
    spread: float | None = Field(None, description="standard deviation over the seeds; None for one seed")


class Line(BaseModel):
    """What one recipe (or the start that all share) gave."""

    model_config = ConfigDict(extra="forbid")

    recipe: str
    figures: dict[str, Figure] = Field({}, description="probe, knn (accuracy), mae, by name")
    effective_rank: float | None = None
    uniformity: float | None = None
    views: int | None = Field(None, description="views of an item in one step")
    seconds: float | None = Field(None, description="mean seconds of a training run")
    peak_mb: float | None = Field(None, description="largest peak resident (CPU) or allocated (CUDA) memory")
    refused: str = Field("", description="why the recipe did not run")


class Comparison(BaseModel):
    """The whole table."""

    model_config = ConfigDict(extra="forbid")

    rows: int
    unseen: int
    held_out: bool = Field(description="the unseen rows were drawn from the data, and no step saw them")
    seeds: list[int]
    settings: dict[str, Any]
    own: dict[str, dict[str, Any]] = Field(description="settings of single recipes")
    data: str = Field(description="digest of the rows")
    lines: list[Line]


def recipes_of(names: Sequence[str]) -> dict[str, Any]:
    """The modules of the recipes.

    Raises:
        ConfigError: fewer than two, one twice, or one that does not train an encoder.
    """
    if len(names) < 2 or len(set(names)) != len(names):
        raise ConfigError(f"a comparison of {', '.join(names) or 'nothing'}", "two or more different recipes")
    modules = {}
    for name in names:
        entry = find(name, "learn")
        if not issubclass(entry.module.CONFIG, ContrastiveConfig):
            raise ConfigError(
                f"recipe '{name}' in a comparison", "recipes that train an encoder on items", "leave it out"
            )
        modules[name] = entry.module
    if not any(hasattr(module, "RECIPE") for module in modules.values()):
        raise ConfigError(
            f"a comparison of {', '.join(names)}", "one recipe at least that is a single run", "add nt-xent"
        )
    return modules


def compare(
    names: Sequence[str], data: Any, out: str | Path, *, test: Any = None, model: Any = None, seeds: Sequence[int] = (0,),
    own: dict[str, dict[str, Any]] | None = None, **settings: Any,
) -> Comparison:  # fmt: skip
    """Train several recipes alike and read all encoders on the same unseen rows.

    Args:
        names: recipes.
        data: what `learn` takes, with labels or targets to read on.
        out: a folder; each run lies in RECIPE-SEED beneath it, and is not trained again when it is there.
        test: unseen rows; None holds out a fifth of the data, drawn by seed 0.
        model: what all start from; None: small untrained encoders, one a seed.
        seeds: of the start, the order and the views.
        own: settings of single recipes by name.
        settings: of all recipes; each takes those that it has.

    Raises:
        ConfigError: see `recipes_of`; a setting that no recipe has.
        RequestError: rows without labels and targets.
    """
    modules = recipes_of(names)
    configs = settings_of(modules, settings, own or {})
    folder = make_folder(Path(out))
    plain = {name: module for name, module in modules.items() if hasattr(module, "RECIPE")}
    loose = max(plain.values(), key=lambda module: module.RECIPE.takes == "pairs")
    rows = join(read_sets(loose, [data] if isinstance(data, (str, Path, Dataset)) else list(data)))
    if not {"label", "target"} & set(rows.column_names):
        raise RequestError("rows without labels and targets", "a column 'label' or 'target' to read on", "add one")
    held = test is None
    known, unseen = _held_out(rows) if held else (rows, read_sets(loose, [test])[0])
    lines = [_start(plain, configs, known, unseen, seeds, model)]
    for name, module in modules.items():
        try:
            lines.append(
                _trained(name, getattr(module, "RECIPE", None), configs[name], known, unseen, folder, seeds, model)
            )
        except EffaceError as error:
            lines.append(Line(recipe=name, refused=" ".join(str(error).split())))
    found = Comparison(
        rows=len(known), unseen=len(unseen), held_out=held, seeds=list(seeds), settings=settings, own=own or {},
        data=items_digest(known), lines=lines,
    )  # fmt: skip
    write_json(folder / COMPARISON, found.model_dump(mode="json"))
    return found


def settings_of(
    modules: dict[str, Any], settings: dict[str, Any], own: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Each recipe's settings: those of all that it has, and its own.

    Raises:
        ConfigError: one that no recipe has, or a wrong value.
    """
    every = {key for module in modules.values() for key in module.CONFIG.model_fields}
    for key in settings:
        if key not in every:
            raise ConfigError(f"'{key}', which none of {', '.join(modules)} has", "a setting that one of them has")
    for name in own:
        if name not in modules:
            raise ConfigError(f"settings of '{name}'", f"one of {', '.join(modules)}")
    found = {}
    for name, module in modules.items():
        mine = {key: value for key, value in settings.items() if key in module.CONFIG.model_fields} | own.get(name, {})
        module.CONFIG.parse(mine, owner=name)
        found[name] = {"evaluations": 0, **mine}
    return found


def _held_out(rows: Dataset) -> tuple[Dataset, Dataset]:
    order = np.random.default_rng(np.random.SeedSequence([0, 0x7E57])).permutation(len(rows))
    count = max(2, round(HELD_OUT * len(rows)))
    return rows.select(sorted(order[count:].tolist())), rows.select(sorted(order[:count].tolist()))


def _column(data: Dataset, name: str) -> list[Any]:
    return list(data.with_format("numpy")[:][name] if name == "features" else data[name])


def readings(encoder: Any, known: Dataset, unseen: Dataset) -> tuple[dict[str, Floats], float, float]:
    """What is read off an encoder: each unseen row's figures by name, effective rank and uniformity of the unseen rows."""
    tower = encoder.image if isinstance(encoder, DualEncoder) else encoder
    x, z = (tower.embed(_column(part, tower.modality), 256) for part in (known, unseen))
    found: dict[str, Floats] = {}
    if "label" in known.column_names and "label" in unseen.column_names:
        labels, truth = np.asarray(known["label"]), np.asarray(unseen["label"])
        a, b = standardised(x, z)
        probe = LogisticRegression(C=10, max_iter=1000).fit(a, labels)
        near = KNeighborsClassifier(min(NEIGHBOURS, len(x)), metric="cosine").fit(x.numpy(), labels)
        found["probe"] = (probe.predict(b) == truth).astype(float)
        found["knn"] = (near.predict(z.numpy()) == truth).astype(float)
    if "target" in known.column_names and "target" in unseen.column_names:
        marks = [torch.tensor(part["target"], dtype=torch.float64) for part in (known, unseen)]
        found["mae"] = ridge_errors(x, marks[0], z, marks[1])
    return found, effective_rank(z), float(uniformity(z))


def figures(tables: Sequence[dict[str, Floats]]) -> dict[str, Figure]:
    """Means over seeds with intervals, from each seed's rows."""
    found = {}
    for name in tables[0]:
        rows = np.stack([table[name] for table in tables])  # [seeds, n]
        mean = rows.mean(0)
        rng = np.random.default_rng(0)
        drawn = mean[rng.integers(0, len(mean), (RESAMPLES, len(mean)))].mean(1)
        low, high = np.percentile(drawn, [2.5, 97.5])
        spread = float(rows.mean(1).std(ddof=1)) if len(rows) > 1 else None
        found[name] = Figure(value=float(mean.mean()), low=float(low), high=float(high), spread=spread)
    return found


def _start(
    modules: dict[str, Any], configs: dict[str, dict[str, Any]], known: Dataset, unseen: Dataset, seeds: Sequence[int],
    model: Any,
) -> Line:  # fmt: skip
    """The encoder before any training."""
    name, module = next(iter(modules.items()))
    tables, ranks, spreads = [], [], []
    for seed in seeds if model is None else seeds[:1]:
        config = module.CONFIG.parse({**configs[name], "seed": seed}, owner=name)
        start = start_model(module.RECIPE, config, known) if model is None else _fresh(model)
        table, rank, even = readings(start, known, unseen)
        tables.append(table)
        ranks.append(rank)
        spreads.append(even)
    return Line(
        recipe="untrained" if model is None else "as given", figures=figures(tables), uniformity=float(np.mean(spreads)),
        effective_rank=float(np.mean(ranks)),
    )  # fmt: skip


def _fresh(model: Any) -> Any:
    """What all start from, unchanged by the runs before: loaded anew from its folder or hub id."""
    return load(model if isinstance(model, (str, Path)) else model.source)


def _trained(
    name: str, recipe: Recipe | None, config: dict[str, Any], known: Dataset, unseen: Dataset, folder: Path,
    seeds: Sequence[int], model: Any,
) -> Line:  # fmt: skip
    tables, ranks, spreads, costs = [], [], [], []
    for seed in seeds:
        place = folder / f"{name}-{seed}"
        encoder = learn(name, known, place, model=None if model is None else _fresh(model), **{**config, "seed": seed})
        costs.append(read_json(place / "learn.json")["cost"])
        table, rank, even = readings(encoder, known, unseen)
        tables.append(table)
        ranks.append(rank)
        spreads.append(even)
    parsed = find(name, "learn").module.CONFIG.parse(config, owner=name)
    return Line(
        recipe=name, figures=figures(tables), effective_rank=float(np.mean(ranks)), uniformity=float(np.mean(spreads)),
        views=None if recipe is None else 1 if recipe.takes == "pairs" else len(recipe.views_of(parsed)),
        seconds=float(np.mean([cost["seconds"] for cost in costs])), peak_mb=max(cost["peak_mb"] for cost in costs),
    )  # fmt: skip


def markdown(found: Comparison) -> str:
    """The table as Markdown; accuracies in per cent."""
    names = [name for name in ("probe", "knn", "mae") if any(name in line.figures for line in found.lines)]
    head = ["recipe", *names, "effective rank", "uniformity", "views", "s", "MiB"]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for line in found.lines:
        if line.refused:
            rows.append(f"| {line.recipe} | refused: {line.refused} |" + " |" * (len(head) - 2))
            continue
        cells = [line.recipe, *(_cell(line.figures.get(name), 1 if name == "mae" else 100) for name in names)]
        for value, form in (
            (line.effective_rank, ".1f"), (line.uniformity, ".2f"), (line.views, "d"), (line.seconds, ".1f"),
            (line.peak_mb, ".0f"),
        ):  # fmt: skip
            cells.append("" if value is None else format(value, form))
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _cell(figure: Figure | None, scale: float) -> str:
    if figure is None:
        return ""
    digits = 1 if scale == 100 else 3
    text = f"{scale * figure.value:.{digits}f} [{scale * figure.low:.{digits}f}, {scale * figure.high:.{digits}f}]"
    return text if figure.spread is None else f"{text} ± {scale * figure.spread:.{digits}f}"


__all__ = ["COMPARISON", "Comparison", "Figure", "Line", "compare", "markdown", "readings"]
