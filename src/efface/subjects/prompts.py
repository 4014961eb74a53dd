"""Prompt formats as data, and the one safe way to join a prompt and an answer.

The whole text is tokenised once and every token that reaches past the end of the prompt is a target; a token that
a tokenizer merges across the border therefore counts as the answer's, and no answer is left without a target.
Masks come from lengths. The pad id is never looked at: it may equal the end-of-text id, which is a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field

from efface.errors import ModelError, RequestError
from efface.run.settings import Settings

IGNORED = -100
"""Label of positions that are not targets (the convention of torch's cross-entropy)."""


class PromptFormat(Settings):
    """How a question and an answer become one text.

    `plain` uses `prompt`, then `separator`, then the answer; `chat` uses the tokenizer's chat template. A row without
    a question is the bare text.
    """

    style: Literal["plain", "chat"] = "plain"
    prompt: str = Field("Question: {question}\nAnswer:", description="plain form; locuslab/tofu's form for base models")
    separator: str = " "
    append_eos: bool = Field(True, description="the end-of-text token is the answer's last target (TOFU)")
    system: str | None = Field(None, description="system message of the chat form")
    max_length: int | None = Field(None, description="refuse longer sequences; default: the model's context")

    def prompt_text(self, tokenizer: Any, question: str) -> str:
        """The text before the answer, as it stands before generation."""
        if self.style == "plain":
            return self.prompt.replace("{question}", question) if question else ""
        return str(tokenizer.apply_chat_template(self._turns(question), tokenize=False, add_generation_prompt=True))

    def _turns(self, question: str) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": question}]

    def whole_text(self, tokenizer: Any, question: str, answer: str) -> str:
        """Prompt and answer as one text; the chat form includes the template's own end of turn."""
        prompt = self.prompt_text(tokenizer, question)
        if self.style == "plain":
            return prompt + self.separator + answer if prompt else answer
        turns = [*self._turns(question), {"role": "assistant", "content": answer}]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        if not text.startswith(prompt):
            raise ModelError(
                "the chat template writes the prompt differently once the answer is there",
                "a template whose conversation begins with its own generation prompt", "use the plain prompt style",
            )  # fmt: skip
        return text


@dataclass(frozen=True)
class Encoded:
    """One tokenised example: `ids` [T], of which the first `n_prompt` are the prompt."""

    ids: list[int]
    n_prompt: int

    @property
    def n_targets(self) -> int:
        """Number of answer tokens that are predicted."""
        return len(self.ids) - self.n_prompt

    @property
    def n_tokens(self) -> int:
        """Number of tokens of the whole sequence."""
        return len(self.ids)

    @property
    def key(self) -> list[Any]:
        """What the row is, as a JSON value."""
        return [self.n_prompt, self.ids]


def check_chat(tokenizer: Any, form: PromptFormat) -> None:
    """Refuse the chat style where the tokenizer has no template."""
    if form.style == "chat" and not getattr(tokenizer, "chat_template", None):
        raise ModelError("the tokenizer has no chat template", "one, for prompt style 'chat'", "use style=plain")


def encode(
    tokenizer: Any, form: PromptFormat, question: str, answer: str, *, context: int | None = None, place: str = "row"
) -> Encoded:
    """Tokenise one example.

    Args:
        tokenizer: a transformers tokenizer; a fast one is used with character offsets.
        context: longest sequence that the model takes.
        place: what to call the row in an error.

    Raises:
        RequestError: the sequence is longer than the context, or has no target token.
    """
    prompt = form.prompt_text(tokenizer, question)
    whole = form.whole_text(tokenizer, question, answer)
    special = form.style == "plain"  # a chat template writes its own special tokens
    if getattr(tokenizer, "is_fast", False):
        found = tokenizer(whole, add_special_tokens=special, return_offsets_mapping=True)
        ids, ends = list(found["input_ids"]), [end for _, end in found["offset_mapping"]]
        while special and ids and ids[-1] == tokenizer.eos_token_id and ends[-1] == 0:
            ids, ends = ids[:-1], ends[:-1]  # an end token that the tokenizer adds by itself
        n_prompt = next((i for i, end in enumerate(ends) if end > len(prompt)), len(ids))
    else:
        head = list(tokenizer(prompt, add_special_tokens=special)["input_ids"])
        if special and head and head[-1] == tokenizer.eos_token_id:
            head = head[:-1]
        ids = head + list(tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"])
        n_prompt = len(head)
    if form.append_eos and form.style == "plain":
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "the tokenizer has no end-of-text token", "one, to end answers with", "use append_eos=false"
            )
        ids.append(int(tokenizer.eos_token_id))
    n_prompt = max(n_prompt, 1)  # the first token has no context and cannot be predicted
    limit = min(form.max_length or 10**9, context or 10**9)
    if len(ids) > limit:
        raise RequestError(
            f"{place}: {len(ids)} tokens", f"at most {limit} (the model's context)", "shorten or split the row"
        )
    if len(ids) <= n_prompt:
        raise RequestError(f"{place}: the answer has no token to predict", "a longer answer", "fill or drop the row")
    return Encoded(ids, n_prompt)


def encode_prompt(tokenizer: Any, form: PromptFormat, question: str, *, context: int | None = None,
                  place: str = "row") -> list[int]:  # fmt: skip
    """Token ids of the prompt alone, for generation.

    Raises:
        RequestError: the prompt is empty or fills the context.
    """
    prompt = form.prompt_text(tokenizer, question)
    ids = list(tokenizer(prompt, add_special_tokens=form.style == "plain")["input_ids"])
    if form.style == "plain" and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    if not ids:
        raise RequestError(f"{place}: no question, so there is nothing to generate from", "a question", "score it only")
    if context and len(ids) >= context:
        raise RequestError(f"{place}: the prompt has {len(ids)} tokens", f"fewer than {context}", "shorten the row")
    return ids


def pad(rows: Sequence[Sequence[int]], pad_id: int, *, side: Literal["left", "right"]) -> dict[str, torch.Tensor]:
    """Pad to one length. Scoring pads right, generation pads left.

    Returns:
        `input_ids` and `attention_mask`, both [B, T]; the mask is made from lengths.
    """
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for index, row in enumerate(rows):
        part = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[index, part] = torch.tensor(row, dtype=torch.long)
        mask[index, part] = 1
    return {"input_ids": ids, "attention_mask": mask}


def collate(rows: Sequence[Encoded], pad_id: int) -> dict[str, torch.Tensor]:
    """A right-padded batch with labels: `input_ids`, `attention_mask`, `labels`, all [B, T]."""
    batch = pad([row.ids for row in rows], pad_id, side="right")
    labels = torch.full_like(batch["input_ids"], IGNORED)
    for index, row in enumerate(rows):
        labels[index, row.n_prompt : len(row.ids)] = batch["input_ids"][index, row.n_prompt : len(row.ids)]
    return {**batch, "labels": labels}
