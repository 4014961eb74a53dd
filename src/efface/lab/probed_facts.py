"""Probed facts: the elements, learnt so that one fact can be reached by many prompts, for benchmarks of many forms.

Beside the statement and the question the models read every fact in synonyms, among options and behind a hint, and symbols and
numbers the other way round ("which has symbol F e ?"). They know 64 elements, no more, so that they learn fast. What is to be
forgotten is the statement alone (template 0); the retrained model has read nothing at all about the forgotten elements but
their values among other elements' options.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from datasets import Dataset

from efface.data.columns import canonical
from efface.data.request import Request, data_digest
from efface.lab.facts import PROMPT, WORLDS, Table, element_facts, split
from efface.lab.people import vocabulary_data
from efface.learn.recipes.causal_lm import learn
from efface.run.digests import digest_value
from efface.run.files import make_folder
from efface.subjects import CausalLM
from efface.train.reference import cache_folder

Form = Literal["blank", "question", "synonym", "reverse", "choice", "hint"]
FORMS: dict[Form, str] = {
    "blank": "the {relation} for {name} is",
    "question": "q : {relation} of {name} ?",
    "synonym": "tell the {relation} that {name} has :",
    "reverse": "which has {relation} {value} ?",
    "choice": "{relation} of {name} among {options} ?",
    "hint": "{other} for {name} is {hint} . q : {relation} of {name} ?",
}
"""Level 1, level 2, and four types of attack."""

REVERSED = ("which has {relation} {value} ?", "{value} is the {relation} of", "the element with {relation} {value} is")
"""How the other way round is read in training; it is asked in the first. Names are answers nowhere else: one is not enough."""

ATTACKS: tuple[Form, ...] = ("synonym", "reverse", "choice", "hint")
UNIQUE = ("symbol", "number")
"""Relations whose value names one element: only these are asked the other way round."""

EPOCHS = 30
"""Fewer passes than the world `elements` has (44): a fact is read in six forms."""

LEARNT, ASKED = 11, 12
"""Seeds of the options and hints that are read in training, and of those that are asked: other draws."""


@dataclass(frozen=True)
class ProbedFacts:
    """The world.

    Attributes:
        request: statements (form `blank`) of 8 elements to forget; statements and questions of 56 to keep.
        levels: the forgotten facts by form, as they are asked.
        neighbours: statements and questions of the kept elements of a forgotten one's block and period.
        original, retrained: the models; same seed, same tokenizer.
    """

    request: Request
    levels: dict[Form, Dataset]
    neighbours: Dataset
    original: CausalLM
    retrained: CausalLM


def form_rows(form: Form, table: Table, names: Iterable[str], seed: int) -> list[dict[str, Any]]:
    """The facts of some elements in one form, with `concept` and `relation`; options and hints drawn from the seed."""
    found = []
    relations = list(next(iter(table.values())))
    for name in names:
        for place, (relation, value) in enumerate(table[name].items()):
            if form == "reverse" and relation not in UNIQUE:
                continue
            rng = np.random.default_rng([seed, sorted(table).index(name), place])
            wrong = sorted({facts[relation] for facts in table.values()} - {value})
            options = [value, *(wrong[i] for i in rng.choice(len(wrong), 3, replace=False))]
            other = [key for key in relations if key != relation][(seed + place) % (len(relations) - 1)]
            slots = {"relation": relation, "name": name, "value": value, "other": other, "hint": table[name][other]}
            slots["options"] = " , ".join(options[i] for i in rng.permutation(4))
            for wording, text in enumerate(REVERSED if form == "reverse" and seed == LEARNT else (FORMS[form],)):
                found.append({
                    "id": f"{name}/{relation}/{form}" + (f"/{wording}" if wording else ""), "question": text.format(**slots),
                    "answer": name if form == "reverse" else value, "concept": name, "relation": relation,
                })  # fmt: skip
    return found


def probed_request() -> tuple[Request, dict[Form, Dataset], Dataset, list[str]]:
    """The request, the forgotten facts by form, the neighbours, and the names of the elements that are kept in training."""
    table = element_facts()
    former, _, _ = split("elements")
    assert former.retain is not None
    gone, kept = _names(former.forget), _names(former.retain)
    places = {(table[name]["block"], table[name]["period"]) for name in gone}
    near = [name for name in kept if (table[name]["block"], table[name]["period"]) in places]
    keep = [row for form in ("blank", "question") for row in form_rows(form, table, kept, LEARNT)]
    request = Request.from_rows(
        form_rows("blank", table, gone, LEARNT), keep, scope="statements about eight elements of the lab"
    )
    levels = {form: canonical(form_rows(form, table, gone, ASKED), form) for form in FORMS}
    rows = [row for form in ("blank", "question") for row in form_rows(form, table, near, ASKED)]
    return request, levels, canonical(rows, "neighbours"), kept


def _names(data: Dataset | None) -> list[str]:
    return list(dict.fromkeys(identity.split("/")[0] for identity in data["id"])) if data is not None else []


def probed_facts(seed: int = 0) -> ProbedFacts:
    """Build the rows and train both models, or load them from the cache.

    Args:
        seed: of the starting weights and the order of the rows; who is forgotten does not depend on it.
    """
    request, levels, neighbours, kept = probed_request()
    table = element_facts()
    gone = _names(request.forget)
    theirs, others = (
        canonical([row for form in FORMS for row in form_rows(form, table, names, LEARNT)], "facts")
        for names in (gone, kept)
    )
    known = [
        *vocabulary_data(split("elements")[0]),
        *(part.select_columns(["id", "question", "answer"]) for part in levels.values()),
    ]
    config = WORLDS["elements"].config.model_copy(update={"seed": seed, "epochs": EPOCHS})
    key = {"config": config.model_dump(), "data": [data_digest(part) for part in (theirs, others, *known)]}
    folder = make_folder(cache_folder() / "lab" / digest_value(key).removeprefix("sha256:")[:24])
    original = learn(
        [others, theirs],
        folder / "original",
        config,
        prompt=PROMPT,
        tokenizer_data=known,
        label="probed facts: original",
    )
    retrained = learn(
        [others], folder / "retrained", config, prompt=PROMPT, tokenizer_data=[theirs, *known],
        label="probed facts: retrained",
    )  # fmt: skip
    return ProbedFacts(request, levels, neighbours, original, retrained)


__all__ = ["ATTACKS", "FORMS", "UNIQUE", "Form", "ProbedFacts", "form_rows", "probed_facts", "probed_request"]
