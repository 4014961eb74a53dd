"""Comparing a generated text with a reference: ROUGE, exact match, token F1, aliases, refusals, repetition.

One normaliser serves all but ROUGE, which brings its own: Unicode NFKC, case folded, apostrophes removed,
other punctuation and symbols turned into spaces, CJK characters set apart. Unlike SQuAD's it keeps the
articles: an answer may be the letter "a". ROUGE is the `rouge-score` package with the stemmer on, as TOFU
uses it, or off, as MUSE does; RWKU uses another package, `rouge`, whose reading of ROUGE-L is written here.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from efface.errors import InputError

REFUSALS: tuple[str, ...] = (
    "I don't know",
    "I do not know",
    "I have no idea",
    "I'm not sure",
    "I am not sure",
    "I'm not certain",
    "I'm not aware",
    "I'm not familiar",
    "I'm unable to",
    "I am unable to",
    "I can't answer",
    "I cannot answer",
    "I can't help",
    "I cannot help",
    "I can't provide",
    "I cannot provide",
    "I can't assist",
    "I cannot assist",
    "I don't have information",
    "I don't have that information",
    "I don't have any information",
    "I do not have information",
    "I have no information",
    "I haven't learned",
    "I have not been trained",
    "as an AI language model",
    "I'm sorry but",
    "I am sorry but",
    "I must decline",
    "I won't be able to",
)  # fmt: skip
"""Phrases that open a refusal. Data, not code: pass another list to `is_refusal`."""

REFUSAL_WINDOW = 30  # tokens; a refusal comes early, a quoted "I don't know" may come anywhere

_APOSTROPHES = dict.fromkeys(map(ord, "'’‘ʼ`´"))
_CJK = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")


@dataclass(frozen=True)
class Rouge:
    """Three ROUGE figures in [0, 1]; recall is relative to the reference."""

    rouge1_recall: float
    rougeL_recall: float
    rougeL_f1: float


def rouge(generated: str, reference: str) -> Rouge:
    """ROUGE-1 recall, ROUGE-L recall and ROUGE-L F1 of a generation against its reference, stemmer on."""
    scores = _scorer().score(reference, generated)
    return Rouge(
        rouge1_recall=float(scores["rouge1"].recall),
        rougeL_recall=float(scores["rougeL"].recall),
        rougeL_f1=float(scores["rougeL"].fmeasure),
    )


def rouge_l_unstemmed(generated: str, reference: str) -> float:
    """ROUGE-L F1 with the stemmer off, as MUSE's code has it."""
    return float(_scorer(stem=False).score(reference, generated)["rougeL"].fmeasure)


def rouge_l_plain(generated: str, reference: str) -> float:
    """ROUGE-L recall as the package `rouge` 1.0.1 reads it, which RWKU uses: case, marks and endings count.

    Both texts are cut at full stops and at spaces. Of each pair of a reference and a generated sentence the words of one
    longest common subsequence are taken; the share of the reference's distinct words among them is the recall. Where the
    package raises (a text of nothing but full stops or spaces) this gives 0, or 1 where both are the same text.
    """
    ours, theirs = _sentences(generated), _sentences(reference)
    words = {word for sentence in theirs for word in sentence}
    if not any(ours) or not any(theirs):
        return float(bool(reference.strip()) and generated.strip() == reference.strip())
    found = {word for target in theirs for said in ours for word in _common(target, said)}
    return len(found) / len(words)


def _sentences(text: str) -> list[list[str]]:
    """Words of every part between full stops; a part of spaces alone is one empty word, as in the package."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _common(target: Sequence[str], said: Sequence[str]) -> set[str]:
    """Words of one longest common subsequence; of several, the one that gives up the generated words first, from the end."""
    length = [[0] * (len(said) + 1) for _ in range(len(target) + 1)]
    for i, word in enumerate(target, 1):
        for j, other in enumerate(said, 1):
            length[i][j] = length[i - 1][j - 1] + 1 if word == other else max(length[i - 1][j], length[i][j - 1])
    found, i, j = set(), len(target), len(said)
    while i and j:
        if target[i - 1] == said[j - 1]:
            found.add(target[i - 1])
            i, j = i - 1, j - 1
        elif length[i - 1][j] > length[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found


def cut(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of some stop strings."""
    ends = [place for mark in stop if (place := text.find(mark)) >= 0]
    return text[: min(ends)] if ends else text


def contains_answer(generated: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers stands in the text as whole words; one of punctuation alone must be the whole text."""
    worded = [text for text in answers if normalise(text)]
    return (bool(worded) and alias_match(generated, worded)) or generated.strip() in {text.strip() for text in answers}


def normalise(text: str) -> str:
    """The text as lower-case words with single spaces between them; empty when it has no letter or digit."""
    folded = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).casefold()
    composed = unicodedata.normalize("NFKC", folded).translate(_APOSTROPHES)
    spaced = "".join(_as_word(char) for char in composed)
    return " ".join(_CJK.sub(r" \1 ", spaced).split())


def exact_match(generated: str, reference: str) -> bool:
    """Equal after normalisation; texts of punctuation alone are compared as they are."""
    ours, theirs = normalise(generated), normalise(reference)
    if not ours and not theirs:
        return generated.strip() == reference.strip()
    return ours == theirs


def token_f1(generated: str, reference: str) -> float:
    """F1 of the two bags of normalised words; 1 when both are empty, 0 when one is."""
    ours, theirs = Counter(normalise(generated).split()), Counter(normalise(reference).split())
    total = ours.total() + theirs.total()
    if not total:
        return 1.0
    return 2.0 * (ours & theirs).total() / total


def alias_match(generated: str, aliases: Sequence[str]) -> bool:
    """Whether one of the aliases stands in the text as whole words ("Iran" is not in "tirana").

    Raises:
        InputError: no aliases, or one without a letter or digit.
    """
    if not aliases:
        raise InputError("no aliases to look for", "one or more names")
    text = f" {normalise(generated)} "
    for alias in aliases:
        words = normalise(alias)
        if not words:
            raise InputError(f"the alias '{alias}' has no letter or digit", "a name")
        if f" {words} " in text:
            return True
    return False


def is_refusal(generated: str, phrases: Sequence[str] = REFUSALS, *, within: int = REFUSAL_WINDOW) -> bool:
    """Whether a refusal phrase stands among the first `within` words. Raises as `alias_match` does."""
    return alias_match(" ".join(normalise(generated).split()[:within]), phrases)


def distinct(tokens: Sequence[Hashable]) -> float:
    """Share of distinct tokens in [0, 1]; near 0 when one word is repeated.

    An empty generation repeats nothing and gives 1; its length shows that it is empty.
    """
    return len(set(tokens)) / len(tokens) if tokens else 1.0


def _as_word(char: str) -> str:
    """The character, nothing for an invisible format character, a space for other non-letters."""
    category = unicodedata.category(char)
    if category == "Cf":
        return ""
    return " " if category[0] in "PSZC" else char


@functools.cache
def _scorer(stem: bool = True) -> Any:
    from rouge_score import rouge_scorer  # imports nltk: only when a text is scored

    return rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=stem)
