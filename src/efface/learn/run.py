"""The verb `learn`: any recipe by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from datasets import Dataset

from efface.catalog import find
from efface.data.items import read_items
from efface.data.labelled import read_rows
from efface.data.readers import read_dataset
from efface.errors import ConfigError
from efface.learn.contrastive import learn as learn_contrastive
from efface.learn.objective import Recipe
from efface.subjects.load import load
from efface.subjects.prompts import PromptFormat
from efface.subjects.subject import Subject

Source: TypeAlias = "Dataset | str | Path"


def learn(
    recipe: str, data: Source | Sequence[Source], out: str | Path, *, model: Subject | str | Path | None = None,
    prompt: PromptFormat | None = None, tokenizer_data: Sequence[Source] = (), test: Source | None = None, **config: Any,
) -> Any:  # fmt: skip
    """Train by a recipe.

    Args:
        recipe: a card's name, for example `causal-lm`, `clip` or `nt-xent`.
        data: data sets, files, folders of pictures or hub names; several are joined.
        out: the model folder; a killed run goes on there, a finished one is loaded.
        model: what to train further; None trains a small model from scratch.
        prompt: for `causal-lm`: how questions are asked.
        tokenizer_data: for `causal-lm`: further texts that a new tokenizer must know, so that models can share one.
        test: for contrastive recipes: rows that no step sees, on which the curves are read.
        config: the recipe's own keys; unknown ones raise `ConfigError`.

    Returns:
        the trained subject: a `CausalLM`, an `Encoder` or a `DualEncoder`.
    """
    module = find(recipe, "learn").module
    parsed = module.CONFIG.parse(config, owner=recipe)
    sets = read_sets(module, [data] if isinstance(data, (str, Path, Dataset)) else list(data))
    start: Any = load(model) if isinstance(model, (str, Path)) else model
    known: Recipe | None = getattr(module, "RECIPE", None)
    if known is not None:
        if prompt is not None or tokenizer_data:
            raise ConfigError(f"a prompt or tokenizer data for '{recipe}'", "neither", "they belong to causal-lm")
        unseen = None if test is None else read_sets(module, [test])[0]
        return learn_contrastive(known, sets, Path(out), parsed, model=start, test=unseen, label=recipe)
    if test is not None:
        raise ConfigError(f"test data for '{recipe}'", "none", "audit or evaluate the model afterwards")
    return module.learn(
        sets,
        Path(out),
        parsed,
        model=start,
        prompt=prompt,
        tokenizer_data=read_sets(module, tokenizer_data),
        label=recipe,
    )


def read_sets(module: ModuleType, sources: Sequence[Source]) -> list[Dataset]:
    """The sources in the form that the recipe of this module takes."""
    known: Recipe | None = getattr(module, "RECIPE", None)
    if known is None:
        read = getattr(module, "READ", read_dataset)
        return [part if isinstance(part, Dataset) else read(part) for part in sources]
    if known.takes == "pairs":
        return [read_items(part, want=("image", "text")) for part in sources]
    want = {"labelled": ("label",), "targets": ("target",), "views": ()}[known.takes]
    return [read_rows(part, want=want) for part in sources]
