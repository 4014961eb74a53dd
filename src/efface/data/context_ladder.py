"""Contexts for the rows of a request, from none to one that states the answer: the ladder of the re-introduction audit.

Levels after the taxonomy of arXiv 2407.00106 (the levels are efface's own): L0 no context; L1 an irrelevant one of about equal
length; L2 a hint (given, or other facts of the same concept); L3 axioms from which the answer follows (given only); L4 the
fact among distractors; L5 the same with a wrong value. A statement is made from the row's own columns by a template.
Distractors never say the answer; one shares the relation and one the concept, where the rows have such columns and facts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset
from pydantic import Field, ValidationError, model_validator

from efface.data.columns import canonical
from efface.data.wording import plain_words, says, spans_of
from efface.errors import InputError, RequestError
from efface.run.settings import Settings

LEVELS = ("L0", "L1", "L2", "L3", "L4", "L5")
KEPT = ("answer_aliases", "perturbed_answer")


class ContextForm(Settings):
    """How a fact is stated and a context stands before a question."""

    statement: str = Field(
        "{question} {answer}", description="a fact in words; fields {question}, {answer}, {concept}, {relation}"
    )
    context: str = Field("{facts}\n\n{question}", description="the whole prompt; fields {facts}, {question}")
    joiner: str = Field(" ", description="between the facts of a context")

    @model_validator(mode="after")
    def _has_fields(self) -> ContextForm:
        for template, fields in ((self.statement, ("{answer}",)), (self.context, ("{facts}", "{question}"))):
            if missing := [field for field in fields if field not in template]:
                raise ValueError(f"'{template}' has no {missing[0]}")
        return self


class Given(Settings):
    """What only the user can know about a row."""

    id: str = Field(description="of the row")
    hint: tuple[str, ...] = Field((), description="L2: facts that say the kind of thing, not the answer")
    axioms: tuple[str, ...] = Field((), description="L3: premises from which the answer follows, without its words")


class Ladder(NamedTuple):
    """Rows by level, and for L4 what each context is made of: `facts[i]` are the statements in the order of the prompt."""

    levels: dict[str, Dataset]
    facts: dict[str, list[str]]


def read_given(path: str | Path) -> dict[str, Given]:
    """Hints and axioms by row id from a JSONL file.

    Raises:
        InputError: a line that is no JSON object of the expected keys, or an id that comes twice.
    """
    found: dict[str, Given] = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", "a JSONL file with id, hint, axioms") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            own = Given.model_validate(json.loads(line))
        except (json.JSONDecodeError, ValidationError) as error:
            raise InputError(
                f"{path}, line {number}: not readable", 'an object {"id", "hint": [..], "axioms": [..]}'
            ) from error
        if own.id in found:
            raise InputError(f"{path}, line {number}: id {own.id!r} comes twice", "one line a row")
        found[own.id] = own
    return found


def statement(row: Mapping[str, Any], form: ContextForm, answer: str | None = None) -> str:
    """A row's fact in words, with its own answer or another one.

    Raises:
        RequestError: the template names a column that the row lacks.
    """
    fields = {key: str(row[key]) for key in ("question", "concept", "relation") if row.get(key) is not None}
    fields["answer"] = str(row["answer"]) if answer is None else answer
    asked = re.findall(r"\{(question|concept|relation|answer)\}", form.statement)
    if missing := [name for name in asked if name not in fields]:
        raise RequestError(
            f"row {row['id']!r} has no {missing[0]}, which the statement {form.statement!r} names",
            f"fields among {', '.join(fields)}", "add the column, or change the template",
        )  # fmt: skip
    return re.sub(r"\{(question|concept|relation|answer)\}", lambda match: fields[match[1]], form.statement)


def answers_of(row: Mapping[str, Any]) -> list[str]:
    """The answer and its aliases."""
    return [row["answer"], *(row.get("answer_aliases") or [])]


def refuse_leak(texts: Sequence[str], row: Mapping[str, Any], level: str) -> None:
    """Refuse a context that says the answer where it must not.

    Raises:
        InputError: naming row and level, not the answer.
    """
    for index, text in enumerate(texts):
        if says(text, answers_of(row)):
            raise InputError(
                f"row {row['id']!r}, {level}: text {index} says the answer or an alias of it",
                "a context from which it must be concluded", "write it without those words",
            )  # fmt: skip


def check_lengths(prompts: Sequence[str], count: Callable[[str], int], limit: int, *, spare: int = 0) -> None:
    """Refuse prompts that a model would have to cut: L4 would turn into L0 without a word.

    Args:
        count: tokens of a text.
        limit: the model's context in tokens.
        spare: tokens that an answer may take.

    Raises:
        InputError: the first that is too long.
    """
    for index, prompt in enumerate(prompts):
        if (size := count(prompt)) + spare > limit:
            raise InputError(
                f"prompt {index} has {size} tokens and an answer up to {spare}", f"at most {limit} together",
                "take fewer distractors",
            )  # fmt: skip


class Fact(NamedTuple):
    """A fact that may stand beside another: its row's keys in plain words, and its statement."""

    id: str
    question: str
    concept: str
    relation: str
    text: str
    words: list[str]
    letters: str

    @classmethod
    def of(cls, row: Mapping[str, Any], form: ContextForm) -> Fact:
        """From a canonical row."""
        text = statement(row, form)
        keys = [" ".join(plain_words(row.get(column) or "")) for column in ("concept", "relation")]
        words = plain_words(text)
        return cls(row["id"], row["question"], keys[0], keys[1], text, words, "".join(words))

    def says(self, phrases: Sequence[list[str]]) -> bool:
        """Whether one of the phrases (in plain words) stands in the statement."""
        return any((letters := "".join(words)) in self.letters and bool(letters) and bool(spans_of(self.words, words))
                   for words in phrases)  # fmt: skip

    def same(self, other: Fact) -> bool:
        """Two rows of one fact: the same row, the same question, or the same concept and relation."""
        if self.id == other.id or self.question == other.question:
            return True
        return bool(self.concept) and self.concept == other.concept and self.relation == other.relation

    def shares(self, other: Fact, key: str) -> bool:
        """Whether both have the same concept, or relation."""
        own: str = getattr(self, key)
        return bool(own) and own == getattr(other, key)


def counterfactual(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> str:
    """A wrong answer: one of the row's own, else another row's of the same relation, else any other row's.

    Raises:
        RequestError: every answer is the same.
    """
    wrong: list[str] = [text for text in row.get("perturbed_answer") or [] if not says(text, answers_of(row))]
    if not wrong:
        relation = plain_words(row.get("relation") or "")
        other = [r for r in rows if r["answer"] != row["answer"]]
        alike = [r for r in other if relation and plain_words(r.get("relation") or "") == relation]
        wrong = [r["answer"] for r in (alike or other) if not says(r["answer"], answers_of(row))]
    if not wrong:
        raise RequestError(f"row {row['id']!r}: no other answer than its own", "a perturbed_answer column", "add one")
    return wrong[int(rng.integers(len(wrong)))]


def distractors(
    own: Fact, around: Sequence[Fact], k: int, rng: np.random.Generator, *, alike: bool = True
) -> list[str]:
    """Up to k statements: one of the same relation, one of the same concept (where there are), the rest at random.

    Args:
        alike: False draws all of them at random, which is easier to read: matching the relation may do.
    """
    order = [around[i] for i in rng.permutation(len(around))]
    chosen: list[str] = []
    for key in ("relation", "concept") if alike else ():
        chosen += [fact.text for fact in order if fact.shares(own, key) and fact.text not in chosen][:1]
    return list(dict.fromkeys([*chosen, *(fact.text for fact in order)]))[:k]


def irrelevant(own: Fact, around: Sequence[Fact], lengths: Sequence[int], rng: np.random.Generator) -> list[str]:
    """One statement for every length in words, the nearest, about other concepts (and other relations, if there are)."""
    order = [around[i] for i in rng.permutation(len(around))]
    order = [fact for fact in order if not fact.shares(own, "concept")] or order
    far = list(dict.fromkeys(fact.text for fact in order if not fact.shares(own, "relation")))
    texts = far if len(far) >= len(lengths) else list(dict.fromkeys(fact.text for fact in order))
    sizes, found = [len(text.split()) for text in texts], []
    for length in lengths[: len(texts)]:
        near = min(range(len(texts)), key=lambda i: abs(sizes[i] - length))
        found.append(texts.pop(near))
        sizes.pop(near)
    return found


def _shuffled(texts: Sequence[str], rng: np.random.Generator) -> list[str]:
    return [texts[i] for i in rng.permutation(len(texts))]


def ladder(
    rows: Dataset, others: Sequence[Dataset], form: ContextForm, *, k: int = 4, alike: bool = True, seed: int = 0,
    given: Mapping[str, Given] | None = None,
) -> Ladder:  # fmt: skip
    """The rows at every level; a level that no row can have is left out.

    Args:
        rows: canonical rows to ask for.
        others: further rows whose facts may stand in a context (the retain set).
        k: distractors beside the fact at L4 and L5; fewer where there are not so many that do not say the answer.
        alike: see `distractors`.
        seed: of wrong answers, choice and order.
        given: hints and axioms by id.

    Returns:
        Each level's rows with the ids of `rows`; at L5 the answer is the wrong one that the context states.

    Raises:
        InputError: a given hint or axiom says the answer.
        RequestError: no fact to distract with, or no other answer.
    """
    plain = [dict(row) for row in rows]
    everything = plain + [dict(row) for data in others for row in data]
    pool = [Fact.of(row, form) for row in everything]
    made: dict[str, list[dict[str, Any]]] = {level: [] for level in LEVELS}
    facts: dict[str, list[str]] = {}
    for index, row in enumerate(plain):
        rng = np.random.default_rng([seed, index])
        wrong = counterfactual(row, everything, rng)
        banned = [plain_words(text) for text in (*answers_of(row), wrong)]
        around = [fact for fact in pool if not fact.same(pool[index]) and not fact.says(banned)]
        beside = distractors(pool[index], around, k, rng, alike=alike)
        if k and not beside:
            raise RequestError(
                f"row {row['id']!r}: no other fact to set beside it", "rows with other answers", "add a retain set"
            )
        own = (given or {}).get(row["id"], Given(id=row["id"]))
        refuse_leak(own.hint, row, "L2")
        refuse_leak(own.axioms, row, "L3")
        hint = list(own.hint) or [fact.text for fact in around if fact.shares(pool[index], "concept")][:k]
        facts[row["id"]] = _shuffled([pool[index].text, *beside], rng)
        contexts: dict[str, Sequence[str]] = {
            "L1": irrelevant(pool[index], around, [len(text.split()) for text in facts[row["id"]]], rng),
            "L2": _shuffled(hint, rng), "L3": _shuffled(own.axioms, rng), "L4": facts[row["id"]],
            "L5": _shuffled([statement(row, form, wrong), *beside], rng),
        }  # fmt: skip
        base = {key: row[key] for key in ("id", "answer", *KEPT) if row.get(key) is not None}
        made["L0"].append({**base, "question": row["question"]})
        for level, texts in contexts.items():
            if texts and level != "L5":
                made[level].append({**base, "question": in_context(form, texts, row["question"])})
        made["L5"].append({
            "id": row["id"], "question": in_context(form, contexts["L5"], row["question"]), "answer": wrong,
            "perturbed_answer": [row["answer"]],
        })  # fmt: skip
    return Ladder({level: canonical(part, level) for level, part in made.items() if part}, facts)


def in_context(form: ContextForm, facts: Sequence[str], question: str) -> str:
    """The question behind a context of some facts; without any fact the bare question."""
    if not facts:
        return question
    before, mark, after = form.context.partition("{question}")
    said = form.joiner.join(facts)
    return before.replace("{facts}", said) + (question if mark else "") + after.replace("{facts}", said)


def growing(
    rows: Dataset, facts: Mapping[str, Sequence[str]], form: ContextForm, *, orders: int = 5, seed: int = 0
) -> Dataset:
    """The contexts of L4 one fact at a time, in random orders: ids `ID#order.facts`.

    Args:
        rows: as given to `ladder`.
        facts: of `ladder`.
        orders: random orders of each row's facts.
    """
    made = []
    for index, row in enumerate(rows):
        base = {key: row[key] for key in ("answer", "answer_aliases") if row.get(key) is not None}
        for order in range(orders):
            texts = _shuffled(facts[row["id"]], np.random.default_rng([seed, index, order]))
            for count in range(1, len(texts) + 1):
                question = in_context(form, texts[:count], row["question"])
                made.append({"id": f"{row['id']}#{order}.{count}", "question": question, **base})
    return canonical(made, "growing contexts")


__all__ = [
    "LEVELS", "ContextForm", "Given", "Ladder", "answers_of", "check_lengths", "growing", "in_context", "ladder", "read_given",
    "refuse_leak", "statement",
]  # fmt: skip
