"""Where a name stands among the tokens of a text: by character offsets, never by comparing token ids.

A name is one to many tokens, and its ids change with the space before it; offsets do not. A token belongs to the name
where it covers one of its characters; the last such token is where a decoder has read the whole name.
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

from efface.errors import ModelError, RequestError


class Located(NamedTuple):
    """A tokenised text with a name in it.

    `ids` [T]; `first` and `last` are the positions of the name's first and last token, both included.
    """

    ids: list[int]
    first: int
    last: int

    @property
    def tokens(self) -> range:
        """Positions of all of the name's tokens."""
        return range(self.first, self.last + 1)


def occurrences(text: str, name: str) -> list[tuple[int, int]]:
    """Character ranges where the name stands as whole words: "niger" is not in "nigeria".

    Raises:
        RequestError: the name is empty.
    """
    bare = name.strip()
    if not bare:
        raise RequestError("an empty name", "the name of a concept", "fill it in")
    before = r"(?<!\w)" if bare[0].isalnum() else ""
    after = r"(?!\w)" if bare[-1].isalnum() else ""
    return [match.span() for match in re.finditer(before + re.escape(bare) + after, text)]


def locate(
    tokenizer: Any, text: str, name: str, *, which: Literal["first", "last"] = "last", special: bool = True
) -> Located:
    """Tokenise a text and find a name in it.

    Args:
        tokenizer: a fast transformers tokenizer (it gives offsets).
        text: the prompt.
        name: as it is written there; white space around it does not count.
        which: of several places, the first or the last.
        special: add the tokenizer's special tokens; False where a chat template has written them. An end token that
            the tokenizer adds by itself is taken off.

    Raises:
        RequestError: the name is not in the text as whole words, or no token covers it.
        ModelError: the tokenizer has no offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError("a tokenizer without character offsets", "a fast tokenizer", "load one with use_fast=True")
    places = occurrences(text, name)
    if not places:
        raise RequestError(
            f"the name '{name.strip()[:60]}' is not in the prompt '{text[:80]}'", "the name as whole words",
            "check its spelling and case, or the template",
        )  # fmt: skip
    start, end = places[0 if which == "first" else -1]
    found = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    ids, offsets = list(found["input_ids"]), list(found["offset_mapping"])
    while special and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and offsets[-1][1] == 0:
        ids, offsets = ids[:-1], offsets[:-1]
    covering = [i for i, (low, high) in enumerate(offsets) if low < end and high > start and high > low]
    if not covering:
        raise RequestError(f"no token of '{text[:80]}' covers the name '{name.strip()[:60]}'", "one token or more")
    return Located(ids, covering[0], covering[-1])


def name_tokens(tokenizer: Any, name: str) -> list[list[int]]:
    """The ids of a bare name at the start of a text and after a space: two spellings for most tokenizers, one for some."""
    found = [
        list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (name.strip(), " " + name.strip())
    ]
    return found[:1] if found[0] == found[1] else found


def same_last_token(tokenizer: Any, name: str, others: list[str]) -> list[str]:
    """Those of the other names that end in the same token, in either spelling: an edit keyed by it may reach them."""
    ends = {ids[-1] for ids in name_tokens(tokenizer, name) if ids}
    return [
        other for other in others
        if other != name and any(ids and ids[-1] in ends for ids in name_tokens(tokenizer, other))
    ]  # fmt: skip
