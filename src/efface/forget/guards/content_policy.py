"""What a content filter forbids: phrases, and sets of premises that together say or imply something. Stored as hashes.

After Shumailov et al., UnUnlearning, arXiv 2407.00106 (2024): a theorem can be derived while its axioms are permitted, so a
policy may list, for each forbidden item, sets of premises that are sufficient for it. Phrases are matched as runs of plain words
in one trie of keyed word hashes: the policy's file holds no word. That keeps it from the eye, not from someone who guesses
words and holds the file.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import Field, ValidationError, model_validator

from efface.data.context_ladder import answers_of
from efface.data.phrase_trie import PhraseTrie
from efface.data.wording import plain_words
from efface.errors import InputError
from efface.run.settings import Settings

_ENCODED = re.compile(r"[A-Za-z0-9+/_-]{12,}={0,2}")


class PolicyItem(Settings):
    """One forbidden thing."""

    id: str = Field(description="unique")
    phrases: tuple[str, ...] = Field((), description="each forbidden by itself")
    premises: tuple[tuple[str, ...], ...] = Field(
        (), description="sets of phrases; all of one set together are forbidden"
    )

    @model_validator(mode="after")
    def _not_empty(self) -> PolicyItem:
        texts = [*self.phrases, *(text for group in self.premises for text in group)]
        if not texts or not all(plain_words(text) for text in texts) or not all(self.premises):
            raise ValueError(f"item '{self.id}': phrases or premises with at least one letter or digit each")
        return self


class Found(NamedTuple):
    """A rule that fired: the item's number, and for a phrase the half-open range of words."""

    rule: str
    item: int
    start: int = 0
    end: int = 0


class Reading(NamedTuple):
    """What a text holds: what fired, and the items of whose premises all but one stand there."""

    found: list[Found]
    near: list[int]


def read_item(row: Mapping[str, Any], place: str) -> PolicyItem:
    """An item from a plain object.

    Raises:
        InputError: other keys, nothing to look for.
    """
    try:
        return PolicyItem.model_validate(dict(row))
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InputError(f"{place}: {message}", 'an object {"id", "phrases": [..], "premises": [[..], ..]}') from error


def items_of(rows: Sequence[Mapping[str, Any]], *, min_words: int) -> list[PolicyItem]:
    """The policy that forget rows imply: a long answer by itself, a short one together with its concept (or whole question).

    Args:
        min_words: words from which an answer is forbidden wherever it stands.
    """
    made = []
    for row in rows:
        answers = [text for text in answers_of(row) if plain_words(text)]
        long = tuple(text for text in answers if len(plain_words(text)) >= min_words)
        about = [text for text in (row.get("concept"), *(row.get("aliases") or [])) if text] or [row["question"]]
        short = [text for text in answers if text not in long]
        premises = tuple((name, text) for text in short for name in about if plain_words(name))
        phrases = long if premises or long else tuple(short)
        if phrases or premises:
            made.append(PolicyItem(id=row["id"], phrases=phrases, premises=premises))
    return made


class Policy:
    """Hashed phrases and premise sets.

    Args:
        salt: of the word hashes.
        phrases: each a sequence of word hashes, with its item's number.
        groups: premise sets: item number, and the numbers of its premises in `premises`.
        premises: each a sequence of word hashes.
        ids: of the items.
        window: words within which the premises of a set must stand; 0: anywhere in the text.
    """

    def __init__(
        self, salt: str, phrases: list[tuple[int, list[str]]], groups: list[tuple[int, list[int]]],
        premises: list[list[str]], ids: list[str], window: int = 0,
    ) -> None:  # fmt: skip
        self.salt, self.phrases, self.groups, self.premises = salt, phrases, groups, premises
        self.ids, self.window = ids, window
        self._phrase_trie = PhraseTrie([words for _, words in phrases], [item for item, _ in phrases])
        self._premise_trie = PhraseTrie(premises)
        self._by_premise: dict[int, list[int]] = {}
        for group, (_, members) in enumerate(groups):
            for member in members:
                self._by_premise.setdefault(member, []).append(group)

    @classmethod
    def of(cls, items: Sequence[PolicyItem], salt: str, *, window: int = 0) -> Policy:
        """Hash the items.

        Raises:
            InputError: no item, or one id twice.
        """
        ids = [item.id for item in items]
        if not ids or len(set(ids)) < len(ids):
            raise InputError(
                f"{len(ids)} policy items with {len(set(ids))} ids", "at least one, each with an id of its own"
            )
        known: dict[tuple[str, ...], int] = {}
        phrases, groups = [], []
        for number, item in enumerate(items):
            phrases += [(number, hashed(plain_words(text), salt)) for text in dict.fromkeys(item.phrases)]
            for group in item.premises:
                members = [known.setdefault(tuple(hashed(plain_words(text), salt)), len(known)) for text in group]
                groups.append((number, sorted(set(members))))
        return cls(salt, phrases, groups, [list(words) for words in known], ids, window)

    def read(self, text: str) -> Reading:
        """What stands in a text: phrases in the order of their ends, then complete premise sets."""
        words = hashed(plain_words(text), self.salt)
        found = [Found("phrases", hit.phrase, hit.start, hit.end) for hit in self._phrase_trie.hits(words)]
        places: dict[int, list[tuple[int, int]]] = {}
        for hit in self._premise_trie.hits(words):
            places.setdefault(hit.phrase, []).append((hit.start, hit.end))
        near = []
        for group in sorted({group for premise in places for group in self._by_premise[premise]}):
            item, members = self.groups[group]
            present = [places[member] for member in members if member in places]
            if len(present) == len(members) and self._together(present):
                found.append(Found("premises", item))
            elif len(present) >= len(members) - 1:
                near.append(item)
        return Reading(found, sorted(set(near)))

    def _together(self, places: list[list[tuple[int, int]]]) -> bool:
        """Whether one place of each premise lies within a run of `window` words."""
        if not self.window:
            return True
        starts = sorted(start for own in places for start, _ in own)
        return any(
            all(any(start >= first and end <= first + self.window for start, end in own) for own in places)
            for first in starts
        )

    def dump(self) -> dict[str, Any]:
        """Plain values without any word of the items."""
        return {
            "salt": self.salt, "phrases": self.phrases, "groups": self.groups, "premises": self.premises,
            "items": len(self.ids), "window": self.window,
        }  # fmt: skip

    @classmethod
    def load(cls, values: Mapping[str, Any]) -> Policy:
        """What `dump` gave; items are then known by number."""
        return cls(
            values["salt"], [(int(i), list(w)) for i, w in values["phrases"]],
            [(int(i), [int(m) for m in members]) for i, members in values["groups"]],
            [list(words) for words in values["premises"]], [str(i) for i in range(values["items"])], int(values["window"]),
        )  # fmt: skip


def hashed(words: Sequence[str], salt: str) -> list[str]:
    """Keyed hashes of words, 64 bits each."""
    key = bytes.fromhex(salt)
    return [hashlib.blake2b(word.encode(), digest_size=8, key=key).hexdigest() for word in words]


def unveiled(text: str) -> str:
    """The text, with what runs of base64 in it say put behind it."""
    said = []
    for match in _ENCODED.findall(text):
        plain = match.rstrip("=").replace("-", "+").replace("_", "/")
        try:
            inside = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError):
            continue
        if inside.isprintable() and plain_words(inside):
            said.append(inside)
    return "\n".join([text, *said])


__all__ = ["Found", "Policy", "PolicyItem", "Reading", "hashed", "items_of", "read_item", "unveiled"]
