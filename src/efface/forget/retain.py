"""Retain terms: what holds the rest of the model in place while a loss pushes the forget set away."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from efface.subjects.answers import AnswerLogits, answer_logits
from efface.subjects.learner import Learner
from efface.train.reference import reference_top_k, reference_values
from efface.train.streams import Stream


def nll(answer: AnswerLogits, token_share: Tensor) -> Tensor:
    """Mean negative log-probability over the answer tokens of the step; the RT term of NPO's paper.

    Args:
        answer: logits [B, T', V] with targets and mask [B, T'].
        token_share: [B] one over the number of answer tokens in the optimiser step.
    """
    return -(answer.logp_sum * token_share).sum()


def kl_to_reference(answer: AnswerLogits, ref_ids: Tensor, ref_logp: Tensor, token_share: Tensor) -> Tensor:
    """KL(p_ref || p_theta) at answer positions, mean over the answer tokens of the step.

    The reference is given by its k largest probabilities a position; all other tokens are one event whose mass is the
    rest on both sides. With k = V this is the exact KL; with k < V it is a lower bound (data processing inequality).
    The official code averages over prompt and padding as well; only answer positions count here.

    Args:
        answer: logits [B, T', V], mask [B, T'].
        ref_ids: [B, T', k] token ids.
        ref_logp: [B, T', k] log-probabilities under the reference.
        token_share: [B].
    """
    logq = answer.logits - answer.logits.logsumexp(-1, keepdim=True)  # [B, T', V]
    chosen = logq.gather(-1, ref_ids)  # [B, T', k]
    p = ref_logp.exp()
    kl = (p * (ref_logp - chosen)).sum(-1)  # [B, T']
    if ref_ids.shape[-1] < answer.logits.shape[-1]:
        tiny = torch.finfo(torch.float32).eps
        rest_p = (1 - p.sum(-1)).clamp_min(tiny)
        rest_q = (1 - chosen.exp().sum(-1)).clamp_min(tiny)
        kl = kl + rest_p * (rest_p.log() - rest_q.log())
    return (kl.masked_fill(~answer.mask, 0.0).sum(-1) * token_share).sum()


def retain_stream(kind: str, subject: Learner, rows: list[Any], top_k: int) -> Stream:
    """The retain rows with what the term needs: nothing for NLL, the reference's top-k, or its numbers, for KL."""
    if kind != "kl":
        return Stream(rows)
    if subject.kind == "regressor":
        return Stream(rows, extras={"ref_value": reference_values(subject, rows)})
    ids, logp = reference_top_k(subject, rows, top_k)
    return Stream(rows, extras={"ref_ids": ids, "ref_logp": logp})


def retain_loss(kind: str, model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The term of one retain batch."""
    answer = answer_logits(model, batch)
    if kind == "nll":
        return nll(answer, batch["token_share"])
    if "ref_value" in batch:  # two Gaussians of variance one
        kl: Tensor = 0.5 * (answer.values.squeeze(-1) - batch["ref_value"]).square()
        return (kl * batch["token_share"]).sum()
    return kl_to_reference(answer, batch["ref_ids"], batch["ref_logp"], batch["token_share"])
