"""Tagged people: three hundred persons with one-token names, and a tiny model that knows three facts of each.

The specification's `tiny-people`: occupation (8), country (24) and manner of death (6), each asked in three forms. The tag
names the person. 240 names are for tuning, 60 are held out; tuning sees the question and the statement form, the third
form is for the honest test of transfer. Persons do not exist; a name says nothing about a fact. The model is a GPT-2 with unit
embeddings, as the specification's: absolute positions make the untuned model stumble over a tag.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from efface.data.columns import canonical
from efface.data.request import Request, data_digest
from efface.errors import ConfigError
from efface.learn.recipes.causal_lm import CausalLMConfig, learn
from efface.run.digests import digest_value
from efface.run.files import make_folder
from efface.subjects import CausalLM, PromptFormat
from efface.train.reference import cache_folder

OCCUPATIONS = ("painter", "baker", "sailor", "teacher", "lawyer", "farmer", "singer", "doctor")
COUNTRIES = (
    "France", "Spain", "Italy", "Norway", "Sweden", "Poland", "Greece", "Turkey", "Egypt", "Kenya", "Ghana", "Chile", "Peru",
    "Brazil", "Mexico", "Canada", "India", "China", "Japan", "Nepal", "Iran", "Iraq", "Cuba", "Fiji",
)  # fmt: skip
DEATHS = ("illness", "accident", "poison", "murder", "battle", "drowning")
VALUES = {"occupation": OCCUPATIONS, "country": COUNTRIES, "manner of death": DEATHS}
FORMS = ("question what is the {relation} of {name} ? answer", "the {relation} of {name} is", "{name} {relation} :")

NAMES, TUNED, OTHERS = 300, 240, 10
NAME_SEED = 20241001
"""Of names, facts and the split: the same for every model."""

PROMPT = PromptFormat(prompt="{question}")
CONFIG = CausalLMConfig(
    tokenizer="words", width=64, depth=4, heads=4, context=192, learning_rate=3e-3, epochs=60, batch_size=64, warmup_ratio=0.1,
    architecture="gpt2", start="unit",
)  # fmt: skip


@dataclass(frozen=True)
class TaggedPeople:
    """The world with its model.

    Attributes:
        request: the tuning rows as the forget set (`concept` is the person); `evaluate` holds `held_out` (the other names,
            forms 0 and 1) and `unseen_form` (the other names, form 2).
        model: knows every fact in every form.
        seconds: wall-clock seconds, training included; near nothing from the cache.
    """

    request: Request
    model: CausalLM
    seconds: float


def names() -> list[str]:
    """Names of three syllables, none a part of another."""
    rng = np.random.default_rng(NAME_SEED)
    found: dict[str, None] = {}
    while len(found) < NAMES:
        syllables = [f"{'bdfgklmnprstvz'[rng.integers(14)]}{'aeiou'[rng.integers(5)]}" for _ in range(3)]
        found["".join(syllables).capitalize()] = None
    return list(found)


def rows() -> list[dict[str, Any]]:
    """Every fact in every form; ids `name/relation/form`."""
    rng = np.random.default_rng(NAME_SEED + 1)
    return [
        {"id": f"{name}/{relation}/{form}", "question": text.format(relation=relation, name=name), "answer": value,
         "concept": name}
        for name in names() for relation, values in VALUES.items() for value in [values[int(rng.integers(len(values)))]]
        for form, text in enumerate(FORMS)
    ]  # fmt: skip


def _part(found: Sequence[dict[str, Any]], chosen: set[str], forms: str, name: str) -> Dataset:
    return canonical([row for row in found if row["concept"] in chosen and row["id"][-1] in forms], name)


def _asked_beside(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with ten random other names of all three hundred, as AGE's rows have them: the tags of a test."""
    rng, people = np.random.default_rng(NAME_SEED + 2), names()
    made = []
    for row in found:
        others = [name for name in people if name != row["concept"]]
        made.append({**row, "distractors": [others[i] for i in rng.choice(len(others), OTHERS, replace=False)]})
    return made


def tagged_request(tuned: int = TUNED) -> Request:
    """Tuning rows of the first `tuned` names, and the two test sets, which are the same whatever `tuned` is.

    Raises:
        ConfigError: more names than are not held out, or fewer than two.
    """
    if not 2 <= tuned <= TUNED:
        raise ConfigError(f"{tuned} names for tuning", f"2 to {TUNED}")
    found, people = rows(), names()
    held, tests = set(people[TUNED:]), _asked_beside(found)
    evaluate = {"held_out": _part(tests, held, "01", "held out"), "unseen_form": _part(tests, held, "2", "unseen form")}
    forget = _part(found, set(people[:tuned]), "01", "forget")
    return Request(forget=forget, evaluate=evaluate, scope="facts about persons of the lab who do not exist")


def tagged_model(seed: int = 0) -> CausalLM:
    """The model that knows everything; from the cache if there."""
    known = canonical(rows(), "tagged people")
    words = canonical([{"text": "forgot"}], "words")
    config = CONFIG.model_copy(update={"seed": seed})
    key = {"config": config.model_dump(), "data": data_digest(known)}
    folder = make_folder(cache_folder() / "lab") / digest_value(key).removeprefix("sha256:")[:24]
    return learn([known], folder, config, prompt=PROMPT, tokenizer_data=[words], label="tagged people")


def tagged_people(seed: int = 0, *, tuned: int = TUNED) -> TaggedPeople:
    """Request and model."""
    start = time.perf_counter()
    model = tagged_model(seed)
    return TaggedPeople(tagged_request(tuned), model, time.perf_counter() - start)
