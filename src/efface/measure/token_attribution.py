"""Integrated gradients of an answer's log-probability on the input embeddings: which of its words the model leans on.

Sundararajan et al., arXiv 1703.01365, as Concept poisoning (arXiv 2405.15662) uses it on causal language models. With
embeddings e [T, d], a baseline e' that differs from e on chosen positions only, and F(e) the sum over the answer's tokens of
log p(x_t | x_<t) under teacher forcing,

    a_i = sum over dimensions of (e_i - e'_i) * (1/S) sum_s dF/de_i at e' + alpha_s (e - e'),   alpha_s = (s - 1/2) / S

Their sum is F(e) - F(e') up to the rule's error, O(1/S^2) at the midpoints, which is reported with every attribution. The sum
over the path is captum's (`riemann_middle`); the extra `attribution` brings it.

Departures from the official code: midpoints (gradients at both endpoints with full weight have an error of O(1/S)); float32
alone (half precision breaks completeness); the baseline is the padding token's embedding, the mean embedding or the zero vector,
said by name (token 0 may be a real word). Zero is no good for models with RMS norms: the norm makes F a step at the path's start,
which no even grid sees. The embedding of the answer's last token has no later token to speak for: its a_i is 0.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from efface.errors import InputError, MissingExtraError, ModelError, RequestError
from efface.subjects.causal_lm import CausalLM
from efface.subjects.prompts import Encoded

Baseline = Literal["zero", "mean", "pad"]
STEPS = 32
"""Official code."""
CHUNK = 32
"""Points of the path in one forward pass."""
_WORD = re.compile(r"\w+(?:['’-]\w+)*")


@dataclass(frozen=True)
class TokenAttribution:
    """Of one row of T tokens.

    Attributes:
        scores: [T] a_i, float32; 0 where the baseline equals the input.
        reached: F(e) in nats.
        start: F(e').
    """

    scores: Tensor
    reached: float
    start: float

    @property
    def error(self) -> float:
        """Completeness: sum of a_i minus F(e) - F(e'), in nats."""
        return float(self.scores.double().sum()) - (self.reached - self.start)

    @property
    def relative_error(self) -> float:
        """|error| as a share of |F(e) - F(e')|; 0 where both are 0."""
        change = abs(self.reached - self.start)
        return abs(self.error) / change if change > 0 else float("inf") if self.error else 0.0


def integrated_gradients(
    subject: CausalLM, row: Encoded, *, steps: int = STEPS, baseline: Baseline = "pad",
    positions: Iterable[int] | None = None, chunk: int = CHUNK,
) -> TokenAttribution:  # fmt: skip
    """Attribution of the answer's log-probability to its own tokens, or to chosen ones.

    Args:
        row: prompt and answer.
        steps: S, at least 2.
        baseline: what stands at the chosen positions at the path's start.
        positions: where it stands; default: the answer's.
        chunk: points of the path in one pass; no figure depends on it beyond rounding.

    Raises:
        MissingExtraError: captum is not installed.
        ModelError: weights in half precision, or no padding token for `pad`.
        InputError: fewer than two steps, or a position outside the row.
    """
    if steps < 2 or chunk < 1:
        raise InputError(f"steps={steps}, chunk={chunk}", "two steps or more, one point in a pass or more")
    if subject.dtype != torch.float32:
        raise ModelError(
            f"integrated gradients of '{subject.source}' in {str(subject.dtype).removeprefix('torch.')}",
            "float32: half precision breaks completeness", "load it with dtype=float32",
        )  # fmt: skip
    chosen = sorted(set(range(row.n_prompt, row.n_tokens) if positions is None else positions))
    if not chosen or chosen[0] < 0 or chosen[-1] >= row.n_tokens:
        raise InputError(f"positions {chosen[:3]} of {row.n_tokens} tokens", "one or more inside the row")
    method = _captum()
    ids = torch.tensor(row.ids, device=subject.device)
    with subject.evaluating() as model:
        table = model.get_input_embeddings()
        e = table(ids).detach()[None]  # [1, T, d]
        start = e.clone()
        start[0, chosen] = _baseline(subject, table, baseline)

        def answer_logp(points: Tensor) -> Tensor:
            """[B] F of embeddings [B, T, d]."""
            return _answer_logp(model, points, ids, row.n_prompt)

        with torch.enable_grad():
            scores = method(answer_logp).attribute(
                e, start, n_steps=steps, method="riemann_middle", internal_batch_size=chunk
            )
        ends = answer_logp(torch.cat([e, start]))
    return TokenAttribution(scores.detach()[0].sum(-1).cpu(), float(ends[0]), float(ends[1]))


def _captum() -> Any:
    try:
        return importlib.import_module("captum.attr").IntegratedGradients
    except ImportError as error:
        raise MissingExtraError(
            "integrated gradients need captum, which is not installed",
            "captum 0.8",
            "pip install 'efface[attribution]'",
        ) from error


def _baseline(subject: CausalLM, table: Any, kind: Baseline) -> Tensor:
    """[d]."""
    if kind == "zero":
        return torch.zeros_like(table.weight[0])
    if kind == "mean":
        mean: Tensor = table(torch.arange(len(table.weight), device=table.weight.device)).mean(0)
        return mean
    known = subject.tokenizer.pad_token_id
    if known is None:
        raise ModelError(f"'{subject.source}' has no padding token", "one, for baseline=pad", "use baseline=zero")
    own: Tensor = table(torch.tensor(known, device=table.weight.device))
    return own


def _answer_logp(model: Any, points: Tensor, ids: Tensor, n_prompt: int) -> Tensor:
    mask = torch.ones(points.shape[:2], dtype=torch.long, device=points.device)
    logits = model(inputs_embeds=points, attention_mask=mask, use_cache=False).logits[
        :, n_prompt - 1 : -1
    ]  # [B, T', V]
    answer = ids[n_prompt:].expand(len(points), -1).unsqueeze(-1)  # [B, T', 1]
    found: Tensor = (logits.gather(-1, answer).squeeze(-1) - logits.logsumexp(-1)).sum(-1)
    return found


# -- words ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WordAttribution:
    """Of one answer: `words` in order with their scores, and what the tokens gave."""

    words: tuple[tuple[str, float], ...]
    tokens: TokenAttribution


def answer_words(
    subject: CausalLM,
    question: str,
    answer: str,
    *,
    steps: int = STEPS,
    baseline: Baseline = "pad",
    place: str = "row",
) -> WordAttribution:
    """Attribution of an answer by its words: the sum over a word's tokens.

    A token that reaches over several words counts for each by the share of characters.

    Raises:
        RequestError: no word in the answer, or one that the prompt format does not leave as it is.
        ModelError: a tokenizer without offsets; otherwise as `integrated_gradients`.
    """
    if not getattr(subject.tokenizer, "is_fast", False):
        raise ModelError("a tokenizer without character offsets", "a fast tokenizer", "load one with use_fast=True")
    row = subject.encode(question, answer, place=place)
    whole = subject.prompt.whole_text(subject.tokenizer, question, answer)
    begin = whole.rfind(answer)
    found = [(match.group(), match.start() + begin, match.end() + begin) for match in _WORD.finditer(answer)]
    if begin < 0 or not found:
        what = "is changed by the prompt format" if begin < 0 else "has no word"
        raise RequestError(f"{place}: the answer {what}", "words to attribute to", "drop the row, or use style=idk")
    plain = subject.prompt.style == "plain"
    offsets = subject.tokenizer(whole, add_special_tokens=plain, return_offsets_mapping=True)["offset_mapping"]
    tokens = integrated_gradients(subject, row, steps=steps, baseline=baseline)
    scores = tokens.scores.tolist()
    totals = [0.0] * len(found)
    for score, (low, high) in zip(scores, offsets, strict=False):  # an end token stands after the last offset
        shares = [max(0, min(high, end) - max(low, start)) for _, start, end in found]
        for place_, share in enumerate(shares):
            if share:
                totals[place_] += score * share / sum(shares)
    return WordAttribution(tuple((word, total) for (word, _, _), total in zip(found, totals, strict=True)), tokens)


def top_words(attributions: Sequence[WordAttribution], k: int) -> tuple[str, ...]:
    """The k words with the largest scores summed over answers, whatever their case; the first seen of equals."""
    totals: dict[str, float] = {}
    for one in attributions:
        for word, score in one.words:
            totals[word.casefold()] = totals.get(word.casefold(), 0.0) + score
    return tuple(_largest(totals, k))


def _largest(totals: Mapping[str, float], k: int) -> list[str]:
    return sorted(totals, key=lambda word: -totals[word])[:k]  # stable: first seen of equals


__all__ = [
    "STEPS", "Baseline", "TokenAttribution", "WordAttribution", "answer_words", "integrated_gradients", "top_words",
]  # fmt: skip
