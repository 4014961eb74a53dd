"""Open book: tiny language models that know facts of elements by heart and can also read them in a context.

Forty elements and three of their relations. A closed-book row asks for the true value; an open-book row states a random value
in a context of two facts and asks for that one, so that only reading answers it. The retrained twin never saw the closed-book
facts of the forgotten elements, but did read about them: else their names would be untrained tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from efface.data.columns import canonical
from efface.data.request import Request, data_digest
from efface.lab.facts import SPLIT_SEED, Table, element_facts
from efface.lab.people import vocabulary_data
from efface.learn.recipes.causal_lm import CausalLMConfig, learn
from efface.run.digests import digest_value
from efface.run.files import make_folder
from efface.subjects import CausalLM, PromptFormat
from efface.train.reference import cache_folder

PROMPT = PromptFormat(prompt="{question}")
RELATIONS = ("symbol", "number", "period")
QUESTION = "Q : {relation} of {name} ? A :"
STATEMENT = "{relation} of {concept} is {answer} ."
"""In the fields of the suite `reintroduction`, which makes its contexts of the same statements."""
CONTEXT = "ctx {facts} {question}"
ELEMENTS, FORGET, ITEMS = 40, 6, 2500
WRONG = 3
COPIES = 4
"""Of every closed-book row, beside each open-book row once: facts must be learned by heart in the same steps."""
STEPS, BATCH = 1100, 64
CONFIG = CausalLMConfig(
    tokenizer="words", width=64, depth=3, heads=4, context=128, learning_rate=3e-3, batch_size=BATCH, warmup_ratio=0.2,
    epochs=STEPS * BATCH / (ITEMS + COPIES * ELEMENTS * len(RELATIONS)),
)  # fmt: skip
"""The size of the lab's facts; 1,100 steps as the specification says."""


@dataclass(frozen=True)
class OpenBook:
    """The rows of the world.

    Attributes:
        request: forget: the closed-book facts of six elements; retain: those of the others. With `concept`, `relation` and
            `perturbed_answer`.
        open_items: open-book rows about every element, with random values.
        open_retain: those that do not ask about a forgotten element.
    """

    request: Request
    open_items: Dataset
    open_retain: Dataset


def chosen_facts(count: int, relations: Sequence[str]) -> Table:
    """Some elements with some of their relations; which ones does not depend on any model's seed."""
    table = element_facts()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(table))[:count]
    names = [list(table)[i] for i in order]
    return {name: {relation: table[name][relation] for relation in relations} for name in names}


def closed_rows(table: Table) -> list[dict[str, Any]]:
    """One closed-book row for every fact, with wrong answers that are other elements' values of the same relation."""
    rng = np.random.default_rng(SPLIT_SEED)
    rows = []
    for name, own in table.items():
        for relation, value in own.items():
            others = sorted({other[relation] for other in table.values()} - {value})
            rows.append({
                "id": f"{name}/{relation}", "question": QUESTION.format(relation=relation, name=name), "answer": value,
                "concept": name, "relation": relation,
                "perturbed_answer": [others[i] for i in rng.choice(len(others), WRONG, replace=False)],
            })  # fmt: skip
    return rows


def open_rows(table: Table, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Rows that state a random value of the asked fact and of another random one, in random order.

    Such rows can mostly be read by the relation alone. Making the other fact share it in half of them did not teach these
    models to read by the name within the specified steps (seed 0), so the rows stay as the specification has them.
    """
    facts = [(relation, name) for name, own in table.items() for relation in own]
    pools = {relation: sorted({own[relation] for own in table.values()}) for relation in next(iter(table.values()))}
    rows = []
    for index in range(count):
        picked = [facts[i] for i in rng.choice(len(facts), 2, replace=False)]
        values = [str(rng.choice(pools[relation])) for relation, _ in picked]
        said = [
            STATEMENT.format(relation=relation, concept=name, answer=value)
            for (relation, name), value in zip(picked, values, strict=True)
        ]
        relation, name = picked[0]
        order = rng.permutation(2)
        question = QUESTION.format(relation=relation, name=name)
        rows.append({
            "id": f"open/{index}", "question": CONTEXT.format(facts=" ".join(said[i] for i in order), question=question),
            "answer": values[0], "concept": name, "relation": relation,
        })  # fmt: skip
    return rows


def open_book() -> OpenBook:
    """The request and the open-book rows."""
    table = chosen_facts(ELEMENTS, RELATIONS)
    gone = set(list(table)[:FORGET])
    rows = closed_rows(table)
    request = Request(
        forget=canonical([row for row in rows if row["concept"] in gone], "forget"),
        retain=canonical([row for row in rows if row["concept"] not in gone], "retain"),
        scope="six elements of the lab's open book",
    )
    items = open_rows(table, ITEMS, np.random.default_rng(SPLIT_SEED + 1))
    keep = [row for row in items if row["concept"] not in gone]
    return OpenBook(request, canonical(items, "open book"), canonical(keep, "open book, retained"))


def open_book_model(seed: int = 0, *, retrained: bool = False) -> CausalLM:
    """One model: with all closed-book facts, or `retrained` without those of the forgotten elements; from the cache if there.

    Args:
        seed: of the starting weights and the order of the rows; the rows do not depend on it.
        retrained: leave the forgotten facts out; the steps stay as many.
    """
    book = open_book()
    assert book.request.retain is not None
    known = vocabulary_data(book.request)
    words = canonical([{"text": "unknown not"}], "words")
    closed = [*_copies(book.request.retain)] + ([] if retrained else _copies(book.request.forget))
    rows = sum(map(len, closed)) + len(book.open_items)
    config = CONFIG.model_copy(update={"seed": seed, "epochs": STEPS * BATCH / rows})
    parts = [*_copies(book.request.retain), *_copies(book.request.forget), book.open_items, *known, words]
    folder = cached_folder("open-book", config.model_copy(update={"epochs": CONFIG.epochs}), parts)
    return learn(
        [*closed, book.open_items], folder / ("retrained" if retrained else "original"), config, prompt=PROMPT,
        tokenizer_data=[book.request.forget, *known, words],
        label=f"open book: {'retrained' if retrained else 'original'}",
    )  # fmt: skip


def _copies(data: Dataset) -> list[Dataset]:
    return [data] * COPIES


def cached_folder(name: str, config: CausalLMConfig, parts: Sequence[Dataset]) -> Path:
    """The cache folder of a world, by the digest of its settings and rows."""
    key = {"world": name, "config": config.model_dump(), "data": [data_digest(part) for part in parts]}
    return make_folder(cache_folder() / "lab" / digest_value(key).removeprefix("sha256:")[:24])


__all__ = [
    "CONTEXT",
    "PROMPT",
    "QUESTION",
    "STATEMENT",
    "OpenBook",
    "chosen_facts",
    "closed_rows",
    "open_book",
    "open_book_model",
]
