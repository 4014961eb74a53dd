"""The verb `learn`: any recipe by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from efface.catalog import find
from efface.data.readers import read_dataset
from efface.subjects.causal_lm import CausalLM, as_subject
from efface.subjects.prompts import PromptFormat


def learn(
    recipe: str, data: Dataset | str | Path | Sequence[Dataset | str | Path], out: str | Path, *,
    model: CausalLM | str | Path | None = None, prompt: PromptFormat | None = None,
    tokenizer_data: Sequence[Dataset | str | Path] = (), **config: Any,
) -> CausalLM:  # fmt: skip
    """Train by a recipe.

    Args:
        recipe: a card's name, for example `causal-lm`.
        data: data sets, files or hub names; several are joined.
        out: the model folder; a killed run goes on there, a finished one is loaded.
        model: what to fine-tune; None trains from scratch.
        tokenizer_data: further texts that a new tokenizer must know, so that several models can share one.
        config: the recipe's own keys; unknown ones raise `ConfigError`.
    """
    module = find(recipe, "learn").module
    parsed = module.CONFIG.parse(config, owner=recipe)
    single = isinstance(data, (str, Path, Dataset))
    sets = [_read(part) for part in ([data] if single else list(data))]  # type: ignore[arg-type]
    start = None if model is None else as_subject(model)
    trained: CausalLM = module.learn(
        sets, Path(out), parsed, model=start, prompt=prompt, tokenizer_data=[_read(part) for part in tokenizer_data],
        label=recipe,
    )  # fmt: skip
    return trained


def _read(part: Dataset | str | Path) -> Dataset:
    return part if isinstance(part, Dataset) else read_dataset(part)
