"""Blocks of text beside their translations, with an exact map between their tokens.

Both texts are tokenised whole and matched by character offsets, never by looking for strings in decoded tokens: replacing
a term changes token counts, and merges at its borders. A question with its answer is one block; plain text is cut into
blocks, never inside a term.
"""

from __future__ import annotations

import bisect
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from efface.data.anchors import Anchors, Replacement, translate
from efface.errors import ConfigError, ModelError, RequestError
from efface.subjects.causal_lm import CausalLM
from efface.subjects.prompts import Encoded

NONE = -1
"""No counterpart, no term."""


@dataclass(frozen=True)
class Block:
    """A block b and its translation b'.

    Attributes:
        row: token ids of b [T] and its prompt.
        translated: token ids of b' [T'].
        counterpart: [T]; for the token t of b the token of b' that stands at the same place, or `NONE`. The first token of
            a replaced term has the first token of its generic term; the term's later tokens have none.
        counted: [T]; False for every token of a term's second and later occurrences.
        lowered: (t, ids): from the token t of b on, these ids begin translations of terms that have been seen.
    """

    row: Encoded
    translated: list[int]
    counterpart: list[int]
    counted: list[bool]
    lowered: list[tuple[int, list[int]]]


@dataclass(frozen=True)
class Tokens:
    """Ids [T] with the characters that each covers, and the number of special tokens at the beginning."""

    ids: list[int]
    spans: list[tuple[int, int]]
    prefix: int


@dataclass(frozen=True)
class Alignment:
    """Two tokenised texts, the second a translation of the first.

    Attributes:
        b, b2: the texts.
        spans: what was replaced, in order.
        term: [T] the place in `spans` that a token of b touches, or `NONE`.
        counterpart: [T] as in `Block`, for the whole text.
    """

    b: Tokens
    b2: Tokens
    spans: Sequence[Replacement]
    term: list[int]
    counterpart: list[int]


def tokens_of(subject: CausalLM, text: str, *, special: bool, ended: bool) -> Tokens:
    """Tokenise with offsets.

    Args:
        special: let the tokenizer add its special tokens; an end token of its own is left out.
        ended: append the end token.

    Raises:
        ModelError: the tokenizer gives no offsets.
    """
    tokenizer: Any = subject.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError("a tokenizer without offsets", "a fast tokenizer", "load one, or leave the anchors out")
    found = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    ids, spans = list(found["input_ids"]), [(int(a), int(b)) for a, b in found["offset_mapping"]]
    while special and ids and ids[-1] == tokenizer.eos_token_id and spans[-1] == (0, 0):
        ids, spans = ids[:-1], spans[:-1]
    prefix = next((i for i, (start, stop) in enumerate(spans) if stop > start), len(spans))
    if ended:
        ids, spans = [*ids, int(tokenizer.eos_token_id)], [*spans, (len(text), len(text))]
    return Tokens(ids, spans, prefix)


def align(b: Tokens, b2: Tokens, spans: Sequence[Replacement]) -> Alignment:
    """Match the tokens of a text and of its translation by the characters that they begin at."""
    stops = [one.stop for one in spans]
    shifts = [0, *itertools.accumulate(len(one.generic) - (one.stop - one.start) for one in spans)]
    ours, theirs = _by_start(b), _by_start(b2)
    term, counterpart = [NONE] * len(b.ids), [NONE] * len(b.ids)
    for t in range(min(b.prefix, b2.prefix)):
        counterpart[t] = t
    for t in range(b.prefix, len(b.ids)):
        start, stop = b.spans[t]
        place = bisect.bisect_right(stops, start)  # the first term that ends after the token's beginning
        there = theirs.get(start + shifts[place], [])
        if place < len(spans) and spans[place].start < stop:
            term[t] = place
            if there and term[t - 1] != place:
                counterpart[t] = there[0]
        elif len(there) == len(ours[start]):  # the bytes of one character begin at one place
            counterpart[t] = there[ours[start].index(t)]
    return Alignment(b, b2, spans, term, counterpart)


def _by_start(found: Tokens) -> dict[int, list[int]]:
    places: dict[int, list[int]] = defaultdict(list)
    for t in range(found.prefix, len(found.ids)):
        places[found.spans[t][0]].append(t)
    return places


def cut(whole: Alignment, here: tuple[int, int], there: tuple[int, int], n_prompt: int) -> Block:
    """The block of tokens `here` of b beside tokens `there` of b', each with the special tokens before it."""
    b, b2 = whole.b, whole.b2
    counterpart = list(range(b.prefix)) if b.prefix == b2.prefix else [NONE] * b.prefix
    counted, lowered, seen = [True] * b.prefix, [], set()
    before, fresh, ids = NONE, True, [NONE]
    for t in range(*here):
        other = whole.counterpart[t]
        counterpart.append(other - there[0] + b2.prefix if there[0] <= other < there[1] else NONE)
        place = whole.term[t]
        if before not in (NONE, place) and fresh:  # a term's first occurrence has just ended
            lowered.append((t - here[0] + b.prefix, [one for one in ids if one != NONE]))
        if place not in (NONE, before):
            fresh, ids = whole.spans[place].term not in seen, [NONE if other == NONE else b2.ids[other]]
            seen.add(whole.spans[place].term)
        counted.append(place == NONE or fresh)
        before = place
    row = Encoded([*b.ids[: b.prefix], *b.ids[here[0] : here[1]]], n_prompt)
    translated = [*b2.ids[: b2.prefix], *b2.ids[there[0] : there[1]]]
    return Block(row, translated, counterpart, counted, [(t, found) for t, found in lowered if found])


def build_blocks(
    subject: CausalLM, data: Dataset, anchors: Anchors, *, block_tokens: int, name: str, short: bool = False
) -> list[Block]:
    """Every row of a data set as one block or more.

    Args:
        data: canonical rows; one without a question is plain text.
        block_tokens: longest block of plain text.
        short: plain text may be shorter than one block.

    Raises:
        RequestError: plain text shorter than one block, or a block that does not fit into the context.
        ConfigError: a block does not fit into the context.
    """
    found: list[Block] = []
    plain = 0
    for index, (question, answer) in enumerate(zip(data["question"], data["answer"], strict=True)):
        place = f"{name} row {index}"
        made = (
            [_pair(subject, question, answer, anchors, place)]
            if question
            else _pieces(subject, answer, anchors, block_tokens)
        )
        plain += 0 if question else sum(len(block.row.ids) for block in made)
        longest = max((len(block.translated) for block in made), default=0)
        if subject.context and longest > subject.context:
            raise RequestError(
                f"{place}: a translated block has {longest} tokens", f"at most {subject.context} (the model's context)",
                "lower block_tokens, shorten the row, or use shorter generic terms",
            )  # fmt: skip
        found += made
    if not short and any(not question for question in data["question"]) and plain < block_tokens:
        raise RequestError(
            f"the {name} set's plain text has {plain} tokens", f"at least one block of {block_tokens}",
            "give more text, or lower block_tokens",
        )  # fmt: skip
    return found


def _pair(subject: CausalLM, question: str, answer: str, anchors: Anchors, place: str) -> Block:
    row, form = subject.encode(question, answer, place=place), subject.prompt
    text = form.whole_text(subject.tokenizer, question, answer)
    spans = anchors.replacements(text)
    if not spans:
        return Block(row, row.ids, list(range(len(row.ids))), [True] * len(row.ids), [])
    special = form.style == "plain"
    b, b2 = (
        tokens_of(subject, found, special=special, ended=special and form.append_eos)
        for found in (text, translate(text, spans))
    )
    return cut(align(b, b2, spans), (b.prefix, len(b.ids)), (b2.prefix, len(b2.ids)), row.n_prompt)


def _pieces(subject: CausalLM, text: str, anchors: Anchors, block_tokens: int) -> list[Block]:
    """Plain text in blocks that each begin with the tokenizer's own special tokens."""
    if subject.context and block_tokens > subject.context:
        raise ConfigError(f"block_tokens={block_tokens}", f"at most {subject.context}, the model's context", "lower it")
    spans = anchors.replacements(text)
    b, b2 = (tokens_of(subject, found, special=True, ended=False) for found in (text, translate(text, spans)))
    room = block_tokens - b.prefix
    if room < 2:
        raise ConfigError(f"block_tokens={block_tokens}", f"{b.prefix + 2} or more", "raise it")
    whole = align(b, b2, spans)
    cuts = [b.prefix]
    while cuts[-1] < len(b.ids):
        stop = min(cuts[-1] + room, len(b.ids))
        first = stop
        while first < len(b.ids) and whole.term[first] != NONE and whole.term[first - 1] == whole.term[first]:
            first -= 1  # not inside a term
        cuts.append(first if first > cuts[-1] else stop)
    there = [next((c for c in itertools.islice(whole.counterpart, at, None) if c != NONE), len(b2.ids)) for at in cuts]
    there[0] = b2.prefix
    return [
        cut(whole, here, beside, max(1, b.prefix))
        for here, beside in zip(itertools.pairwise(cuts), itertools.pairwise(there), strict=True)
        if here[1] - here[0] + b.prefix >= 2  # a lone token has nothing before it to be predicted from
    ]
