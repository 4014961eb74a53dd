"""The words of the scenes: facts, captions in four templates, hard negatives, probes, and a tokenizer of whole words.

A caption states colours, digits and the relation, not the cells. Two captions mean the same when they state the same
facts: the template does not count, nor which of two objects is named first ("left of" turned round is "right of").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from efface.errors import InputError

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOUR_WORDS = ("red", "green", "blue", "yellow", "purple", "white")
FLIPPED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
TEMPLATES = ("{}", "a picture of {}", "there is {}", "the image shows {}")
NEGATIVES = ("colour_swap", "digit_swap", "relation_flip", "digit_change")

WORDS = (
    *"a of picture there is the image shows left right above below".split(), *COLOUR_WORDS, *NUMBERS,
    *"northwest northeast southwest southeast".split(),
    # not in captions: for probes, for spoken digits ("the digit seven") and for questions about scenes
    *"digit number photo and in corner empty nothing object scene no".split(),
)  # fmt: skip
LENGTH = 16
"""Tokens of the longest text, with bos and eos; the longest caption has 13."""


@dataclass(frozen=True)
class Object:
    """A digit (0 to 9) in a colour and a cell."""

    digit: int
    colour: str
    cell: str

    @property
    def words(self) -> str:
        """For example "a red three"."""
        return f"a {self.colour} {NUMBERS[self.digit]}"


@dataclass(frozen=True)
class Scene:
    """One object, or two and the relation of the first to the second ("left of", "right of", "above", "below")."""

    objects: tuple[Object, ...]
    relation: str | None = None

    def __post_init__(self) -> None:
        if len(self.objects) != (1 if self.relation is None else 2) or self.relation not in (None, *FLIPPED):
            raise InputError(
                f"a scene of {len(self.objects)} objects with the relation {self.relation!r}",
                f"one object and None, or two and one of {', '.join(FLIPPED)}",
            )

    @property
    def meaning(self) -> str:
        """What a caption of this scene states; equal for captions that state the same."""
        if self.relation is None:
            return self.objects[0].words
        turned = self.relation in ("right of", "below")
        first, second = self.objects[::-1] if turned else self.objects
        return f"{first.words} {FLIPPED[self.relation] if turned else self.relation} {second.words}"


def caption(scene: Scene, template: int = 0) -> str:
    """For example "there is a red three left of a blue seven"."""
    plain = f" {scene.relation} ".join(item.words for item in scene.objects)
    return TEMPLATES[template].format(plain)


def hard_negatives(scene: Scene, template: int, rng: np.random.Generator) -> dict[str, str] | None:
    """Four false captions of a two-object scene in its own template, by kind (`NEGATIVES`).

    None for one object, and where the two share a colour or a digit: swapping that would say the same.
    """
    if scene.relation is None:
        return None
    first, second = scene.objects
    if first.colour == second.colour or first.digit == second.digit:
        return None
    other = int(rng.choice([digit for digit in range(10) if digit not in (first.digit, second.digit)]))
    wrong = {
        "colour_swap": Scene(
            (replace(first, colour=second.colour), replace(second, colour=first.colour)), scene.relation
        ),
        "digit_swap": Scene((replace(first, digit=second.digit), replace(second, digit=first.digit)), scene.relation),
        "relation_flip": Scene(scene.objects, FLIPPED[scene.relation]),
        "digit_change": Scene((replace(first, digit=other), second), scene.relation),
    }
    return {kind: caption(scene, template) for kind, scene in wrong.items()}


def probe_texts() -> dict[str, list[str]]:
    """Texts that say more and more: "nothing" (no fact), "colour" (a red), "digit" (seven), "object" (a red seven)."""
    return {
        "nothing": ["a picture"],
        "colour": [f"a {colour}" for colour in COLOUR_WORDS],
        "digit": list(NUMBERS),
        "object": [f"a {colour} {number}" for number in NUMBERS for colour in COLOUR_WORDS],
    }


def scene_tokenizer() -> Any:
    """The tokenizer of the world's words (43, and pad 0, bos 1, unk 3, eos 46)."""
    return word_tokenizer(WORDS, LENGTH)


def word_tokenizer(words: Sequence[str], length: int) -> Any:
    """A fast tokenizer of whole words as transformers' CLIP text tower wants it: bos, words, eos.

    Ids: pad 0, bos 1, unk 3 and eos the largest. CLIP finds its pooled token as the first eos, but for eos 2 by an old
    rule, as the largest id of the row; with eos the largest and not 2, both rules agree.

    Args:
        words: distinct lower-case words; texts are lower-cased and split into words and punctuation marks.
        length: tokens of the longest text, bos and eos included; longer ones are cut by `truncation=True`.

    Raises:
        InputError: no words, or a word twice.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    if len(words) < 1 or len(set(words)) != len(words):
        raise InputError(f"{len(words)} words of which {len(set(words))} are distinct", "distinct words, at least one")
    order = ["[PAD]", "[BOS]", words[0], "[UNK]", *words[1:], "[EOS]"]
    ids = {word: i for i, word in enumerate(order)}
    raw = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    raw.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="removed", invert=True)
    special = [("[BOS]", ids["[BOS]"]), ("[EOS]", ids["[EOS]"])]
    raw.post_processor = processors.TemplateProcessing(single="[BOS] $A [EOS]", special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", bos_token="[BOS]", unk_token="[UNK]", eos_token="[EOS]",
        model_max_length=length, padding_side="right", clean_up_tokenization_spaces=False,
    )  # fmt: skip
