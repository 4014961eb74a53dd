"""What a guard reads in the tokens of a prompt: where the names stand, and what the last turn of a chat says.

Names are found by character offsets, never by comparing token ids. The text of a prompt is decoded from its tokens; where the
tokenizer gives other tokens for that text, offsets come from decoding one token more at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efface.subjects.guarded import Asked
from efface.subjects.loading import load_tokenizer, look_before_loading, place_of, reading_weights, refuse_incomplete
from efface.subjects.prompts import encode_prompt
from efface.subjects.spans import occurrences

Ranges = Callable[[str], list[tuple[int, int]]]
"""A text -> half-open character ranges."""

NER = "a token classifier"


def prompt_ids(asked: Asked) -> list[list[int]]:
    """The token ids of each prompt, padding and answer left out."""
    return [row[keep].tolist() for row, keep in zip(asked.ids, asked.prompt, strict=True)]


def token_ranges(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of some tokens, special ones included, and the characters that each token fills."""
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    text = str(tokenizer.decode(list(ids), **options))
    if getattr(tokenizer, "is_fast", False):
        again = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if list(again["input_ids"]) == list(ids):
            return text, [(int(low), int(high)) for low, high in again["offset_mapping"]]
    ends = [len(str(tokenizer.decode(list(ids[: i + 1]), **options))) for i in range(len(ids))]
    return text, list(zip([0, *ends[:-1]], ends, strict=True))


def name_ranges(names: Sequence[str]) -> Ranges:
    """Where any of the names stands as whole words, in any case."""
    wanted = [name.strip().lower() for name in names]

    def found(text: str) -> list[tuple[int, int]]:
        low = text.lower()
        low = low if len(low) == len(text) else text  # a few letters change their length
        return [place for name in wanted for place in occurrences(low, name)]

    return found


def covering(tokenizer: Any, ids: Sequence[int], ranges: Ranges) -> list[bool]:
    """[T] whether a token covers a character of what `ranges` finds in the text."""
    text, tokens = token_ranges(tokenizer, ids)
    places = ranges(text)
    return [any(low < end and high > start for start, end in places) and high > low for low, high in tokens]


def all_but_last(n: int) -> list[bool]:
    """[n] every token but the last; a prompt of one token keeps nothing back."""
    return [True] * n if n == 1 else [True] * (n - 1) + [False] * min(n, 1)


def put_back(keep: Tensor, chosen: Sequence[bool]) -> Tensor:
    """[T] bool: choices for a prompt's tokens at the places where the row has them.

    Args:
        keep: [T] bool, where the prompt stands in its row, whatever the padding.
        chosen: one for every True of `keep`.
    """
    where = torch.zeros_like(keep)
    where[keep] = torch.tensor(list(chosen), dtype=torch.bool, device=keep.device)
    return where


class NameTagger:
    """A token classifier of transformers that finds names (the paper's dslim/bert-base-NER).

    Args:
        model: with a tokenizer that gives offsets.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        from transformers import pipeline

        self.model, self.tokenizer = model.eval(), tokenizer
        self._run = pipeline(
            "token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="simple", device=model.device
        )

    @classmethod
    def load(cls, source: str | Path) -> NameTagger:
        """From a hub id or folder, safetensors only.

        Raises:
            ModelError: one line that says what is wrong with it.
        """
        from transformers import AutoModelForTokenClassification

        text = str(source)
        look_before_loading(text, None)
        place = place_of(text)
        tokenizer = load_tokenizer(text, place, {}, NER)
        with reading_weights(text, NER):
            model, info = AutoModelForTokenClassification.from_pretrained(
                place, use_safetensors=True, output_loading_info=True
            )
        refuse_incomplete(text, info)
        return cls(model, tokenizer)

    def save(self, folder: Path) -> None:
        """Write it into a folder."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def __call__(self, text: str) -> list[tuple[int, int]]:
        return [(int(part["start"]), int(part["end"])) for part in self._run(text)] if text.strip() else []


class PromptReader:
    """The texts that a gate judges: each prompt, and the last turn of a chat of several, as if it were the only one.

    Args:
        tokenizer, form: of the subject.
    """

    def __init__(self, tokenizer: Any, form: Any) -> None:
        self.tokenizer, self.form = tokenizer, form
        self.opening, self.closing = _turn_marks(tokenizer) if form.style == "chat" else ("", "")

    def text(self, ids: Sequence[int]) -> str:
        """A prompt's text without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def views(self, ids: Sequence[int]) -> list[str]:
        """The whole prompt, then its last turn where there are several."""
        whole = self.text(ids)
        if not self.opening:
            return [whole]
        raw = str(self.tokenizer.decode(list(ids), skip_special_tokens=False))
        before, mark, last = raw.rpartition(self.opening)
        if not mark or not before:
            return [whole]
        question = last.removesuffix(self.closing).strip()
        alone = self.text(encode_prompt(self.tokenizer, self.form, question)) if question else whole
        return [whole] if alone == whole else [whole, alone]  # a system message may look like an earlier turn


def _turn_marks(tokenizer: Any) -> tuple[str, str]:
    """What a chat template writes between an answer and the next question, and after the question."""
    first, answer, second = "one", "twoo", "three"
    turns = [
        {"role": "user", "content": first}, {"role": "assistant", "content": answer}, {"role": "user", "content": second}
    ]  # fmt: skip
    text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    rest = text.rpartition(answer)[2]
    opening, mark, closing = rest.partition(second)
    return (opening, closing) if mark else ("", "")


__all__ = [
    "NameTagger", "PromptReader", "Ranges", "all_but_last", "covering", "name_ranges", "prompt_ids", "put_back",
    "token_ranges",
]  # fmt: skip
