"""Run a contrastive recipe: data and a model in, a trained encoder out; resumable, and exact on several processes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset, Features, concatenate_datasets

from efface.data.items import picture_key, text_key
from efface.errors import ModelError, RequestError
from efface.learn.batches import Batches, columns_of, item_numbers
from efface.learn.contrastive_model import AfterStep, ContrastiveModel, finish, loss_of_step
from efface.learn.folder import learn_into
from efface.learn.objective import ContrastiveConfig, Recipe
from efface.learn.starts import new_dual_encoder, new_encoder
from efface.run.cost import Cost, measure_cost
from efface.run.digests import digest_value
from efface.run.files import make_folder
from efface.subjects.dual_encoder import DualEncoder
from efface.subjects.encoder import Encoder
from efface.subjects.load import load
from efface.train.engine import isolated_rng, train, world_size
from efface.train.rows import RowSchedule

ContrastiveSubject = Encoder | DualEncoder


def items_digest(data: Dataset) -> str:
    """Digest of the ids and contents of a set of pictures, texts, labels and weights."""
    keys: dict[str, list[Any]] = {"id": list(data["id"])}
    if "image" in data.column_names:
        keys["image"] = [picture_key(item) for item in data["image"]]
    if "text" in data.column_names:
        keys["text"] = [text_key(item) for item in data["text"]]
    for name in ("label", "weight"):
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
    """Pictures where there are pictures, else texts."""
    for column, modality in (("image", "image"), ("text", "text")):
        if column in data.column_names:
            return modality
    raise RequestError(
        f"the data have the columns {', '.join(data.column_names)}", "a column 'image' or 'text'", "rename a column"
    )


def start_model(recipe: Recipe, config: ContrastiveConfig, data: Dataset) -> ContrastiveSubject:
    """A new small model that fits the data."""
    texts = list(data["text"]) if "text" in data.column_names else []
    if recipe.takes == "pairs":
        columns_of(data, "pairs", ("image", "text"))
        return new_dual_encoder(config.start, texts, config.seed, sigmoid=recipe.has_bias)
    return new_encoder(config.start, modality_of(data, recipe), texts, config.seed)


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
    label: str = "train",
) -> ContrastiveSubject:  # fmt: skip
    """Train and save; a killed run goes on where it was, a finished one is loaded.

    Args:
        recipe: the objective.
        parts: sets with the columns that the recipe takes (`image`, `text`, `label`, optional `weight`), joined.
        out: the model folder; `learn.json` in it holds configuration, losses and cost.
        model: what to train on; None builds a small one.

    Raises:
        RequestError: a column is missing.
        ModelError: the model is of another kind than the recipe takes.
        RunError, StorageError: see `learn_into`.
    """
    data = join(parts)
    settings = {
        "recipe": recipe.card.name, "config": config.model_dump(), "data": [items_digest(part) for part in parts],
        "start": None if model is None else model.digest,
    }  # fmt: skip
    if model is not None:
        check_kind(recipe, model)

    def reload() -> ContrastiveSubject:
        return check_kind(recipe, load(out))

    def fit_into(work: Path) -> tuple[ContrastiveSubject, dict[str, Any], Cost]:
        subject = start_model(recipe, config, data) if model is None else model
        values, facts, cost = fit(recipe, subject, data, config, work=work, label=label)
        return subject, {"final_loss": values[-1]["loss"], **facts}, cost

    return learn_into(out, settings, load=reload, fit=fit_into)


def fit(
    recipe: Recipe, subject: ContrastiveSubject, data: Dataset, config: Any, *, work: Path, label: str = "train"
) -> tuple[list[dict[str, float]], dict[str, Any], Cost]:
    """Train the subject's module in place; returns the logged numbers, facts for the record, and the cost."""
    towers = (subject.image, subject.text) if isinstance(subject, DualEncoder) else (subject, subject)
    columns = columns_of(data, recipe.takes, (towers[0].modality, towers[1].modality))
    numbers = item_numbers(columns[1], towers[1].modality)  # of pairs, the texts: equal captions are false negatives
    batches = Batches(
        recipe.takes, towers, columns, seed=config.seed, image_views=config.views, text_views=config.text_views,
        labels=torch.tensor(data["label"], dtype=torch.int64) if recipe.takes == "labelled" else None,
        ids=torch.tensor(numbers) if config.unique_ids or recipe.momentum else None,
        weights=recipe.weights(data, config) if recipe.weights is not None else None,
    )  # fmt: skip
    world = world_size()
    schedule = RowSchedule(
        len(data), epochs=config.epochs, batch_size=config.batch_size, seed=config.seed, world=world,
        keys=numbers if config.unique_batches else None,
    )  # fmt: skip
    with isolated_rng(config.seed):  # of the projector's weights
        model = ContrastiveModel(subject, recipe, config)
    flags = {name: parameter.requires_grad for name, parameter in subject.model.named_parameters()}
    if isinstance(subject, DualEncoder) and model.fixed is not None:
        subject.log_scale.requires_grad_(False)
    once = config.model_copy(update={"micro_batch_size": schedule.batch_size // world})  # `chunk` bounds the memory
    with measure_cost(label) as cost:
        log = train(
            model, schedule, loss_of_step(recipe, config), once, folder=make_folder(work), collator=batches, label=label,
            callbacks=(AfterStep(model),),
        )  # fmt: skip
        cost.items = len(schedule)
    shutil.rmtree(work, ignore_errors=True)
    finish(model)
    for name, parameter in subject.model.named_parameters():
        parameter.requires_grad_(flags[name])
        parameter.grad = None
    subject.model.eval()
    subject.changed()
    facts = {
        "rows": len(data), "steps": schedule.steps, "batch_size": schedule.batch_size,
        "duplicate_share": 1 - len(set(numbers)) / len(numbers), "final_scale": log.values[-1]["scale"],
    }  # fmt: skip
    return log.values, facts, cost
