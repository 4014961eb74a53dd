"""What is measured on the head of a recipe, which a saved encoder no longer has: digits, trained anew or figures kept.

`learned` (lab.digit_learning) gives the encoder alone. Proofs that speak of the embedding that the loss sees (behind the
projector), or of numbers that a step logs, train here; the figures are kept in the cache under everything they depend on.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from efface.lab.digit_learning import GENTLE, START, digit_split, scores
from efface.learn.contrastive import fit, items_digest, start_model
from efface.learn.contrastive_model import ContrastiveModel
from efface.learn.objective import Recipe
from efface.run.digests import digest_value
from efface.run.files import make_folder, read_json, write_json
from efface.subjects.encoder import Encoder
from efface.train.reference import cache_folder

Looked = Callable[[Encoder, ContrastiveModel, list[dict[str, float]]], dict[str, float]]
"""(encoder, module with its head, the logged numbers of each step) -> figures."""


def head_figures(
    recipe: Recipe, seed: int, look: Looked, *, name: str, data: Dataset | None = None, **config: Any
) -> dict[str, float]:
    """Figures of one training run on digits; from the cache where it is there.

    Args:
        recipe: a contrastive one.
        seed: of the split, the start, the order and the views.
        look: what is measured, beside `scores` of the encoder and `seconds` of a step.
        name: of what `look` does; it is part of the key.
        data: in place of the digits to train on.
        config: the recipe's settings; gentle views, the small encoder and AdamW at 1e-3 unless set.
    """
    rows = digit_split(seed)[0] if data is None else data
    settings = {"views": GENTLE, "start": START, "seed": seed, "learning_rate": 1e-3, "evaluations": 0, **config}
    key = digest_value({
        "recipe": recipe.card.name, "settings": settings, "data": items_digest(rows), "look": name,
        "lab": "digit-heads 1",
    })  # fmt: skip
    path = cache_folder() / "lab" / key.removeprefix("sha256:")[:24] / "figures.json"
    if path.exists():
        found: dict[str, float] = read_json(path)
        return found
    parsed = recipe.config.parse(settings, owner=recipe.card.name)
    subject = start_model(recipe, parsed, rows)
    assert isinstance(subject, Encoder)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit(recipe, subject, rows, parsed, work=Path(folder) / "work", label=recipe.card.name)
    seconds = (time.perf_counter() - begun) / len(fitted.values)
    assert isinstance(fitted.module, ContrastiveModel)
    figures = {"seconds": seconds, **scores(subject, seed), **look(subject, fitted.module, fitted.values)}
    make_folder(path.parent)
    write_json(path, figures)
    return figures


def head_embeddings(encoder: Encoder, module: ContrastiveModel, data: Dataset) -> Tensor:
    """[N, D] unit rows behind the head, of pictures as they are."""
    module.eval()
    with torch.no_grad():
        return module._unit(encoder, module.projector, encoder.prepare(list(data["image"]))).cpu()
