"""People: two tiny language models of fictitious persons, one that was trained on the forget set and one that was not.

The demo's story of erasure in the small: `original` knows every person, `retrained` is the same model, from the same
seed and with the same tokenizer, trained without the persons to forget. Both are trained once and cached.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datasets import Dataset

from efface.data.columns import canonical
from efface.data.persons import persons_request
from efface.data.refusals import REFUSALS
from efface.data.request import Request, data_digest
from efface.errors import ConfigError, nearest
from efface.learn.recipes.causal_lm import CausalLMConfig, learn
from efface.run.digests import digest_value
from efface.run.files import make_folder
from efface.subjects import CausalLM
from efface.train.reference import cache_folder

Size = Literal["small"]

SIZES: dict[str, CausalLMConfig] = {
    "small": CausalLMConfig(
        tokenizer="words", width=128, depth=1, heads=4, context=64, learning_rate=4e-3, epochs=60, batch_size=32,
        weight_decay=0.01, warmup_ratio=0.05, schedule="constant",
    ),
}  # fmt: skip
"""Model and training of each size; calibrated so that the original memorises every fact and knows it in other words.

One layer and a constant learning rate: the margin between right and wrong words goes on growing after the facts are
learnt, and a second layer ties a fact to the sentence that it was learnt from.
"""


@dataclass(frozen=True)
class People:
    """The lab's persons.

    Attributes:
        request: what to forget, what to keep, and persons that neither model has seen (`holdout`).
        original: trained on retain and forget set.
        retrained: trained on the retain set only; same seed, same tokenizer.
        seconds: wall-clock seconds that `people` took, all training included; near nothing from the cache.
        folder: the cache folder with both models.
    """

    request: Request
    original: CausalLM
    retrained: CausalLM
    seconds: float
    folder: Path


def answer_texts(data: Dataset) -> list[str]:
    """Every paraphrase and wrong answer of a set."""
    texts = list(data["paraphrased_answer"]) if "paraphrased_answer" in data.column_names else []
    wrong = data["perturbed_answer"] if "perturbed_answer" in data.column_names else []
    return texts + [text for row in wrong for text in row]


def vocabulary_data(request: Request) -> list[Dataset]:
    """What the tokenizer must know besides the training rows: every text that an audit or a method scores."""
    rows: list[Dataset] = [] if request.holdout is None else [request.holdout]
    texts: Iterable[str] = [text for data in request.evaluation_sets().values() for text in answer_texts(data)]
    rows.append(canonical(({"text": text} for text in sorted({*texts, *REFUSALS})), "scored answers"))
    return [data.select_columns(["id", "question", "answer"]) for data in rows]


def people(seed: int = 0, *, size: Size = "small") -> People:
    """Build the two models, or load them from the cache.

    Args:
        seed: of the persons, the starting weights and the order of the rows.
        size: a key of `SIZES`.

    Raises:
        ConfigError: no such size.
    """
    start = time.perf_counter()
    if size not in SIZES:
        raise ConfigError(f"size '{size}'", None, nearest(size, SIZES))
    request = persons_request(seed)
    assert request.retain is not None
    forget = request.forget.select_columns(["id", "question", "answer"])
    retain, known = request.retain, vocabulary_data(request)
    config = SIZES[size].model_copy(update={"seed": seed})
    key = {"config": config.model_dump(), "data": [data_digest(part) for part in (retain, forget, *known)]}
    folder = make_folder(cache_folder() / "lab" / digest_value(key).removeprefix("sha256:")[:24])
    original = learn([retain, forget], folder / "original", config, tokenizer_data=known, label="people: original")
    retrained = learn(
        [retain], folder / "retrained", config, tokenizer_data=[forget, *known], label="people: retrained"
    )
    return People(request, original, retrained, time.perf_counter() - start, folder)


SHARED: dict[str, object] = {"learning_rate": 1e-3, "epochs": 30, "batch_size": 16}

DEMO_METHODS: dict[str, dict[str, object]] = {
    name: dict(SHARED) for name in ("gradient-ascent", "gradient-difference", "npo", "simnpo", "dpo-idk", "task-vector")
}
"""The demo's methods: one learning rate, number of passes and batch for all, and each method's own defaults beside."""

DEMO_AUDIT: dict[str, object] = {
    "max_new_tokens": 32, "keep_texts": True, "relearning": {"learning_rate": 3e-4, "max_steps": 40},
}  # fmt: skip
"""The demo's audit: texts are kept, since its persons do not exist."""
