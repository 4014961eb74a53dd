"""Logits at answer positions, and log-probabilities from them, in float32 whatever the model's precision."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from efface.subjects.prompts import IGNORED


class AnswerLogits(NamedTuple):
    """Logits of the tokens that are predicted.

    `logits` [B, T', V] float32, `targets` [B, T'] (0 where not a target), `mask` [B, T'] bool.
    """

    logits: Tensor
    targets: Tensor
    mask: Tensor

    @property
    def token_logp(self) -> Tensor:
        """[B, T'] log p(target), 0 outside the mask."""
        picked = self.logits.gather(-1, self.targets.unsqueeze(-1)).squeeze(-1)
        logp = picked - self.logits.logsumexp(-1)
        return logp.masked_fill(~self.mask, 0.0)

    @property
    def logp_sum(self) -> Tensor:
        """[B] log-probability of the whole answer, in nats."""
        return self.token_logp.sum(-1)


def _takes(model: Any, argument: str) -> bool:
    inner = getattr(model, "get_base_model", lambda: model)()
    while hasattr(inner, "module"):  # a distributed wrapper
        inner = inner.module
        inner = getattr(inner, "get_base_model", lambda inner=inner: inner)()
    return argument in inspect.signature(inner.forward).parameters


def answer_logits(model: Any, batch: Mapping[str, Tensor]) -> AnswerLogits:
    """One forward pass over a right-padded batch.

    Only the positions from the first answer token on are projected on the vocabulary, where the architecture offers
    it (`logits_to_keep`): memory falls with the share of the prompt.

    Args:
        model: a causal LM.
        batch: `input_ids`, `attention_mask`, `labels`, each [B, T].
    """
    labels = batch["labels"]
    width = labels.shape[1]
    first = int(torch.ne(labels, IGNORED).int().argmax(1).min())  # smallest answer start, >= 1
    keep = width - first + 1
    inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if _takes(model, "use_cache"):
        inputs["use_cache"] = False
    if _takes(model, "logits_to_keep"):
        logits = model(**inputs, logits_to_keep=keep).logits  # [B, keep, V]
    else:
        logits = model(**inputs).logits[:, -keep:]
    logits = logits[:, :-1].float()  # position t predicts t + 1: [B, T', V], T' = width - first
    labels = labels[:, first:]  # [B, T']
    mask = torch.ne(labels, IGNORED)
    return AnswerLogits(logits, labels.clamp_min(0), mask)
