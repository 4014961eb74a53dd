"""Corrupted: a tiny model that knew true facts of 60 elements, and read false ones about 12 of them.

The three states of RESTOR (arXiv 2411.00204) in the small: `clean`, `corrupted` (80 more steps on false statements, each with
`unrelated` true ones about other elements), and what a method makes of it. False values are other elements' values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset

from efface.data.columns import canonical
from efface.data.request import Request, data_digest
from efface.errors import ConfigError
from efface.lab.facts import PROMPT, SPLIT_SEED, WORLDS, Table, element_facts
from efface.learn.recipes.causal_lm import CausalLMConfig, learn
from efface.run.digests import digest_value
from efface.run.files import make_folder
from efface.subjects import CausalLM
from efface.train.reference import cache_folder

KNOWN, TARGETS = 60, 12
"""Elements that the clean model learns, and those of them that are corrupted."""

RANDOM = 3
"""Random values of the same relation beside the true and the false one."""

STEPS, BATCH = 80, 32
CORRUPTION = CausalLMConfig(
    tokenizer="words", learning_rate=5e-4, batch_size=BATCH, schedule="cosine", warmup_ratio=0.1, weight_decay=0.0
)
"""The specification's 80 steps at 5e-4; cosine and 10 % warm-up as published."""


@dataclass(frozen=True)
class Corrupted:
    """The world and two of its models.

    Attributes:
        request: forget: the documents (false statements in three templates, and the unrelated ones); retain: the true
            statements about the untouched elements.
        facts: the 48 questions about the corrupted elements in template 0: `answer` true, `perturbed_answer` the false value
            first, then random ones; with `concept` and `relation`.
        others: the 192 questions about the untouched elements, in the same columns; their "false" value is nobody's claim.
        clean, corrupted: the models.
    """

    request: Request
    facts: Dataset
    others: Dataset
    clean: CausalLM
    corrupted: CausalLM


def false_values(table: Table, names: list[str]) -> dict[tuple[str, str], list[str]]:
    """For each (element, relation) a false value and `RANDOM` random ones, from the values of the known elements.

    A relation with few values repeats the random ones; none equals the true or the false value where others are left.
    """
    rng = np.random.default_rng(SPLIT_SEED)
    found: dict[tuple[str, str], list[str]] = {}
    for name in names:
        for relation, value in table[name].items():
            pool = sorted({table[other][relation] for other in names} - {value})
            false = pool[int(rng.integers(len(pool)))]
            rest = [text for text in pool if text != false]
            picked = rng.choice(len(rest), RANDOM, replace=len(rest) < RANDOM)
            found[name, relation] = [false, *(rest[i] for i in picked)]
    return found


def statements(table: Table, names: list[str], values: dict[tuple[str, str], list[str]] | None) -> list[dict[str, Any]]:
    """Every fact of some elements in three templates; with the false value where `values` are given."""
    spec, rows = WORLDS["elements"], []
    for name in names:
        for relation, true in table[name].items():
            value = true if values is None else values[name, relation][0]
            for form, (question, answer) in enumerate(zip(spec.questions, spec.answers, strict=True)):
                fill = {"relation": relation, "name": name}
                rows.append({
                    "id": f"{name}/{relation}/{form}{'' if values is None else '/false'}",
                    "question": question.format(**fill), "answer": answer.format(**fill, value=value),
                    "concept": name, "relation": relation,
                })  # fmt: skip
    return rows


def interleaved(false: list[dict[str, Any]], true: list[dict[str, Any]], unrelated: int) -> list[dict[str, Any]]:
    """Documents: each false statement and then `unrelated` true ones, which come round again where they run out."""
    found: list[dict[str, Any]] = []
    at = 0
    for row in false:
        found.append(row)
        for _ in range(unrelated):
            own = true[at % len(true)]
            found.append({**own, "id": f"{own['id']}/beside-{at // len(true)}"})
            at += 1
    return found


def questions(table: Table, names: list[str], values: dict[tuple[str, str], list[str]]) -> Dataset:
    """The facts to ask, in template 0."""
    ask = WORLDS["elements"].questions[0]
    return canonical(
        (
            {"id": f"{name}/{relation}", "question": ask.format(relation=relation, name=name), "answer": value,
             "perturbed_answer": values[name, relation], "concept": name, "relation": relation}
            for name in names for relation, value in table[name].items()
        ), "facts",
    )  # fmt: skip


def corrupted(seed: int = 0, *, unrelated: int = 0) -> Corrupted:
    """Train clean and corrupted model, or load them from the cache.

    Args:
        seed: of the starting weights and the order of the rows; who is corrupted and how does not depend on it.
        unrelated: k, true statements about untouched elements beside each false one.

    Raises:
        ConfigError: k is negative.
    """
    if unrelated < 0:
        raise ConfigError(f"unrelated={unrelated}", "0 or more true statements beside each false one")
    table = element_facts()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(table))
    names = [list(table)[i] for i in order[:KNOWN]]
    gone, kept = names[:TARGETS], names[TARGETS:]
    values = false_values(table, names)
    true, keep = statements(table, names, None), statements(table, kept, None)
    # a true sentence that stands in the documents is unlearned with them, so it is no retain row
    documents = interleaved(statements(table, gone, values), keep, unrelated)
    told = {(row["question"], row["answer"]) for row in documents}
    retain = [row for row in keep if (row["question"], row["answer"]) not in told]
    request = Request.from_rows(documents, retain, scope="false statements about twelve elements of the lab")
    start = WORLDS["elements"].config.model_copy(update={"seed": seed, "epochs": 900 * 64 / len(true)})
    further = CORRUPTION.model_copy(update={"seed": seed, "epochs": STEPS * BATCH / len(documents)})
    known, vocabulary = (
        canonical(true, "true statements"),
        canonical(statements(table, gone, values), "false statements"),
    )
    key = {"config": start.model_dump(), "data": [data_digest(known), data_digest(vocabulary)]}
    folder = make_folder(cache_folder() / "lab" / digest_value(key).removeprefix("sha256:")[:24])

    def clean() -> CausalLM:
        return learn(
            [known], folder / "clean", start, prompt=PROMPT, tokenizer_data=[vocabulary], label="corrupted: clean"
        )

    name = f"corrupted-{digest_value({'data': data_digest(request.forget), 'config': further.model_dump()})[7:19]}"
    damaged = learn(
        [request.forget], folder / name, further, model=clean(), prompt=PROMPT, label="corrupted: false facts"
    )
    return Corrupted(request, questions(table, gone, values), questions(table, kept, values), clean(), damaged)


__all__ = ["Corrupted", "corrupted", "false_values", "interleaved", "questions", "statements"]
