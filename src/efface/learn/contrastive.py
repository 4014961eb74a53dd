"""Run a contrastive recipe: data and a model in, a trained encoder out; resumable, and exact on several processes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Features, concatenate_datasets

from efface.data.items import picture_key, text_key
from efface.errors import ModelError, RequestError
from efface.learn.batches import Batches, array_key, columns_of, item_numbers
from efface.learn.contrastive_model import ContrastiveModel
from efface.learn.folder import learn_into
from efface.learn.module import LearnModule, Lesson, Steps, module_loss
from efface.learn.objective import ContrastiveConfig, Recipe
from efface.learn.starts import new_dual_encoder, new_encoder
from efface.learn.watch import Rows, Watch
from efface.run.cost import Cost, measure_cost
from efface.run.digests import digest_value
from efface.run.files import make_folder, write_json
from efface.subjects.dual_encoder import DualEncoder
from efface.subjects.encoder import Encoder
from efface.subjects.load import load
from efface.train.engine import first_process, isolated_rng, train, world_size
from efface.train.rows import RowSchedule

ContrastiveSubject = Encoder | DualEncoder
MAP = "map.json"
"""The embedding in two dimensions, beside the model."""


def items_digest(data: Dataset) -> str:
    """Digest of the ids and contents of a set of pictures, texts, labels and weights."""
    keys: dict[str, list[Any]] = {"id": list(data["id"])}
    if "image" in data.column_names:
        keys["image"] = [picture_key(item) for item in data["image"]]
    if "text" in data.column_names:
        keys["text"] = [text_key(item) for item in data["text"]]
    if "features" in data.column_names:
        keys["features"] = [array_key(row) for row in data.with_format("numpy")[:]["features"]]
    for name in ("label", "weight", "target"):
        if name in data.column_names:
            keys[name] = list(data[name])
    keys["classes"] = class_names(data) or []
    return digest_value(keys)


def join(parts: Sequence[Dataset]) -> Dataset:
    """Several sets as one; the columns that all have."""
    if len(parts) == 1:
        return parts[0]
    names = set.intersection(*(set(part.column_names) for part in parts))
    chosen = [part.select_columns(sorted(names)) for part in parts]
    if "label" in names:
        chosen = _one_set_of_classes(chosen)
    return concatenate_datasets(chosen)


def class_names(data: Dataset) -> list[str] | None:
    """Names of the classes; None where labels are bare numbers."""
    feature = data.features.get("label")
    return list(feature.names) if isinstance(feature, ClassLabel) else None


def _one_set_of_classes(parts: list[Dataset]) -> list[Dataset]:
    """Labels of one name get one number, whatever number each source gave it.

    Raises:
        RequestError: names in one source and bare numbers in another.
    """
    named = [class_names(part) for part in parts]
    if all(names is None for names in named):
        return parts
    if any(names is None for names in named):
        raise RequestError(
            "labels are names in one source and numbers in another", "one kind of label", "name the classes in both"
        )
    every = sorted({name for names in named for name in names or ()})
    found = []
    for part, names in zip(parts, named, strict=True):
        values = [every.index((names or [])[label]) for label in part["label"]]
        column = Dataset.from_dict({"label": values}, features=Features({"label": ClassLabel(names=every)}))
        found.append(concatenate_datasets([part.remove_columns("label"), column], axis=1))
    return found


def modality_of(data: Dataset, recipe: Recipe) -> str:
    """Pictures where there are pictures, else texts, else arrays."""
    for modality in ("image", "text", "features"):
        if modality in data.column_names:
            return modality
    raise RequestError(
        f"the data have the columns {', '.join(data.column_names)}", "a column 'image', 'text' or 'features'",
        "rename a column",
    )  # fmt: skip


def start_model(recipe: Recipe, config: ContrastiveConfig, data: Dataset) -> ContrastiveSubject:
    """A new small model that fits the data."""
    texts = list(data["text"]) if "text" in data.column_names else []
    if recipe.takes == "pairs":
        columns_of(data, "pairs", ("image", "text"))
        return new_dual_encoder(config.start, texts, config.seed, sigmoid=recipe.has_bias)
    modality = modality_of(data, recipe)
    arrays = torch.as_tensor(data.with_format("numpy")[:]["features"]) if modality == "features" else None
    return new_encoder(config.start, modality, texts, config.seed, arrays=arrays)


def check_kind(recipe: Recipe, model: Any) -> ContrastiveSubject:
    """The kind of model that the recipe takes.

    Raises:
        ModelError: another kind; says which.
    """
    wanted = DualEncoder if recipe.takes == "pairs" else Encoder
    if not isinstance(model, wanted):
        raise ModelError(
            f"recipe '{recipe.card.name}' on a {model.kind}", f"a {wanted.kind}",
            "give another model, or leave --model out to train a small one from scratch",
        )  # fmt: skip
    return model


def learn(
    recipe: Recipe, parts: Sequence[Dataset], out: Path, config: Any, *, model: ContrastiveSubject | None = None,
    test: Dataset | None = None, label: str = "train",
) -> ContrastiveSubject:  # fmt: skip
    """Train and save; a killed run goes on where it was, a finished one is loaded.

    Args:
        recipe: the objective.
        parts: sets with the columns that the recipe takes (`image`, `text` or `features`, `label`, `target`, optional
            `weight`), joined.
        out: the model folder; `learn.json` in it holds configuration, losses, curves and cost.
        model: what to train on; None builds a small one.
        test: rows that no step sees; what the curves read off is read on them.

    Raises:
        RequestError: a column is missing.
        ModelError: the model is of another kind than the recipe takes.
        RunError, StorageError: see `learn_into`.
    """
    data = join(parts)
    settings = {
        "recipe": recipe.card.name, "config": config.model_dump(mode="json"),
        "data": [items_digest(part) for part in parts], "start": None if model is None else model.digest,
    }  # fmt: skip
    if test is not None:
        settings["test"] = items_digest(test)
    if model is not None:
        check_kind(recipe, model)
    trained: list[Fitted] = []

    def reload() -> ContrastiveSubject:
        return check_kind(recipe, load(out))

    def fit_into(work: Path) -> tuple[ContrastiveSubject, dict[str, Any], Cost]:
        subject = start_model(recipe, config, data) if model is None else model
        found = fit(recipe, subject, data, config, work=work, test=test, label=label)
        trained.append(found)
        return subject, {"final_loss": found.values[-1]["loss"], **found.facts}, found.cost

    def beside(folder: Path) -> None:
        trained[0].module.save_beside(folder)
        if trained[0].plane is not None:
            write_json(folder / MAP, trained[0].plane)

    return learn_into(out, settings, load=reload, fit=fit_into, beside=beside)


@dataclass(frozen=True)
class Fitted:
    """A finished training run.

    Attributes:
        values: the logged numbers of each step.
        facts: for the record.
        cost: seconds and peak memory.
        module: what was trained, with all that the recipe keeps beside the encoder.
        plane: the embedding in two dimensions, where it was looked at.
    """

    values: list[dict[str, float]]
    facts: dict[str, Any]
    cost: Cost
    module: LearnModule
    plane: dict[str, Any] | None = None


def fit(
    recipe: Recipe, subject: ContrastiveSubject, data: Dataset, config: Any, *, work: Path, test: Dataset | None = None,
    schedule: RowSchedule | None = None, label: str = "train",
) -> Fitted:  # fmt: skip
    """Train the subject's module in place.

    Args:
        schedule: the order of the rows; default: fresh permutations, or even shares of the recipe's groups.
    """
    towers = (subject.image, subject.text) if isinstance(subject, DualEncoder) else (subject, subject)
    columns = columns_of(data, recipe.takes, (towers[0].modality, towers[1].modality))
    numbers = item_numbers(columns[1], towers[1].modality)  # of pairs, the texts: equal captions are false negatives
    labels = torch.tensor(data["label"], dtype=torch.int64) if "label" in data.column_names else None
    targets = torch.tensor(data["target"], dtype=torch.float32) if "target" in data.column_names else None
    groups = recipe.groups(data, config) if recipe.groups is not None else None
    batches = Batches(
        recipe.takes, towers, columns, seed=config.seed, draws=recipe.views_of(config), text_views=config.text_views,
        feature_views=config.feature_views, marks={
            "labels": labels if recipe.labels_in(config) else None,
            "targets": targets if recipe.takes == "targets" else None,
            "ids": torch.tensor(numbers) if config.unique_ids or recipe.momentum else None,
            "weights": recipe.weights(data, config) if recipe.weights is not None else None, "groups": groups,
        },
    )  # fmt: skip
    world = world_size()
    if schedule is None:
        schedule = RowSchedule(
            len(data), epochs=config.epochs, batch_size=config.batch_size, seed=config.seed, world=world,
            keys=numbers if config.unique_batches else None, groups=None if groups is None else groups.tolist(),
        )  # fmt: skip
    lesson = Lesson(
        rows=len(data), steps=schedule.steps, batch_size=schedule.batch_size, inputs=batches.prepared[0],
        classes=_classes(data, labels), labels=labels, targets=targets,
    )  # fmt: skip
    flags = {name: parameter.requires_grad for name, parameter in subject.model.named_parameters()}
    with isolated_rng(config.seed):  # of the projector's weights
        build = recipe.build or _build_contrastive(recipe)
        model = build(subject, config, lesson)
    once = config.model_copy(update={"micro_batch_size": schedule.batch_size // world})  # `chunk` bounds the memory
    watch = _watch(subject, batches, data, test, config, schedule.steps, work)
    with measure_cost(label) as cost:
        log = train(
            model, schedule, module_loss, once, folder=make_folder(work), collator=batches, label=label,
            callbacks=(Steps(model), *([watch] if watch is not None else [])),
        )  # fmt: skip
        cost.items = len(schedule)
    shutil.rmtree(work, ignore_errors=True)
    model.finish()
    for name, parameter in subject.model.named_parameters():
        parameter.requires_grad_(flags[name])
        parameter.grad = None
    subject.model.eval()
    subject.changed()
    facts = {
        "rows": len(data), "steps": schedule.steps, "batch_size": schedule.batch_size,
        "duplicate_share": 1 - len(set(numbers)) / len(numbers), "losses": thinned(log.values),
    }  # fmt: skip
    if "scale" in log.values[-1]:
        facts["final_scale"] = log.values[-1]["scale"]
    if watch is not None:
        facts["curves"] = watch.points
    facts["warnings"] = model.warnings() + ([] if watch is None else watch.warnings)
    return Fitted(log.values, facts, cost, model, None if watch is None else watch.plane())


def thinned(values: Sequence[dict[str, float]], points: int = 200) -> list[list[float]]:
    """[step, mean loss] of at most `points` even parts of the run."""
    size = -(-len(values) // points)
    parts = [values[start : start + size] for start in range(0, len(values), size)]
    return [[i * size + len(part), sum(row["loss"] for row in part) / len(part)] for i, part in enumerate(parts)]


def _build_contrastive(recipe: Recipe) -> Any:
    return lambda subject, config, lesson: ContrastiveModel(subject, recipe, config, lesson)


def _classes(data: Dataset, labels: torch.Tensor | None) -> tuple[str, ...] | None:
    if labels is None:
        return None
    return tuple(class_names(data) or (str(i) for i in range(int(labels.max()) + 1)))


def _watch(
    subject: ContrastiveSubject, batches: Batches, data: Dataset, test: Dataset | None, config: Any, steps: int, work: Path
) -> Watch | None:  # fmt: skip
    """What looks at an encoder of one tower while it is trained (at a dual encoder: at its first side)."""
    if not config.evaluations or not first_process():
        return None
    tower: Any = subject.image if isinstance(subject, DualEncoder) else subject
    rows = Rows(data, tower.modality, config.evaluation_rows, config.seed)
    others = None if test is None else Rows(test, tower.modality, config.evaluation_rows, config.seed)

    def embed(items: Sequence[Any]) -> torch.Tensor:
        unit: torch.Tensor = tower.embed(items, 256, label="look")
        return unit

    def views() -> tuple[torch.Tensor, torch.Tensor]:
        chosen = rows.places[:256]
        if batches.takes == "pairs":
            sides = [side(chosen) for side in batches.prepared]
        else:
            generator = torch.Generator().manual_seed(config.seed)
            sides = batches.views(chosen, generator)["views"][:2]
        found = []
        for side, inputs in zip(batches.towers, sides, strict=True):
            module = side.model if isinstance(side, Encoder) else side.module
            mode = module.training
            module.eval()
            with torch.no_grad():
                found.append(torch.nn.functional.normalize(side.features(inputs).float().cpu(), dim=-1))
            module.train(mode)
        return found[0], found[1]

    return Watch(embed, rows, others, steps=steps, times=config.evaluations, folder=work,
                 views=views if len(batches.draws) != 1 or batches.takes == "pairs" else None)  # fmt: skip
