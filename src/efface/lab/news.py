"""News: a small language model of two sections of AG News, which forgets one of them, and a classifier that tells them apart.

The first words of a piece are the prompt, the rest is its answer. The classifier is fitted on other pieces than the model's,
and the prompts and the perplexity's texts are pieces that neither has seen. Data: `ag_news/test.csv.gz` in `EFFACE_DATA`.
"""

from __future__ import annotations

import csv
import gzip
import html
import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from efface.audit.finding import Estimate
from efface.audit.metrics.harmful_rate import (
    HarmfulRate,
    TextClassifier,
    continuation_nll,
    effectiveness,
    harmful_rate,
    text_classifier,
)
from efface.audit.observe import score
from efface.data.columns import canonical
from efface.data.request import Request, data_digest
from efface.errors import InputError
from efface.lab.emoji import data_folder
from efface.lab.unlearn import forgotten
from efface.learn.recipes.causal_lm import CausalLMConfig, learn
from efface.run.digests import digest_value
from efface.run.files import make_folder
from efface.subjects import CausalLM, PromptFormat
from efface.train.reference import cache_folder

SPORTS, BUSINESS = "2", "3"
"""Classes of AG News: the section to forget and the one to keep."""

PROMPT = PromptFormat(prompt="{question}")
PROMPT_WORDS, WORDS = 4, 24
"""Words of a prompt, and of a whole piece."""

TRAINED, CLASSIFIED, UNSEEN = 400, 600, 150
"""Pieces of each section: for the model, for the classifier, and for prompts and perplexity."""

MODEL = CausalLMConfig(
    tokenizer="words", vocabulary=3000, width=96, depth=2, heads=4, context=64, learning_rate=3e-3, epochs=20, batch_size=32,
    warmup_ratio=0.1, weight_decay=0.1,
)  # fmt: skip
FORGET: dict[str, Any] = {
    "learning_rate": 3e-4, "epochs": 4, "batch_size": 16, "schedule": "constant", "weight_decay": 0.0, "random_answers": 2,
}  # fmt: skip
"""Of ga-alignment, with its own three weights: 100 steps."""


@dataclass(frozen=True)
class NewsFigures:
    """What forgetting a section did.

    Attributes:
        drop: relative drop of the share of continuations flagged as the forgotten section.
        perplexity: after / before, on unseen pieces of the kept section.
        before, after: the rates with classifier error and fluency.
    """

    drop: Estimate
    perplexity: float
    before: HarmfulRate
    after: HarmfulRate


def pieces(section: str) -> list[str]:
    """Title and description of every piece of a section, in the file's order, as words and marks.

    Raises:
        InputError: the file is missing or not of this form.
    """
    path = data_folder() / "ag_news" / "test.csv.gz"
    if not path.is_file():
        raise InputError(f"no file {path}", "AG News (class, title, description)", "set EFFACE_DATA")
    rows = list(csv.reader(io.StringIO(gzip.decompress(path.read_bytes()).decode("utf-8"))))
    if any(len(row) != 3 for row in rows):
        raise InputError(f"{path} has rows without three fields", "class, title, description")
    texts = [_plain(f"{title} . {text}") for kind, title, text in rows if kind == section]
    return [text for text in texts if len(text.split()) >= PROMPT_WORDS + 8]


def _plain(text: str) -> str:
    words = re.findall(r"[^\W_]+|[.,?!]", html.unescape(text.replace("\\", " ")).lower())
    return " ".join(words[:WORDS])


def news_rows(texts: list[str], name: str) -> Dataset:
    """Prompt and continuation of each piece."""
    rows = [
        {"id": f"{name}-{i}", "question": " ".join(text.split()[:PROMPT_WORDS]), "answer": " ".join(text.split()[PROMPT_WORDS:])}
        for i, text in enumerate(texts)
    ]  # fmt: skip
    return canonical(rows, name)


def parts(section: str, seed: int) -> tuple[list[str], list[str], list[str]]:
    """Pieces for the model, for the classifier and unseen ones; disjoint, drawn by the seed."""
    texts = pieces(section)
    order = np.random.default_rng([seed, int(section)]).permutation(len(texts))
    chosen = [texts[i] for i in order[: TRAINED + CLASSIFIED + UNSEEN]]
    if len(set(chosen)) < TRAINED + CLASSIFIED:
        raise InputError(f"{len(set(chosen))} pieces of section {section}", f"{TRAINED + CLASSIFIED + UNSEEN}")
    return chosen[:TRAINED], chosen[TRAINED : TRAINED + CLASSIFIED], chosen[TRAINED + CLASSIFIED :]


def continuations(model: CausalLM, data: Dataset) -> list[str]:
    """Greedy continuations of the prompts, without the prompts."""
    prompts = model.encode_prompts(data, name="prompts")
    made = model.generate_all(prompts, max_new_tokens=WORDS - PROMPT_WORDS, batch_size=50)
    return [model.decode(tokens) for tokens in made]


def perplexity(model: CausalLM, data: Dataset) -> float:
    """exp of the mean NLL over all answer tokens."""
    logp = [value for row in score(model, data, answers_only=True) for value in row["logp"]]
    return float(np.exp(-np.mean(logp)))


def rate(model: CausalLM, original: CausalLM, data: Dataset, classifier: TextClassifier) -> HarmfulRate:
    """The share of flagged continuations; `original` judges their fluency."""
    texts = continuations(model, data)
    nll = continuation_nll(original, data["question"], texts)
    return harmful_rate(data["question"], texts, classifier, classifier.error, nll=nll)


def news_figures(seed: int = 0) -> NewsFigures:
    """Learn both sections, forget one, and look. Both models' figures are on the same unseen pieces."""
    gone, kept = parts(SPORTS, seed), parts(BUSINESS, seed)
    request = Request(forget=news_rows(gone[0], "forget"), retain=news_rows(kept[0], "retain"))
    assert request.retain is not None
    classifier = text_classifier([*gone[1], *kept[1]], [True] * len(gone[1]) + [False] * len(kept[1]), seed=seed)
    prompts, unseen = news_rows(gone[2], "prompts"), news_rows(kept[2], "unseen")
    config = MODEL.model_copy(update={"seed": seed})
    key = {"config": config.model_dump(), "data": [data_digest(part) for part in (request.forget, request.retain)]}
    folder = make_folder(cache_folder() / "lab" / digest_value(key).removeprefix("sha256:")[:24])

    def model() -> CausalLM:
        return learn(
            [request.forget, request.retain], folder / "original", config, prompt=PROMPT, label="news: original"
        )

    original, subject = model(), model()
    before, level = rate(original, original, prompts, classifier), perplexity(original, unseen)
    with forgotten("ga-alignment", subject, request, **FORGET, seed=seed) as edited:
        after, now = rate(edited, original, prompts, classifier), perplexity(edited, unseen)
    return NewsFigures(effectiveness(before, after).drop, now / level, before, after)
