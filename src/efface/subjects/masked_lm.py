"""The masked language model as a subject: which word could stand here, given a text and the same text with a gap.

The input is a pair, "original text [SEP] text with one word masked", as DP-MLM asks for it (arXiv 2504.13774); the tokenizer
writes the pair in the model's own form. A word of several tokens is masked by one mask token.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from efface.errors import InputError, ModelError, RequestError
from efface.subjects.loading import (
    check_dtype,
    load_tokenizer,
    look_before_loading,
    one_device,
    place_of,
    reading_weights,
    refuse_incomplete,
)
from efface.subjects.subject import Subject, refuse_bad_values
from efface.subjects.tower import longest

WHAT = "a masked language model"


class Gap(NamedTuple):
    """A text and the characters [start, end) that are masked in its copy."""

    text: str
    start: int
    end: int


class MaskedLM(Subject):
    """A masked LM with its tokenizer; V is the width of its output.

    Raises:
        ModelError: a tokenizer without a mask token or without character offsets, or one of another model.
    """

    kind = "masked-lm"

    def __init__(
        self, model: Any, tokenizer: Any, *, source: str = "in memory", revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(model, source=source, revision=revision, trust_remote_code=trust_remote_code)
        self.tokenizer = tokenizer
        if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
            raise ModelError(f"the tokenizer of '{source}' has no mask or no padding token", WHAT, "use another model")
        if not tokenizer.is_fast:
            raise ModelError("a tokenizer without character offsets", "a fast tokenizer", "load one with use_fast=True")
        if len(tokenizer) > self.width:
            raise ModelError(
                f"the tokenizer has {len(tokenizer)} tokens, the model's output {self.width}",
                "a tokenizer that belongs to this model", "load model and tokenizer from one source",
            )  # fmt: skip

    @property
    def width(self) -> int:
        """V."""
        return int(self.model.config.vocab_size)

    @property
    def context(self) -> int:
        """Longest pair in tokens."""
        return longest(self.tokenizer, self.model.config)

    @cached_property
    def words(self) -> list[str]:
        """[V] the text of each token, without space around it; of a WordPiece token, without its ##. Special: empty."""
        known = len(self.tokenizer)
        texts = [text.strip() for text in self.tokenizer.batch_decode([[i] for i in range(known)])]
        if type(self.tokenizer.backend_tokenizer.model).__name__ == "WordPiece":
            texts = [text.removeprefix("##") for text in texts]
        special = set(self.tokenizer.all_special_ids)
        return ["" if i in special else text for i, text in enumerate(texts)] + [""] * (self.width - known)

    @cached_property
    def candidates(self) -> Tensor:
        """[V] bool: tokens with a text of their own. No special or blank ones, no pieces of a character.

        It depends on the vocabulary alone, never on a text: the bound of the exponential mechanism needs that.
        """
        return torch.tensor([bool(text) and "\ufffd" not in text for text in self.words])

    def fits(self, text: str) -> bool:
        """Whether the text fits twice into the context."""
        return len(self.tokenizer(text, text, verbose=False)["input_ids"]) <= self.context

    def prepare(self, gaps: Sequence[Gap]) -> tuple[dict[str, Tensor], Tensor]:
        """CPU tensors of B pairs, and the position [B] of each mask.

        Raises:
            InputError: no gaps, an empty text, or a gap outside its text.
            RequestError: a text that is too long for the model.
        """
        mask = self.tokenizer.mask_token
        if not gaps:
            raise InputError("no texts for the masked language model", "at least one")
        for index, gap in enumerate(gaps):
            if not gap.text.strip() or not 0 <= gap.start < gap.end <= len(gap.text):
                raise InputError(
                    f"text {index} of {len(gap.text)} characters with the gap [{gap.start}, {gap.end})",
                    "a text that is not empty, and a gap within it",
                )  # fmt: skip
        batch = self.tokenizer(
            [gap.text for gap in gaps], [gap.text[: gap.start] + mask + gap.text[gap.end :] for gap in gaps],
            padding=True, return_tensors="pt", return_offsets_mapping=True, verbose=False,
            return_token_type_ids=getattr(self.model.config, "type_vocab_size", 0) > 1,  # which half of the pair it is
        )  # fmt: skip
        if batch["input_ids"].shape[1] > self.context:
            raise RequestError(
                f"a text of {batch['input_ids'].shape[1]} tokens, itself and its copy", f"at most {self.context}",
                "split it into sentences",
            )  # fmt: skip
        offsets = batch.pop("offset_mapping").tolist()
        places = []
        for row, gap in enumerate(gaps):  # found by its characters: the text itself may hold a mask token
            tokens = zip(batch["input_ids"][row].tolist(), batch.sequence_ids(row), offsets[row], strict=True)
            end = gap.start + len(mask)
            places += [
                i for i, (token, part, (low, high)) in enumerate(tokens)
                if token == self.tokenizer.mask_token_id and part == 1 and low < end and high > gap.start
            ][:1]  # fmt: skip
        if len(places) < len(gaps):
            raise ModelError(
                f"the tokenizer of '{self.source}' lost a mask token", "one in each copy", "use another model"
            )
        return dict(batch), torch.tensor(places)

    def logits(self, gaps: Sequence[Gap], *, batch_size: int = 16) -> Tensor:
        """Logits at the mask of each gap, float32 [n, V] on the CPU, in evaluation mode and without gradient.

        Raises:
            InputError, RequestError: see `prepare`.
        """
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size}", "at least 1", "choose a larger one")
        rows = []
        for start in range(0, max(1, len(gaps)), batch_size):
            inputs, places = self.prepare(gaps[start : start + batch_size])
            with self.evaluating() as model:
                out = model(**{name: tensor.to(self.device) for name, tensor in inputs.items()}).logits
            rows.append(out[torch.arange(len(places)), places.to(out.device)].float().cpu())
        return torch.cat(rows)

    def beside(self) -> list[Any]:
        """The tokenizer is saved beside the model."""
        return [self.tokenizer]


def load_masked_lm(
    source: str | Path, *, revision: str | None = None, dtype: str = "float32", trust_remote_code: bool = False,
    check_values: bool = True,
) -> MaskedLM:  # fmt: skip
    """Load a masked LM from a hub id or folder, safetensors only.

    Args:
        source: hub id or folder.
        revision: commit, tag or branch on the hub.
        dtype: `float32`, `bfloat16`, `float16` or `auto`.
        trust_remote_code: run code from the repository; off unless asked for, and recorded.
        check_values: refuse weights with NaN or infinity.

    Raises:
        ModelError: one line that says what is wrong with the folder or id; also weights without a head for words.
    """
    from transformers import AutoModelForMaskedLM

    text = str(source)
    look_before_loading(text, revision)
    check_dtype(dtype)
    common = {"revision": revision, "trust_remote_code": trust_remote_code}
    place = place_of(text)
    tokenizer = load_tokenizer(text, place, common, WHAT)
    with reading_weights(text, WHAT):
        model, info = AutoModelForMaskedLM.from_pretrained(
            place, dtype=dtype, device_map=one_device(), use_safetensors=True, output_loading_info=True,
            ignore_mismatched_sizes=True, **common
        )  # fmt: skip
    refuse_incomplete(text, info)
    subject = MaskedLM(model.eval(), tokenizer, source=text, revision=revision, trust_remote_code=trust_remote_code)
    if check_values:
        refuse_bad_values(subject)
    return subject
