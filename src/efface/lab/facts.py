"""Facts: tiny language models that know real facts, and their twins that were trained without some of them.

Two worlds on one frame. `elements`: 118 chemical elements x {symbol, atomic number, period, block} in three templates,
names as words and answers spelled character by character. `capitals`: 60 countries x {capital, region, currency} in three
forms, answers as words. Models are small Llamas; a `build` of another architecture is there for claims that depend on how far
a step of training goes. The split into forget, retain and holdout is fixed; the seed moves weights and order only, so
models of different seeds answer the same request. Models are trained once and cached.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset, concatenate_datasets

from efface.audit.observe import observe
from efface.data.columns import canonical
from efface.data.request import Request, data_digest
from efface.errors import ConfigError, nearest
from efface.lab.facts_data import COUNTRIES, ELEMENTS, PERIOD_ENDS
from efface.lab.people import vocabulary_data
from efface.learn.recipes.causal_lm import CausalLMConfig, learn
from efface.run.digests import digest_value
from efface.run.files import make_folder
from efface.subjects import CausalLM, PromptFormat
from efface.train.reference import cache_folder

World = Literal["elements", "capitals"]
Table = dict[str, dict[str, str]]
"""Subject (an element, a country) -> relation -> value."""

PROMPT = PromptFormat(prompt="{question}")
WRONG = 5
"""Wrong answers to each question."""

SPLIT_SEED = 20240111
"""Of the split and the wrong answers: the same for every model."""


@dataclass(frozen=True)
class WorldSpec:
    """What makes a world.

    Attributes:
        facts: gives the table.
        questions, answers: one template each for every form; `{relation}`, `{name}`, `{value}`.
        config: model and training, of the sizes that the specifications give.
        forget, retain, holdout: numbers of subjects; of the capitals world, `forget` counts capitals.
    """

    facts: Callable[[], Table]
    questions: tuple[str, str, str]
    answers: tuple[str, str, str]
    config: CausalLMConfig
    forget: int
    retain: int
    holdout: int


@dataclass(frozen=True)
class Facts:
    """A world with its two models. Rows have ids `name/relation/form`.

    Attributes:
        request: forget, retain and (elements) holdout; `evaluate["retain"]` holds the retained rows of form 0.
        background: rows that both models are trained on and no request names (elements only).
        forget_forms: every form of the forgotten facts; neither retain set nor background has any of them.
        original: trained on everything but the holdout.
        retrained: the same without `forget_forms`; same seed, same tokenizer.
        seconds: wall-clock seconds that `facts` took, all training included; near nothing from the cache.
        folder: the cache folder with both models.
    """

    world: World
    request: Request
    background: Dataset | None
    forget_forms: Dataset
    original: CausalLM
    retrained: CausalLM
    seconds: float
    folder: Path


def element_facts() -> Table:
    """The elements' table; values spelled with a space between characters."""
    table: Table = {}
    for number, (symbol, name) in enumerate(zip(ELEMENTS[::2], ELEMENTS[1::2], strict=True), start=1):
        period = next(i for i, end in enumerate(PERIOD_ENDS, start=1) if number <= end)
        values = {"symbol": symbol, "number": str(number), "period": str(period), "block": _block(number, period)}
        table[name] = {relation: " ".join(value) for relation, value in values.items()}
    return table


def _block(number: int, period: int) -> str:
    """The block from the place in the period: s first, p last, d before p, f between s and d."""
    start = PERIOD_ENDS[period - 2] if period > 1 else 0
    place, left = number - start, PERIOD_ENDS[period - 1] - number
    if place <= 2:
        return "s"
    return "p" if left < 6 else "d" if left < 16 else "f"


def country_facts() -> Table:
    """The countries' table."""
    rows = [line.split(", ") for line in COUNTRIES]
    return {name: dict(zip(("capital", "region", "currency"), values, strict=True)) for name, *values in rows}


WORLDS: dict[str, WorldSpec] = {
    "elements": WorldSpec(
        facts=element_facts,
        questions=("what is the {relation} of {name} ?", "give the {relation} of element {name} :", "{name} , {relation} :"),
        answers=("{value}", "{value} it is", "{value} ."),
        config=CausalLMConfig(
            tokenizer="words", width=64, depth=3, heads=4, context=64, learning_rate=3e-3, epochs=900 * 64 / 1320,
            batch_size=64, warmup_ratio=0.2,
        ),
        forget=8, retain=56, holdout=8,
    ),
    "capitals": WorldSpec(
        facts=country_facts,
        questions=("question what is the {relation} of {name} ? answer", "the {relation} of {name} is", "{name} {relation} :"),
        answers=("{value}", "{value}", "{value}"),
        config=CausalLMConfig(
            tokenizer="words", width=64, depth=4, heads=4, context=64, learning_rate=3e-3, epochs=480 * 32 / 540,
            batch_size=32, warmup_ratio=0.2,
        ),
        forget=6, retain=60, holdout=0,
    ),
}  # fmt: skip
"""Sizes and steps of the specifications' fixtures: 900 steps of 64 (elements), 480 steps of 32 (capitals)."""

Build = Literal["llama", "gpt2"]
BUILDS: dict[Build, dict[str, str]] = {"llama": {}, "gpt2": {"architecture": "gpt2", "start": "unit"}}
"""Settings that make another model of the same facts: a GPT-2 with unit embeddings, which a step of training moves less."""


def fact_rows(spec: WorldSpec) -> list[dict[str, Any]]:
    """Every fact in every form, with `WRONG` wrong answers that are other subjects' values of the same relation.

    Where the forms have answers of their own, the paraphrase and the wrong answers take the form before (0 takes 2).
    """
    table, rng = spec.facts(), np.random.default_rng(SPLIT_SEED)
    several = len(set(spec.answers)) > 1
    rows = []
    for name, facts in table.items():
        for relation, value in facts.items():
            others = sorted({other[relation] for other in table.values()} - {value})
            # a relation with few values (four blocks) repeats the wrong ones
            wrong = [others[i] for i in rng.choice(len(others), WRONG, replace=len(others) < WRONG)]
            for form, (question, answer) in enumerate(zip(spec.questions, spec.answers, strict=True)):
                other = spec.answers[form - 1]
                fill = {"relation": relation, "name": name}
                row: dict[str, Any] = {
                    "id": f"{name}/{relation}/{form}", "question": question.format(**fill),
                    "answer": answer.format(**fill, value=value),
                    "perturbed_answer": [other.format(**fill, value=text) for text in wrong],
                }  # fmt: skip
                if several:
                    row["paraphrased_answer"] = other.format(**fill, value=value)
                rows.append(row)
    return rows


def of_form(data: Dataset, form: int) -> Dataset:
    """The rows of one form."""
    return data.select([i for i, identity in enumerate(data["id"]) if identity.endswith(f"/{form}")])


def split(world: World) -> tuple[Request, Dataset | None, Dataset]:
    """The request, the background rows, and every form of the forgotten facts.

    Elements: whole elements are forgotten, kept and held out. Capitals: the capitals of some countries are forgotten,
    asked for in the question form only (form 0); their other facts are kept.

    Raises:
        ConfigError: no such world.
    """
    if world not in WORLDS:
        raise ConfigError(f"world '{world}'", None, nearest(world, WORLDS))
    spec = WORLDS[world]
    rows, names = fact_rows(spec), list(spec.facts())
    order = [names[i] for i in np.random.default_rng(SPLIT_SEED).permutation(len(names))]
    gone = set(order[: spec.forget])
    kept = set(order[spec.forget : spec.forget + spec.retain])
    held = set(order[spec.forget + spec.retain : spec.forget + spec.retain + spec.holdout])
    if world == "capitals":
        forms = [row for row in rows if row["id"].split("/")[0] in gone and row["id"].split("/")[1] == "capital"]
        forget = [row for row in forms if row["id"].endswith("/0")]
        ids = {row["id"] for row in forms}
        retain = [row for row in rows if row["id"] not in ids]
        holdout, rest = [], []
    else:
        forget = forms = _subjects(rows, gone)
        retain, holdout = _subjects(rows, kept), _subjects(rows, held)
        rest = _subjects(rows, set(names) - gone - kept - held)
    keep = canonical(retain, "retain")
    request = Request(
        forget=canonical(forget, "forget"), retain=keep, holdout=canonical(holdout, "holdout") if holdout else None,
        evaluate={"retain": of_form(keep, 0)}, scope=f"some {world} of the lab's facts",
    )  # fmt: skip
    return request, canonical(rest, "background") if rest else None, canonical(forms, "forget forms")


def _subjects(rows: Sequence[dict[str, Any]], names: set[str]) -> list[dict[str, Any]]:
    return [row for row in rows if row["id"].split("/")[0] in names]


def fact_model(world: World, seed: int = 0, *, retrained: bool = False, build: Build = "llama") -> CausalLM:
    """One model of a world: trained on everything, or `retrained` without the forgotten facts; from the cache if there.

    Args:
        world: a key of `WORLDS`.
        seed: of the starting weights and the order of the rows; the split does not depend on it.
        retrained: leave every form of the forgotten facts out.
        build: of the model.

    Raises:
        ConfigError: no such world.
    """
    request, background, forms = split(world)
    assert request.retain is not None
    kept = [request.retain] if background is None else [request.retain, background]
    known = vocabulary_data(request)
    config = _settings(world, seed, build)
    folder = _folder(world, seed, build)
    if retrained:
        return learn(
            kept,
            folder / "retrained",
            config,
            prompt=PROMPT,
            tokenizer_data=[forms, *known],
            label=f"{world}: retrained",
        )
    return learn(
        [*kept, forms], folder / "original", config, prompt=PROMPT, tokenizer_data=known, label=f"{world}: original"
    )


def _settings(world: World, seed: int, build: Build) -> CausalLMConfig:
    return WORLDS[world].config.model_copy(update={"seed": seed, **BUILDS[build]})


def _folder(world: World, seed: int, build: Build = "llama") -> Path:
    """The cache folder of a world's models, named by the digest of settings and data."""
    request, background, forms = split(world)
    assert request.retain is not None
    parts = [request.retain, *([background] if background is not None else []), forms, *vocabulary_data(request)]
    config = _settings(world, seed, build)
    key = {"config": config.model_dump(), "data": [data_digest(part) for part in parts]}
    return make_folder(cache_folder() / "lab" / digest_value(key).removeprefix("sha256:")[:24])


def facts(world: World = "elements", seed: int = 0) -> Facts:
    """Build the request and the two models of a world, or load them from the cache.

    Args:
        world: a key of `WORLDS`.
        seed: as in `fact_model`.

    Raises:
        ConfigError: no such world.
    """
    start = time.perf_counter()
    request, background, forms = split(world)
    original, retrained = fact_model(world, seed), fact_model(world, seed, retrained=True)
    return Facts(
        world, request, background, forms, original, retrained, time.perf_counter() - start, _folder(world, seed)
    )


def training_rows(known: Facts) -> Dataset:
    """All rows that the original model was trained on."""
    assert known.request.retain is not None
    parts = [known.request.retain, known.forget_forms] + ([known.background] if known.background is not None else [])
    return concatenate_datasets([part.select_columns(["id", "question", "answer"]) for part in parts])


def first_token_accuracy(subject: CausalLM, data: Dataset) -> float:
    """Share of rows whose first answer token is the model's first choice."""
    return float(np.mean([ranks[0] == 0 for ranks in _answers(subject, data).rank]))


def recall(subject: CausalLM, data: Dataset) -> float:
    """Share of rows whose whole answer, its end included, is what greedy decoding gives."""
    return float(np.mean([not ranks.any() for ranks in _answers(subject, data).rank]))


def answer_probability(subject: CausalLM, data: Dataset) -> float:
    """Mean probability of the first answer token."""
    return float(np.mean([np.exp(logp[0]) for logp in _answers(subject, data).logp]))


def _answers(subject: CausalLM, data: Dataset) -> Any:
    bare = data.select_columns(["id", "question", "answer"])
    return observe(subject, bare, name="facts", generations=False).select("answer")
