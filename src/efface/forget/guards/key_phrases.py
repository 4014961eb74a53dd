"""What would give an answer away: its content words, its names and numbers, its n-grams, or what a model names when asked.

GUARD, arXiv 2505.13312, step 2. The paper's own prompt and extractor are not published; these are of our making. They are
rules for text in Latin letters: for other scripts take `ngrams`, `answer` or `model`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from efface.data.text_privacy import word_spans
from efface.forget.guards.forbidden_phrases import PhraseSet, letters
from efface.subjects.causal_lm import CausalLM
from efface.subjects.prompts import encode_prompt

Extractor = Literal["content", "names", "answer", "ngrams", "model"]

STOP_WORDS = frozenset(
    "a about after all also an and any are as at be because been before but by can could did do does for from had has have he "
    "her his how i if in into is it its like made many may me more most my no not of on one only or other our out over said "
    "she should so some such than that the their them then there these they this to under up us very was we were what when "
    "where which who whom whose why will with would you your".split()
)
"""Function words of English; they are never forbidden by themselves. Another language needs its own."""

JOINING = frozenset("al da de del della der di du el la le of the van von y".split())
"""Words in lower case that stand inside names."""

NUMBER = re.compile(r"\d(?:[\d.,:/-]*\d)?")
LIST_MARK = re.compile(r"^\s*(?:\d+[.)]|[-*•])\s*")
SENTENCE_END = re.compile(r"(?:^|[.!?:]\s+|\n)[\"'(]*$")

ASKING = (
    "List the names, numbers, dates and key phrases of this text, one a line, exactly as they stand there.\n"
    "Text: {text}\nKey phrases:"
)
"""What the model is asked for `extractor=model`."""


def is_stop(word: str) -> bool:
    """Whether a word tells nothing; a single capital letter ("I n", spelled) and a month or name may tell something."""
    return word.lower() in STOP_WORDS and not (len(word) == 1 and word.isupper()) and word not in ("May", "Will")


def content_words(text: str) -> list[str]:
    """Every word that is no stop word and more than one letter, or a digit."""
    found = [text[a:b] for a, b in word_spans(text)]
    return tidy(word for word in found if not is_stop(word) and (len(word) > 1 or word.isdigit()))


def whole_answer(text: str) -> list[str]:
    """The answer as one phrase, without stop words and punctuation at its ends."""
    spans = word_spans(text)
    while spans and is_stop(text[slice(*spans[0])]):
        spans = spans[1:]
    while spans and is_stop(text[slice(*spans[-1])]):
        spans = spans[:-1]
    return tidy([text[spans[0][0] : spans[-1][1]]] if spans else [])


def word_ngrams(text: str, n: int) -> list[str]:
    """Every run of n words, as written; a text of fewer is one phrase."""
    spans = word_spans(text)
    if len(spans) <= n:
        return tidy([text[spans[0][0] : spans[-1][1]]] if spans else [])
    return tidy(text[spans[i][0] : spans[i + n - 1][1]] for i in range(len(spans) - n + 1))


def names_and_numbers(text: str, common: frozenset[str]) -> list[str]:
    """Runs of capitalised words, numbers, and words that no kept answer has.

    Args:
        common: words in lower case that are no secret; a capital at the start of a sentence makes no name of one.
    """
    found = [match.group() for match in NUMBER.finditer(text)]
    run: list[tuple[int, int]] = []

    def close() -> None:
        while run and text[slice(*run[-1])] in JOINING:
            run.pop()
        if run:
            found.append(text[run[0][0] : run[-1][1]])
        run.clear()

    for a, b in word_spans(text):
        word = text[a:b]
        lower = word.lower()
        if run and text[run[-1][1] : a].strip():  # punctuation ends a name
            close()
        opens = SENTENCE_END.search(text[:a]) is not None
        if word[:1].isupper() and not (opens and (lower in common or is_stop(word))) and not is_stop(word):
            run.append((a, b))
            continue
        if run and lower in JOINING:
            run.append((a, b))
            continue
        close()
        if len(word) > 3 and word.isalpha() and lower not in common and not is_stop(word):
            found.append(word)
    close()
    return tidy(found)


def phrases_by_model(subject: CausalLM, answers: Sequence[str], *, max_new_tokens: int = 64) -> list[list[str]]:
    """What the model itself names when it is asked for each text's key phrases; only what stands in the text counts."""
    prompts = [
        encode_prompt(
            subject.tokenizer, subject.prompt, ASKING.format(text=text), context=subject.context, place=text[:40]
        )
        for text in answers
    ]
    replies = subject.generate_all(prompts, max_new_tokens=max_new_tokens, batch_size=8, label="extract key phrases")
    found = []
    for text, reply in zip(answers, replies, strict=True):
        lines = [LIST_MARK.sub("", part).strip(" \"'.") for part in re.split(r"[\n,;]+", subject.decode(reply))]
        found.append(tidy(line for line in lines if line and PhraseSet.of([line]).keys_in(text)))
    return found


def tidy(phrases: Iterable[str]) -> list[str]:
    """Once each, without those of stop words alone or without a letter or digit."""
    kept: dict[str, str] = {}
    for phrase in phrases:
        words = phrase.split()
        if letters(phrase) and not all(is_stop(word) for word in words):
            kept.setdefault(letters(phrase), " ".join(words))
    return list(kept.values())


__all__ = [
    "Extractor", "content_words", "is_stop", "names_and_numbers", "phrases_by_model", "tidy", "whole_answer", "word_ngrams",
]  # fmt: skip
