"""Logits at answer positions, and log-probabilities from them, in float32 whatever the model's precision."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from efface.subjects.guarded import GuardedModel
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


class AnswerValues(NamedTuple):
    """Numbers that are predicted: each an answer of one token under a Gaussian of variance one.

    `values` and `targets` [B, 1] float32, `mask` [B, 1] bool, all true. Log-probabilities lack the constant
    -log(2 pi) / 2.
    """

    values: Tensor
    targets: Tensor
    mask: Tensor

    @property
    def token_logp(self) -> Tensor:
        """[B, 1]: -(y - target)^2 / 2."""
        return -0.5 * (self.values - self.targets).square()

    @property
    def logp_sum(self) -> Tensor:
        """[B]."""
        return self.token_logp.sum(-1)


def predicted(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """What a classifier or regressor says: [B, K] logits or [B, 1] numbers, float32.

    Args:
        model: a module of transformers, or any that takes one tensor and returns one.
        inputs: by name, or one tensor as `x`.
    """
    out = model(inputs["x"]) if set(inputs) == {"x"} else model(**inputs)
    found: Tensor = getattr(out, "logits", out)
    return found.float()


def sample_answers(said: Tensor, target: Tensor) -> AnswerLogits | AnswerValues:
    """Outputs and targets of a batch in the form of answers.

    Args:
        said: [B, K] logits, or [B, 1] numbers where the targets are numbers.
        target: [B] class indices (int64) or numbers.
    """
    mask = torch.ones(len(target), 1, dtype=torch.bool, device=said.device)
    if target.is_floating_point():
        return AnswerValues(said.view(len(target), 1), target.float().view(-1, 1), mask)
    return AnswerLogits(said.unsqueeze(1), target.view(-1, 1), mask)


def _takes(model: Any, argument: str) -> bool:
    inner = getattr(model, "get_base_model", lambda: model)()
    while hasattr(inner, "module"):  # a distributed wrapper
        inner = inner.module
        inner = getattr(inner, "get_base_model", lambda inner=inner: inner)()
    return argument in inspect.signature(inner.forward).parameters


def answer_logits(model: Any, batch: Mapping[str, Any]) -> Any:
    """One forward pass over a batch: `AnswerLogits`, or `AnswerValues` of a regressor.

    A class is an answer of one token, so that every objective on answers is one on classes too. Token batches are padded
    right.

    Only the positions from the first answer token on are projected on the vocabulary, where the architecture offers
    it (`logits_to_keep`): memory falls with the share of the prompt.

    Args:
        model: a causal LM, a classifier or a regressor.
        batch: `input_ids`, `attention_mask`, `labels`, each [B, T]; or `inputs` by name and `target` [B].
    """
    if "inputs" in batch:
        return sample_answers(predicted(model, batch["inputs"]), batch["target"])
    labels = batch["labels"]
    width = labels.shape[1]
    first = int(torch.ne(labels, IGNORED).int().argmax(1).min())  # smallest answer start, >= 1
    keep = width - first + 1
    inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    if _takes(model, "use_cache"):
        inputs["use_cache"] = False
    if isinstance(model, GuardedModel):
        inputs["prompt_lengths"] = torch.ne(labels, IGNORED).int().argmax(1)
    if _takes(model, "logits_to_keep"):
        logits = model(**inputs, logits_to_keep=keep).logits  # [B, keep, V]
    else:
        logits = model(**inputs).logits[:, -keep:]
    logits = logits[:, :-1].float()  # position t predicts t + 1: [B, T', V], T' = width - first
    labels = labels[:, first:]  # [B, T']
    mask = torch.ne(labels, IGNORED)
    return AnswerLogits(logits, labels.clamp_min(0), mask)
