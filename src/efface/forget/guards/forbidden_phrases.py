"""Which phrases must not be said in answer to a prompt: taken from the forget rows that lie nearest to it.

GUARD, arXiv 2505.13312, step 2: retrieve the nearest forget questions, take their answers, extract what would give them away.
Phrases that stand in the prompt already are no secret there and are left out, and so are phrases of stop words alone.

An index holds the very text that is to be forgotten, at inference. `HashedIndex` holds keyed hashes of it in its place; it
cannot tell which rows are near, so that all its phrases are forbidden at once, and it knows nothing of meaning. Short phrases
are found from their hashes by whoever tries all words: a hash hides them from reading, not from searching.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from efface.data.phrase_trie import PhraseTrie
from efface.data.wording import plain_words
from efface.errors import RequestError, RunError
from efface.run.files import read_json, write_json
from efface.subjects.text_index import Embed, TextIndex

Retrieve = Literal["nearest", "entity"]

CJK = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")


# -- a set of phrases -------------------------------------------------------------------------------------------------


def apart(text: str) -> list[str]:
    """Plain words, each CJK character a word of its own."""
    return plain_words(CJK.sub(r" \1 ", text))


def letters(text: str) -> str:
    """The letters and digits of a text in lower case: "New-York" and "new york" are one."""
    return "".join(apart(text))


@dataclass(frozen=True)
class PhraseSet:
    """Phrases that must not be said.

    Attributes:
        texts: the phrases; none where they are hashed.
        keys: their letters, or keyed hashes of them.
        longest: letters of the longest.
        salt: of the hashes, as hex; None where there are none.
    """

    texts: tuple[str, ...]
    keys: frozenset[str]
    longest: int
    salt: str | None = None

    @classmethod
    def of(cls, phrases: Iterable[str]) -> PhraseSet:
        """A set of phrases in plain text, each once; those without a letter or digit are left out."""
        known: dict[str, str] = {}
        for text in phrases:
            known.setdefault(letters(text), text)
        known.pop("", None)
        return cls(tuple(known.values()), frozenset(known), max(map(len, known), default=0))

    def __len__(self) -> int:
        return len(self.keys)

    def keys_in(self, text: str) -> set[str]:
        """Keys of the phrases that stand in a text as whole words, wherever either has its spaces and hyphens."""
        words, found = apart(text), set()
        for start in range(len(words)):
            joined = ""
            for word in words[start:]:
                joined += word
                if len(joined) > self.longest:
                    break
                key = joined if self.salt is None else hashed(joined, self.salt)
                if key in self.keys:
                    found.add(key)
        return found

    def without(self, prompt: str) -> PhraseSet:
        """The set without what stands in a prompt."""
        known = self.keys_in(prompt)
        texts = tuple(text for text in self.texts if letters(text) not in known)
        return PhraseSet(texts, self.keys - known, self.longest, self.salt)

    def trie(self, tokenizer: Any) -> PhraseTrie[int]:
        """Every spelling of every phrase in tokens; those that the tokenizer cannot write are left out."""
        unknown = tokenizer.unk_token_id
        rows: dict[tuple[int, ...], int] = {}
        for number, text in enumerate(self.texts):
            for form in spellings(text):
                ids = tuple(tokenizer(form, add_special_tokens=False)["input_ids"])
                if ids and unknown not in ids:
                    rows.setdefault(ids, number)
        return PhraseTrie(list(rows), list(rows.values()))


def spellings(phrase: str) -> list[str]:
    """Surface forms: with and without a space before, in other cases, with other hyphens.

    Letters that stand alone keep their case: "A" is not to forbid "a".
    """
    forms = {phrase, phrase.replace("-", " "), phrase.replace(" ", "-"), phrase.replace("-", "\u2011")}
    if any(len(word) > 1 for word in phrase.split()):
        forms |= {change(form) for form in list(forms) for change in (str.lower, str.upper, str.title, str.capitalize)}
    return sorted({lead + form for form in forms for lead in ("", " ")})


def hashed(text: str, salt: str) -> str:
    """HMAC-SHA256 of a text under a salt (hex), cut to 128 bits."""
    return hmac.new(bytes.fromhex(salt), text.encode("utf-8"), hashlib.sha256).hexdigest()[:32]


def prefix_leakage(ids: Sequence[int], trie: PhraseTrie[int]) -> float:
    """The largest share of a phrase of two tokens or more that stands in `ids` from the phrase's beginning."""
    best = 0.0
    for phrase in trie.phrases:
        if len(phrase) < 2:
            continue
        for start in range(len(ids)):
            n = 0
            while n < len(phrase) and start + n < len(ids) and ids[start + n] == phrase[n]:
                n += 1
            best = max(best, n / len(phrase))
    return best


# -- indexes ----------------------------------------------------------------------------------------------------------


class PhraseIndex(ABC):
    """What is kept at inference: prompt -> phrases that its answer must not hold."""

    @abstractmethod
    def forbidden(self, prompt: str) -> PhraseSet:
        """The phrases for one prompt; those in it are left out, and none may remain."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """As JSON values."""

    def write(self, path: Path) -> None:
        """Store as JSON."""
        write_json(path, self.facts())

    @staticmethod
    def read(path: Path, embed: Embed | None = None) -> PhraseIndex:
        """A stored index.

        Raises:
            RunError: not an index.
        """
        facts = read_json(path)
        try:
            if "salt" in facts:
                return HashedIndex(facts["salt"], facts["keys"], facts["longest"])
            return PlainIndex(
                facts["prompts"], facts["phrases"], facts["concepts"], top_k=facts["top_k"],
                retrieve=facts["retrieve"], embed=embed,
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            raise RunError(f"{path} is no index of phrases", "one that fit wrote", "fit it again") from error


class PlainIndex(PhraseIndex):
    """The forget rows' prompts and phrases.

    Args:
        prompts: [n] texts by which the rows are found.
        phrases: [n] lists.
        concepts: [n] whom each row is about, for `retrieve="entity"`.
        top_k: nearest rows whose phrases are put together, since the nearest one may be the wrong one.
        retrieve: `entity` adds all phrases of the concepts of those rows.
        embed: of `TextIndex`; default: words.

    Raises:
        RequestError: entities are asked for, and there are no concepts.
    """

    def __init__(
        self, prompts: Sequence[str], phrases: Sequence[Sequence[str]], concepts: Sequence[str] | None = None, *,
        top_k: int = 3, retrieve: Retrieve = "nearest", embed: Embed | None = None,
    ) -> None:  # fmt: skip
        if retrieve == "entity" and concepts is None:
            raise RequestError(
                "retrieve=entity without column 'concept'", "whom each forget row is about",
                "add the column, or use retrieve=nearest",
            )  # fmt: skip
        self.prompts, self.phrases, self.concepts = list(prompts), [list(row) for row in phrases], concepts
        self.top_k, self.retrieve = top_k, retrieve
        self._texts = TextIndex(self.prompts, embed)

    def forbidden(self, prompt: str) -> PhraseSet:
        rows = [int(i) for i in self._texts.nearest([prompt], self.top_k)[0]]
        if self.retrieve == "entity" and self.concepts is not None:
            names = {self.concepts[i] for i in rows}
            rows = [i for i, name in enumerate(self.concepts) if name in names]
        return PhraseSet.of(phrase for i in rows for phrase in self.phrases[i]).without(prompt)

    def facts(self) -> dict[str, Any]:
        return {
            "prompts": self.prompts, "phrases": self.phrases, "top_k": self.top_k, "retrieve": self.retrieve,
            "concepts": None if self.concepts is None else list(self.concepts),
        }  # fmt: skip


class HashedIndex(PhraseIndex):
    """Keyed hashes of all phrases.

    Args:
        salt: hex.
        keys: hashes of the phrases' letters.
        longest: letters of the longest phrase.
    """

    def __init__(self, salt: str, keys: Sequence[str], longest: int) -> None:
        self._all = PhraseSet((), frozenset(keys), longest, salt)

    @classmethod
    def of(cls, phrases: Iterable[str], salt: str) -> HashedIndex:
        """Hash some phrases."""
        known = [letters(phrase) for phrase in phrases]
        return cls(salt, [hashed(text, salt) for text in known], max(map(len, known), default=0))

    def forbidden(self, prompt: str) -> PhraseSet:
        return self._all.without(prompt)

    def facts(self) -> dict[str, Any]:
        return {"salt": self._all.salt, "keys": sorted(self._all.keys), "longest": self._all.longest}


__all__ = [
    "HashedIndex", "PhraseIndex", "PhraseSet", "PlainIndex", "Retrieve", "hashed", "letters", "prefix_leakage", "spellings",
]  # fmt: skip
