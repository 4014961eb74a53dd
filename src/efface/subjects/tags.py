"""New tokens for a model: rows that can be trained alone, and that come off again without a trace.

While they are trained the rows stand in a tensor of their own beside the embedding (and beside the output head where it
is not tied to the embedding), so nothing that is done to them, weight decay included, reaches a row that was there before.
Afterwards they are written into the embedding: into rows that the model has and its tokenizer does not use, or into rows
that are added at the end and cut off again on removal.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from efface.errors import ModelError
from efface.subjects.causal_lm import CausalLM


@dataclass(frozen=True)
class NewRows:
    """Rows of new tokens, ids `start` to `start + k`.

    `embedding` [k, D]; `head` [k, D], or None where the output head is tied to the embedding.
    """

    start: int
    embedding: Tensor
    head: Tensor | None

    def tensors(self) -> dict[str, Tensor]:
        """By name, for a safetensors file."""
        found = {"embedding": self.embedding.detach()}
        return found if self.head is None else {**found, "head": self.head.detach()}


def new_tokens(tokenizer: Any, texts: Sequence[str], spelled: Sequence[str] = ()) -> list[str]:
    """Which texts need a token of their own: all of `texts`, and those of `spelled` that the tokenizer cannot write.

    Raises:
        ModelError: one of `texts` is a token already, so that it would not be new to the model.
    """
    known = tokenizer.get_vocab()
    for text in texts:
        if text in known:
            raise ModelError(
                f"the tokenizer has a token '{text}' already", "a tag that it does not know", "change the tag"
            )
    return [*texts, *(text for text in spelled if not can_write(tokenizer, text))]


def can_write(tokenizer: Any, text: str) -> bool:
    """Whether a text survives encoding and decoding."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip() == text.strip()


def tokenizer_with(tokenizer: Any, tokens: Sequence[str]) -> Any:
    """A copy of a tokenizer with further tokens, each matched as a whole; ordinary ones, so that decoding shows them.

    Raises:
        ModelError: the tokenizer does not give them consecutive new ids at its end.
    """
    from transformers import AddedToken

    made, start = copy.deepcopy(tokenizer), len(tokenizer)
    made.add_tokens([AddedToken(token, normalized=False, special=False) for token in tokens])
    ids = made.convert_tokens_to_ids(list(tokens))
    if ids != list(range(start, start + len(tokens))):
        raise ModelError(f"the tokenizer numbers the new tokens {ids}", f"{start} and on", "use a fast tokenizer")
    return made


class _Embedding(nn.Module):
    """The model's embedding with further rows; `weight` is the very parameter of the model."""

    def __init__(self, inner: Any, rows: Tensor, start: int) -> None:
        super().__init__()
        self.weight, self.rows, self.start = inner.weight, nn.Parameter(rows), start
        self.scale = float(getattr(inner, "scalar_embed_scale", 1.0))
        self.padding_idx = inner.padding_idx

    def forward(self, ids: Tensor) -> Tensor:
        """[...] -> [..., D]."""
        new = (ids >= self.start) & (ids < self.start + len(self.rows))
        old = functional.embedding(ids.masked_fill(new, 0), self.weight)
        own = functional.embedding((ids - self.start).masked_fill(~new, 0), self.rows)
        out = torch.where(new.unsqueeze(-1), own, old)
        return out if self.scale == 1.0 else out * self.scale


class _Head(nn.Module):
    """The output head with further rows; not a linear module, so that no adapter is put on it."""

    def __init__(self, inner: nn.Linear, rows: Tensor | None, tied: _Embedding) -> None:
        super().__init__()
        self.weight, self.bias, self.start = inner.weight, inner.bias, tied.start
        self.rows = None if rows is None else nn.Parameter(rows)
        self._tied = (tied,)  # in a tuple: its parameters must not be registered twice

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V + added]."""
        rows = self._tied[0].rows if self.rows is None else self.rows
        logits, own = functional.linear(hidden, self.weight, self.bias), functional.linear(hidden, rows)
        stop = self.start + len(rows)
        if self.bias is not None and self.start < len(self.bias):
            spare = self.bias[self.start : stop]
            own = own + functional.pad(spare, (0, len(rows) - len(spare)))
        return torch.cat([logits[..., : self.start], own, logits[..., stop:]], dim=-1)


def _parts(model: Any) -> tuple[Any, Any, bool]:
    """The embedding, the output head, and whether they share a tensor."""
    inner, head = model.get_input_embeddings(), model.get_output_embeddings()
    plain = type(inner) is nn.Embedding or hasattr(inner, "scalar_embed_scale")
    if not plain or not isinstance(head, nn.Linear):
        raise ModelError(
            f"an embedding of class {type(inner).__name__} and a head of class {type(head).__name__}",
            "an ordinary embedding and a linear head", "new tokens cannot be trained in this model",
        )  # fmt: skip
    return inner, head, head.weight is inner.weight


def first_rows(subject: CausalLM, start: int, count: int, seed: int) -> NewRows:
    """Starting values: the mean of the rows below `start`, with noise of their spread, from the seed."""
    inner, head, tied = _parts(subject.model)
    generator = torch.Generator().manual_seed(seed)

    def rows(weight: Tensor) -> Tensor:
        used = weight.detach()[:start].float().cpu()
        noise = torch.randn((count, used.shape[1]), generator=generator) * used.std()
        return (used.mean(0) + noise).to(weight.device, weight.dtype)

    return NewRows(start, rows(inner.weight), None if tied else rows(head.weight))


@contextlib.contextmanager
def training_rows(subject: CausalLM, rows: NewRows) -> Iterator[NewRows]:
    """The model with trainable rows beside its embedding; on leaving, its own modules are back.

    Yields:
        The rows as the live parameters.
    """
    model = subject.model
    inner, head, _ = _parts(model)
    wide = _Embedding(inner, rows.embedding.clone(), rows.start)
    top = _Head(head, None if rows.head is None else rows.head.clone(), wide)
    model.set_input_embeddings(wide)
    model.set_output_embeddings(top)
    try:
        yield NewRows(rows.start, wide.rows, top.rows)
    finally:
        model.set_input_embeddings(inner)
        model.set_output_embeddings(head)


def write_rows(subject: CausalLM, rows: NewRows) -> None:
    """Write trained rows into the model, with more rows where it has too few."""
    inner, head, tied = _parts(subject.model)
    stop = rows.start + len(rows.embedding)
    _resize(subject.model, max(stop, inner.weight.shape[0]))
    with torch.no_grad():
        inner.weight[rows.start : stop] = rows.embedding.to(inner.weight)
        if not tied:
            assert rows.head is not None
            head.weight[rows.start : stop] = rows.head.to(head.weight)
    subject.changed()


def spare_rows(subject: CausalLM, start: int, count: int) -> NewRows:
    """What stands at the new tokens' ids before they are written; fewer than `count` rows, or none."""
    inner, head, tied = _parts(subject.model)
    old = slice(start, start + count)
    return NewRows(start, inner.weight.detach()[old].clone(), None if tied else head.weight.detach()[old].clone())


def take_rows_off(subject: CausalLM, size: int, before: NewRows) -> None:
    """Undo `write_rows`: the size that the embedding had, and what stood in spare rows."""
    inner, head, tied = _parts(subject.model)
    _resize(subject.model, size)
    old = slice(before.start, before.start + len(before.embedding))
    with torch.no_grad():
        inner.weight[old] = before.embedding.to(inner.weight.device)
        if not tied and before.head is not None:
            head.weight[old] = before.head.to(head.weight.device)
    subject.changed()


def _resize(model: Any, size: int) -> None:
    """Another number of rows; rows that stay keep their bits, and a parameter stays the object that it was."""
    inner, head, tied = _parts(model)
    if inner.weight.shape[0] == size:
        return

    def fitted(tensor: Tensor) -> Tensor:
        made = tensor.new_zeros((size, *tensor.shape[1:]))
        keep = min(size, len(tensor))
        made[:keep] = tensor[:keep]
        return made

    with torch.no_grad():
        inner.weight.data = fitted(inner.weight.data)
        if not tied:
            head.weight.data = fitted(head.weight.data)
        if head.bias is not None:
            head.bias.data = fitted(head.bias.data)
    inner.num_embeddings = head.out_features = size
    model.config.get_text_config().vocab_size = size
    if hasattr(model, "vocab_size"):
        model.vocab_size = size
