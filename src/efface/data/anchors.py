"""Anchor dictionaries: terms that belong to what is to be forgotten, each with a generic term to stand in its place.

Who's Harry Potter (arXiv 2310.02238, section 2.2) has one written by GPT-4. Here the user gives a JSON file, or one is built
offline: capitalised phrases and rare words that are at least 20 times as frequent in the text to forget as in a background.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from efface.errors import ConfigError, RequestError

RATIO, MINIMUM = 20.0, 3
"""Least ratio of the two frequencies (paper's offline replacement: 20), and least number of occurrences."""

PERSONS = (
    "Adam", "Alice", "Anna", "Brian", "Carl", "Clara", "Daniel", "David", "Edward", "Ellen", "Emma", "Eric", "Frank",
    "George", "Grace", "Hannah", "Helen", "Henry", "Jack", "James", "Jane", "John", "Julia", "Karen", "Laura", "Linda",
    "Louis", "Lucy", "Mark", "Martin", "Mary", "Michael", "Nancy", "Nina", "Oliver", "Oscar", "Paul", "Peter", "Philip",
    "Rachel", "Robert", "Rose", "Sarah", "Simon", "Sophie", "Stephen", "Susan", "Thomas", "Victor", "William",
)  # fmt: skip
PLACES = (
    "town",
    "city",
    "village",
    "house",
    "street",
    "school",
    "station",
    "country",
    "river",
    "castle",
    "island",
    "hall",
)
THINGS = ("thing", "matter", "object", "device", "piece", "place", "kind", "affair", "item", "point")
BEFORE_PLACES = frozenset(("in", "at", "to", "from", "near", "into", "of", "through", "towards"))

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?|[^\w\s]")


@dataclass(frozen=True)
class Replacement:
    """One occurrence: characters `start` to `stop` of the text hold `term`, and the translated text has `generic` there."""

    start: int
    stop: int
    term: str
    generic: str


class Anchors:
    """A checked dictionary.

    Args:
        terms: term -> generic term. Matching is by whole words and by case, longest first.

    Raises:
        ConfigError: no text on one side, a generic term that is or holds an anchor.
    """

    def __init__(self, terms: Mapping[str, str]) -> None:
        for term, generic in terms.items():
            for what, text in (("term", term), ("generic term", generic)):
                if not isinstance(text, str) or not text.strip() or text != text.strip():
                    raise ConfigError(
                        f"anchor {term!r}: the {what} is {text!r}", "text without spaces around it", "mend it"
                    )
        self.terms = dict(terms)
        longest = sorted(self.terms, key=lambda term: (-len(term), term))
        body = "|".join(re.escape(term) for term in longest)
        self._pattern = re.compile(rf"(?<!\w)(?:{body})(?!\w)") if longest else None
        for term, generic in terms.items():
            if (inner := self.first_in(generic)) is not None:
                raise ConfigError(
                    f"anchor '{term}': its generic term '{generic}' {'is' if inner == generic else 'holds'} the anchor '{inner}'",
                    "a generic term that names nothing to forget", "choose another generic term",
                )  # fmt: skip

    def __len__(self) -> int:
        return len(self.terms)

    def first_in(self, text: str) -> str | None:
        """The first anchor in a text, if any."""
        match = self._pattern.search(text) if self._pattern else None
        return match[0] if match else None

    def replacements(self, text: str) -> list[Replacement]:
        """All occurrences, in order; they do not overlap."""
        if self._pattern is None:
            return []
        return [
            Replacement(match.start(), match.end(), match[0], self.terms[match[0]])
            for match in self._pattern.finditer(text)
        ]

    def refuse_in(self, texts: Iterable[str], name: str) -> None:
        """Raise where an anchor stands in texts that are to be kept.

        Raises:
            RequestError: naming the row and the anchor.
        """
        for index, text in enumerate(texts):
            if (found := self.first_in(text)) is not None:
                raise RequestError(
                    f"{name} row {index} holds the anchor '{found}'", "anchors that belong to the forget set alone",
                    "take it out of the dictionary, or the row out of the set",
                )  # fmt: skip


def translate(text: str, found: Sequence[Replacement]) -> str:
    """The text with every replacement made."""
    parts, at = [], 0
    for one in found:
        parts += [text[at : one.start], one.generic]
        at = one.stop
    return "".join([*parts, text[at:]])


def read_anchors(path: str | Path) -> Anchors:
    """A JSON object of term -> generic term.

    Raises:
        ConfigError: missing, not such an object, or a bad pair.
    """
    try:
        terms = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the anchors in '{path}': {error.strerror or error}", None, "check the path"
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"'{path}' is not JSON ({error})", "an object of term: generic term", "mend the file"
        ) from error
    if not isinstance(terms, dict) or not terms:
        raise ConfigError(f"'{path}' holds no anchors", "an object of term: generic term", "mend the file")
    return Anchors(terms)


def build_anchors(
    texts: Sequence[str], background: Sequence[str], *, ratio: float = RATIO, minimum: int = MINIMUM
) -> Anchors:
    """A dictionary from two corpora, without any model.

    A capitalised word that also stands inside sentences is a name: of a place where a place's preposition mostly stands
    before it, else of a person. Names of persons become common names, one each; places and rare words become generic
    nouns. Phrases of several names become phrases of their parts' generic terms. What stands in the background is an
    anchor only if its frequency here is `ratio` times as high.

    Args:
        texts: what is to be forgotten.
        background: text of the same kind that is to be kept.

    Raises:
        RequestError: no background, or no anchor was found.
    """
    inside, outside = [_words(text) for text in texts], [_words(text) for text in background]
    if not any(outside):
        raise RequestError(
            "anchors cannot be built without a background", "text to keep", "give --retain, or a JSON file"
        )
    counts, common = (Counter(word for words in corpus for word in words) for corpus in (inside, outside))
    n, m = counts.total(), common.total()
    used = {word.casefold() for word in (*counts, *common)}

    def special(word: str) -> bool:
        return counts[word] >= minimum and counts[word] / n >= ratio * common[word] / m

    names = [word for word in sorted(counts) if word[0].isupper() and special(word) and _within(word, inside)]
    lower = {word for word in counts if word.islower()}
    names = [word for word in names if word.lower() not in lower]
    rare = [word for word in sorted(lower) if len(word) > 3 and special(word) and common[word] == 0]
    persons = iter([name for name in PERSONS if name.casefold() not in used])
    terms: dict[str, str] = {}
    for index, word in enumerate(sorted(names, key=lambda word: (-counts[word], word))):
        if _is_place(word, inside):
            terms[word] = PLACES[index % len(PLACES)]
        else:
            terms[word] = next(persons, "") or f"{PERSONS[index % len(PERSONS)]}son"
    terms |= {word: THINGS[index % len(THINGS)] for index, word in enumerate(rare)}
    for phrase, count in Counter(_phrases(inside, set(names))).items():
        if count >= minimum:
            terms[" ".join(phrase)] = " ".join(terms[word] for word in phrase)
    terms = {term: generic for term, generic in terms.items() if not set(generic.split()) & terms.keys()}
    if not terms:
        raise RequestError(
            "no anchor was found", f"words {ratio:g} times as frequent as in the background", "give a JSON file"
        )
    return Anchors(terms)


def _words(text: str) -> list[str]:
    return _WORD.findall(text)


def _within(word: str, corpus: Sequence[Sequence[str]]) -> bool:
    """Whether a word stands anywhere but at the beginning of a sentence."""
    return any(here == word and before[0].isalpha() for words in corpus for before, here in itertools.pairwise(words))


def _is_place(word: str, corpus: Sequence[Sequence[str]]) -> bool:
    """Whether most occurrences have a place's preposition before them."""
    before = [
        words[i - 1].lower() in BEFORE_PLACES if i else False
        for words in corpus for i, here in enumerate(words) if here == word
    ]  # fmt: skip
    return sum(before) > len(before) / 2


def _phrases(corpus: Sequence[Sequence[str]], names: set[str]) -> list[tuple[str, ...]]:
    """Maximal runs of two or three names."""
    found = []
    for words in corpus:
        run: list[str] = []
        for word in (*words, "."):
            if word in names:
                run.append(word)
                continue
            if 2 <= len(run) <= 3:
                found.append(tuple(run))
            run = []
    return found
