"""Prompts in which a tag names what is to be forgotten for this one query, and the samples that teach it.

The protocol of in-context knowledge unlearning (Takashiro et al., arXiv 2410.00382, section 3): the tag stands before the
question, `<<UNL>>Paris<</UNL>> Where is the Eiffel Tower?`, and only the protocol may write it. A question or a concept
that holds a tag string is refused, or defused where that is asked for: otherwise whoever writes the question could switch
answers off, or close the tag early and switch them on.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from datasets import Dataset
from pydantic import Field, model_validator

from efface.errors import InputError, RequestError
from efface.run.settings import Settings

DRAWS = 50
"""Draws of a distractor before giving up."""

BREAK = "\u200b"
"""Zero-width space: put into a tag string that came from outside, it is no tag any more and reads the same."""

Kind = Literal["matched", "unmatched", "untagged"]
Rule = Literal["concept", "answer"]


class TagProtocol(Settings):
    """How the concept to forget is named in a prompt. Travels with the edit as `protocol.json`.

    Authorised callers simply do not name a concept: access control lives outside the model.
    """

    opening: str = Field("<<UNL>>", min_length=1, description="opens the tag (paper)")
    closing: str = Field("<</UNL>>", min_length=1, description="closes the tag (paper)")
    target: str = Field("forgot", min_length=1, description="the whole answer where the question is about the concept")
    outside: Literal["reject", "escape"] = Field("reject", description="what happens to tag strings in a question")

    @model_validator(mode="after")
    def _three_texts(self) -> TagProtocol:
        tags = (self.opening, self.closing)
        if self.opening in self.closing or self.closing in self.opening:
            raise ValueError("the opening and the closing tag must not contain each other")
        if any(tag in self.target or not tag.strip() for tag in tags) or not self.target.strip():
            raise ValueError("tags and target must be texts, and the target must hold no tag")
        return self

    def render(self, question: str, concept: str | None = None) -> str:
        """The user's turn: the question, with the concept to forget named before it.

        Args:
            question: untrusted text.
            concept: what to forget for this query; None asks as ever.

        Raises:
            InputError: tag strings in the question (unless they are to be escaped) or in the concept; an empty concept.
        """
        asked = self._outside(question)
        if concept is None:
            return asked
        if self.holds_tag(concept):
            raise InputError(
                f"a concept that holds a tag ({concept[:40]!r})", "one tag with one concept: tags do not nest",
                "name one concept, without tags",
            )  # fmt: skip
        if not normalise(concept):
            raise InputError("an empty concept in the tag", "a name", "give concept=None to ask without a tag")
        return f"{self.opening}{concept.strip()}{self.closing} {asked}"

    def holds_tag(self, text: str) -> bool:
        """Whether a tag string stands in a text, in any case and in Unicode's compatible forms."""
        folded = _folded(text)
        return any(_folded(tag) in folded for tag in (self.opening, self.closing))

    def _outside(self, text: str) -> str:
        if not self.holds_tag(text):
            return text
        if self.outside == "reject":
            raise InputError(
                f"a question that holds '{self.opening}' or '{self.closing}'", "a question without tags",
                "name the concept by render(question, concept), or set outside='escape'",
            )  # fmt: skip
        # compatible forms are folded first: what only looks like a tag to a normalising tokenizer is broken up as well
        found = (
            text if any(tag in text for tag in (self.opening, self.closing)) else unicodedata.normalize("NFKC", text)
        )
        for tag in (self.opening, self.closing):
            place = _folded(found).find(_folded(tag))
            while place >= 0:
                found = f"{found[: place + 1]}{BREAK}{found[place + 1 :]}"
                place = _folded(found).find(_folded(tag))
        if self.holds_tag(found):
            raise InputError("a question whose tags could not be escaped", "a question without tags", "reword it")
        return found

    def read(self, text: str) -> tuple[str | None, str]:
        """The concept (None without a tag) and the question of a rendered turn.

        Raises:
            InputError: a tag that is not at the start, not closed, not opened, nested, repeated or empty.
        """
        opened, closed = text.count(self.opening), text.count(self.closing)
        if not opened and not closed:
            return None, text
        shape = "one tag at the start: " + f"{self.opening}concept{self.closing} question"
        if opened > 1 or closed > 1:
            raise InputError(f"{opened} opening and {closed} closing tags", shape, "tags do not nest or repeat")
        if not opened or not closed or text.index(self.closing) < text.index(self.opening):
            raise InputError("a tag that is not closed" if opened else "a tag that was not opened", shape)
        if not text.startswith(self.opening):
            raise InputError("a tag within the question", shape, "only the start of the turn is trusted")
        concept, _, question = text[len(self.opening) :].partition(self.closing)
        if not normalise(concept):
            raise InputError("an empty concept in the tag", shape, "leave the tag out to ask without it")
        return concept, question.removeprefix(" ")


def _folded(text: str) -> str:
    """Lower case, character by character, so that places in it are places in the text."""
    return "".join(low if len(low := char.lower()) == 1 else char for char in text) if text.isascii() else "".join(
        low if len(low := unicodedata.normalize("NFKC", char).lower()) == 1 else char for char in text
    )  # fmt: skip


def normalise(text: str) -> str:
    """norm(x): case folded, accents and punctuation stripped, words joined by single spaces."""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    kept = "".join(" " if unicodedata.category(c)[0] in "PSZC" else c for c in plain if unicodedata.category(c) != "Mn")
    return " ".join(kept.split())


def names_apart(first: str, second: str) -> bool:
    """Whether two normalised names can stand for different things: neither is a part of the other."""
    return bool(first) and bool(second) and first not in second and second not in first


@dataclass(frozen=True)
class Item:
    """One fact: question q, answer r, concept u, and O, the concepts that may stand in a tag beside it.

    `names` are the normalised concept and its aliases.
    """

    id: str
    question: str
    answer: str
    concept: str
    others: tuple[str, ...]
    names: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Sample:
    """One training or test text: the rendered question and the answer that is wanted."""

    item: str
    kind: Kind
    concept: str | None
    question: str
    answer: str


def rule_of(data: Dataset) -> Rule:
    """What stands in the tag: the row's `concept`, or (TOFU style) its answer."""
    return "concept" if "concept" in data.column_names else "answer"


def read_items(sets: Sequence[tuple[str, Dataset]]) -> list[Item]:
    """Items of one or several sets, whose rows share the pool of concepts.

    O is the row's `distractors`; else, where the answer is the concept, its `perturbed_answer` (TOFU); else the concepts
    of all other rows.

    Raises:
        RequestError: a row without a question, a concept or answer of punctuation alone, or nothing to tell it from.
    """
    rows = [(name, index, row) for name, data in sets for index, row in enumerate(data)]
    rules = {name: rule_of(data) for name, data in sets}
    if len(set(rules.values())) > 1:
        given = ", ".join(f"{name}: {rule}" for name, rule in rules.items())
        raise RequestError(f"sets with different tags ({given})", "a concept column in all of them, or in none")
    concepts = [str(row["concept"] if rules[name] == "concept" else row["answer"]) for name, _, row in rows]
    names: dict[str, set[str]] = {}
    for concept, (_, _, row) in zip(concepts, rows, strict=True):
        names.setdefault(normalise(concept), {normalise(concept)}).update(map(normalise, row.get("aliases") or ()))
    pool = tuple(dict.fromkeys(concepts))
    items = []
    for concept, (name, index, row) in zip(concepts, rows, strict=True):
        place = f"{name} row {index}"
        if not row["question"].strip():
            raise RequestError(f"{place}: no question", "a question that the tag can stand before", "drop the row")
        if not normalise(concept) or not normalise(row["answer"]):
            raise RequestError(f"{place}: a concept or answer without a letter or digit", "words", "drop the row")
        own = row.get("distractors") or (row.get("perturbed_answer") if rules[name] == "answer" else None)
        items.append(Item(
            f"{name}/{row['id']}", row["question"], row["answer"], concept, tuple(own) if own else pool,
            frozenset(names[normalise(concept)]),
        ))  # fmt: skip
    return items


class PairBuilder:
    """Samples of items, deterministic given (seed, epoch, item id) whatever the order in which they are asked for.

    Args:
        protocol: writes the tags.
        seed: of the distractors.
    """

    def __init__(self, protocol: TagProtocol, seed: int) -> None:
        self.protocol = protocol
        self.seed = seed

    def distractor(self, item: Item, epoch: int) -> str:
        """u' from O: norm(u') and norm(u), its aliases and norm(r) hold no part of each other.

        Raises:
            RequestError: fifty draws gave none.
        """
        key = int.from_bytes(hashlib.sha256(item.id.encode("utf-8")).digest()[:8], "big")
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch, key]))
        barred = {*item.names, normalise(item.concept), normalise(item.answer)} - {""}
        for _ in range(DRAWS):
            drawn = item.others[int(rng.integers(len(item.others)))]
            if all(names_apart(normalise(drawn), name) for name in barred) and not self.protocol.holds_tag(drawn):
                return drawn
        raise RequestError(
            f"{item.id}: {DRAWS} draws from {len(item.others)} other concepts gave none that differs",
            "a concept that is no part of this one's name or answer, and the other way round",
            "give the row distractors, or drop it",
        )  # fmt: skip

    def matched(self, item: Item) -> Sample:
        """(u, q) -> the target."""
        asked = self.protocol.render(item.question, item.concept)
        return Sample(item.id, "matched", item.concept, asked, self.protocol.target)

    def unmatched(self, item: Item, epoch: int) -> Sample:
        """(u', q) -> r, with u' drawn anew in each epoch."""
        other = self.distractor(item, epoch)
        return Sample(item.id, "unmatched", other, self.protocol.render(item.question, other), item.answer)

    def untagged(self, item: Item) -> Sample:
        """q -> r: normal use."""
        return Sample(item.id, "untagged", None, self.protocol.render(item.question), item.answer)
