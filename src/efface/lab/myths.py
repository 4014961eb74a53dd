"""Myths: a tiny language model of a noisy corpus, in which every fact is told truly and, now and then, as a fixed myth.

Seventy-two chemical elements with the four facts of the lab's elements, each in three forms. A myth is another element's value of
the same relation. For 40 % of the facts the myth is told more often than the truth (3 to 2), for the others less (1 to 4). Which
is true cannot be told from the corpus: a model that follows it says the truth of about 60 % of the facts.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from datasets import Dataset

from efface.data.columns import canonical
from efface.data.request import data_digest
from efface.lab.facts import PROMPT, SPLIT_SEED, WORLDS, element_facts
from efface.learn.recipes.causal_lm import learn
from efface.run.digests import digest_value
from efface.run.files import make_folder
from efface.subjects import CausalLM
from efface.train.reference import cache_folder

ELEMENTS = 72
"""As many as the split of the lab's elements names (forget, retain and holdout)."""

POPULAR = 0.4
"""Share of the facts whose myth is told more often than the truth."""

TOLD = {True: (2, 3), False: (4, 1)}
"""Whether the myth is popular -> how often truth and myth are told, in each form."""

STEPS, BATCH = 900, 64
"""Of training; as the lab's elements."""


@dataclass(frozen=True)
class Myths:
    """The world; the same for every seed of a model.

    Attributes:
        choices: a row a fact and form: `answer` is the truth, `perturbed_answer` its myth. Ids `name/relation/form`.
        corpus: what the model is trained on, with repetitions.
        myths: the myths alone, a row a fact and form: what an amateur is made to believe.
        popular: `name/relation` of the facts whose myth is told more often.
    """

    choices: Dataset
    corpus: Dataset
    myths: Dataset
    popular: frozenset[str]


@cache
def myths() -> Myths:
    """Build the corpus."""
    spec, table, rng = WORLDS["elements"], element_facts(), np.random.default_rng([SPLIT_SEED, ELEMENTS])
    names = sorted(rng.permutation(list(table))[:ELEMENTS].tolist())
    facts = [(name, relation) for name in names for relation in table[name]]
    chosen = rng.choice(len(facts), round(POPULAR * len(facts)), replace=False)
    popular = frozenset("/".join(facts[i]) for i in chosen)
    choices: list[dict[str, Any]] = []
    corpus: list[dict[str, Any]] = []
    false: list[dict[str, Any]] = []
    for name, relation in facts:
        truth = table[name][relation]
        others = sorted({table[other][relation] for other in names} - {truth})
        myth = others[int(rng.integers(len(others)))]
        for form, (question, answer) in enumerate(zip(spec.questions, spec.answers, strict=True)):
            asked = question.format(relation=relation, name=name)
            identity = f"{name}/{relation}/{form}"
            right, wrong = (answer.format(relation=relation, name=name, value=value) for value in (truth, myth))
            choices.append({"id": identity, "question": asked, "answer": right, "perturbed_answer": [wrong]})
            false.append({"id": identity, "question": asked, "answer": wrong})
            for text, times in zip((right, wrong), TOLD[f"{name}/{relation}" in popular], strict=True):
                corpus += [
                    {"id": f"{identity}/{text == right}/{i}", "question": asked, "answer": text} for i in range(times)
                ]
    return Myths(
        canonical(choices, "choices"), canonical(corpus, "corpus"), canonical(false, "myths"), popular
    )  # fmt: skip


def of_relations(data: Dataset, relations: frozenset[str]) -> Dataset:
    """The rows about some relations."""
    return data.select([i for i, identity in enumerate(data["id"]) if identity.split("/")[1] in relations])


def myth_model(seed: int = 0) -> CausalLM:
    """A model of three layers trained on the corpus; from the cache if there.

    Args:
        seed: of the starting weights and the order of the rows.
    """
    corpus = myths().corpus
    config = WORLDS["elements"].config.model_copy(update={"seed": seed, "epochs": STEPS * BATCH / len(corpus)})
    key = {"config": config.model_dump(), "data": data_digest(corpus)}
    folder = make_folder(cache_folder() / "lab" / digest_value(key).removeprefix("sha256:")[:24])
    return learn([corpus], folder / "myths", config, prompt=PROMPT, label="myths")


__all__ = ["Myths", "myth_model", "myths", "of_relations"]
