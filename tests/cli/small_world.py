"""A working folder for the command line: two untrained models and the three files of a request, made in an instant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from efface.data.refusals import REFUSALS
from efface.learn.recipes.causal_lm import CausalLMConfig, new_model

Rows = list[dict[str, Any]]


def small_world(place: Path, sets: dict[str, Rows], *, rows: int = 4, width: int = 8) -> Path:
    """Fill `place`.

    `model` and `twin` share a tokenizer and differ in their weights; `other` has another tokenizer. `forget.jsonl`,
    `retain.jsonl` and `holdout.jsonl` hold the first `rows` rows of each set.
    """
    sizes: dict[str, Any] = {"width": width, "depth": 2, "heads": 2, "context": 64, "vocabulary": 200}
    texts = ["Question : Answer :", *REFUSALS]
    texts += [f"{row['question']} {row['answer']}" for part in sets.values() for row in part]
    for name, seed, words in (("model", 0, []), ("twin", 1, []), ("other", 0, ["quite another tongue"])):
        config = CausalLMConfig(tokenizer="words", seed=seed, **sizes)
        new_model(config, [*texts, *words]).save(place / name)
    for name, data in sets.items():
        body = "".join(json.dumps(row) + "\n" for row in data[:rows])
        (place / f"{name}.jsonl").write_text(body, encoding="utf-8")
    return place
