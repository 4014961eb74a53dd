"""Contrastive decoding: scores of the next token from an expert and what it should not resemble, as pure functions.

CD (Li et al., arXiv 2210.15097) subtracts a weaker model, DoLa (Chuang et al., arXiv 2309.03883) a lower layer of the same one,
ICD (Zhang et al., arXiv 2312.15710) a copy made to hallucinate, and LOL (Chen et al., arXiv 2408.08769) the same copy at two
layers, with an instruction's effect added. b is the base, a the amateur; every argument is [..., V] log-probabilities, and the
scores are no log-probabilities.

Departures from the official codes, and why: both sides are log-softmaxed first (without a filter the codes subtract raw
logits of two scales); the plausibility mask is each row's own (DoLa's code takes row 0's for the batch) and comes after the
subtraction (-inf minus -inf is no number); DoLa's divergence is Jensen-Shannon's (`compat` for the code's).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from efface.errors import ConfigError

SCORING, GENERATING = -1000.0, -math.inf
"""What an implausible token gets where answers are scored, and where they are generated."""


def plausible(logp: Tensor, alpha: float) -> Tensor:
    """V_head, [..., V] bool: p(v) >= alpha max p. The likeliest token is always in it; a token of probability 0 never is.

    Args:
        logp: [..., V] of the base.
        alpha: in [0, 1]; 0 keeps every token that has a probability.
    """
    top = logp.max(-1, keepdim=True).values
    kept = torch.isfinite(logp)
    return kept & (logp >= top + math.log(alpha)) if alpha > 0 else kept


def masked(scores: Tensor, kept: Tensor, value: float) -> Tensor:
    """The scores with `value` outside V_head, [..., V]."""
    return torch.where(kept, scores, torch.full_like(scores, value))


def contrast(logp_b: Tensor, logp_a: Tensor, *, relu: bool = False) -> Tensor:
    """log p_b - log p_a, [..., V].

    Args:
        relu: only what the amateur holds likelier counts: -relu(log p_a - log p_b), the rule of Who's Harry Potter.
    """
    return -torch.relu(logp_a - logp_b) if relu else logp_b - logp_a


def divergence(logp: Tensor, logq: Tensor, *, compat: bool = False) -> Tensor:
    """Jensen-Shannon divergence of two distributions in nats, [...]: symmetric, 0 to ln 2.

    Args:
        compat: what DoLa's code computes: the two KL(M || .) in place of KL(. || M), as means over the vocabulary.
    """
    log_m = torch.logaddexp(logp, logq) - math.log(2)
    if compat:
        return 0.5 * (_kl(log_m, logp) + _kl(log_m, logq)).mean(-1)
    return 0.5 * (_kl(logp, log_m) + _kl(logq, log_m)).sum(-1)


def _kl(logp: Tensor, logq: Tensor) -> Tensor:
    """The terms of KL(p || q), [..., V]; 0 log 0 = 0."""
    p = logp.exp()
    return torch.where(p > 0, p * (logp - logq), torch.zeros_like(p))


def farthest_layer(logp_b: Tensor, exits: Tensor, *, compat: bool = False) -> Tensor:
    """DoLa's premature layer, [...]: the index of the candidate that diverges most from the last layer, each row's own.

    Args:
        logp_b: [..., V] after the last layer.
        exits: [L, ..., V] at the candidates.
    """
    return torch.stack([divergence(logp_b, each, compat=compat) for each in exits]).argmax(0)


def at_layer(exits: Tensor, choice: Tensor) -> Tensor:
    """The exit that each row has chosen: [L, ..., V] and [...] -> [..., V]."""
    index = choice[None, ..., None].expand(1, *exits.shape[1:])
    return exits.gather(0, index).squeeze(0)


def icd_scores(
    logp_b: Tensor, logp_a: Tensor, *, keep: float = 0.0, strength: float = 1.0, relu: bool = False
) -> Tensor:
    """keep log p_b + strength (log p_b - log p_a), [..., V]. CD, and ICD's code: keep 0, strength 1.

    `keep` 1 is the form for unlearning: where the two models agree, the base's distribution is left as it is. ICD's
    paper has beta log p_b - log p_a, which is keep = beta - 1.
    """
    return keep * logp_b + strength * contrast(logp_b, logp_a, relu=relu)


def dola_scores(logp_b: Tensor, exits: Tensor, *, keep: float = 0.0, compat: bool = False) -> Tensor:
    """keep log p_b + log p_b - log p_b^M, with M each row's farthest candidate, [..., V].

    Args:
        exits: [L, ..., V] at the candidates.
    """
    return keep * logp_b + logp_b - at_layer(exits, farthest_layer(logp_b, exits, compat=compat))


def lol_scores(
    last: Tensor, low_b: Tensor | None, low_a: Tensor | None, told: Tensor | None, logp_b: Tensor, *,
    omega: float, gamma: float, relu: bool = False,
) -> Tensor:  # fmt: skip
    """ICD's scores + omega (log p_b^l - log p_a^l) + gamma (log p_b(. | s, x) - log p_b(. | x)), [..., V].

    Args:
        last: [..., V] `icd_scores`; with omega = gamma = 0 they are returned as they are.
        low_b, low_a: [..., V] at the lower layer; needed where omega is not 0.
        told: [..., V] with the instruction; needed where gamma is not 0.
    """
    scores = last
    if omega:
        assert low_b is not None
        assert low_a is not None
        scores = scores + omega * contrast(low_b, low_a, relu=relu)
    if gamma:
        assert told is not None
        scores = scores + gamma * (told - logp_b)
    return scores


def candidate_layers(text: str, depth: int) -> tuple[int, ...]:
    """DoLa's candidates: 0 is the embedding, `depth` the last layer (which is no candidate).

    Args:
        text: `low` (every second layer of the lower half from 0 on), `high` (of the upper half), or numbers: '0,2,4'.
        depth: layers of the model.

    Raises:
        ConfigError: none, or one that is no early exit.
    """
    if text in ("low", "high"):
        half = depth // 2
        found = tuple(range(0, half, 2) if text == "low" else range(half, depth, 2))
    else:
        try:
            found = tuple(sorted({int(part) for part in text.split(",")}))
        except ValueError as error:
            raise ConfigError(f"candidates='{text}'", "low, high or numbers such as 0,2,4", "mend it") from error
    if not found or not all(0 <= layer < depth for layer in found):
        raise ConfigError(f"candidates='{text}' of a model of {depth} layers", f"0 to {depth - 1}", "name early layers")
    return found


__all__ = [
    "GENERATING", "SCORING", "at_layer", "candidate_layers", "contrast", "divergence", "dola_scores", "farthest_layer",
    "icd_scores", "lol_scores", "masked", "plausible",
]  # fmt: skip
