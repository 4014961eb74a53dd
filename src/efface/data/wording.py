"""Texts as plain words, and whether an answer stands in one however it is cut: "Fe" in "f e" and "Iran" not in "tirana".

One normaliser for what compares texts below the audit: NFKC, case folded, split where no letter, digit or mark stands.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

_WORD = re.compile(r"[^\W_]+")


def plain_words(text: str) -> list[str]:
    """The words in lower case; apostrophes inside a word are dropped, other marks end one."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    shown = "".join(char for char in folded if unicodedata.category(char) != "Cf")  # soft hyphens, zero-width spaces
    return _WORD.findall(re.sub(r"(?<=\w)['’ʼ`´](?=\w)", "", shown))


def spans_of(words: Sequence[str], phrase: Iterable[str]) -> list[tuple[int, int]]:
    """Half-open ranges of words that join to the same letters as the phrase, wherever either of them has its spaces.

    Args:
        words: from `plain_words`.
        phrase: words of what to look for; without any letter nothing is found.
    """
    letters = "".join(phrase)
    found = []
    for start in range(len(words) if letters else 0):
        joined = ""
        for end in range(start, len(words)):
            joined += words[end]
            if not letters.startswith(joined):
                break
            if joined == letters:
                found.append((start, end + 1))
                break
    return found


def says(text: str, answers: Iterable[str]) -> bool:
    """Whether one of the answers stands in the text as whole words, spaces inside it aside."""
    words = plain_words(text)
    return any(spans_of(words, plain_words(answer)) for answer in answers)


__all__ = ["plain_words", "says", "spans_of"]
