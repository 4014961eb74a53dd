"""Concept vectors as a ruler: did unlearning change the weights that write the concept, or only the answers?

ConceptVectors (Hong et al., arXiv 2406.11614). For a value vector v before and v' after, with T(v) the K tokens that it
promotes most: Jaccard(T(v), T(v')), cosine, L2 distance, and the related-token rate, the share of the tokens of T(v) that
stand in the concept's article and survive in T(v'). Behaviour: BLEU (smoothing method 3) and ROUGE-L F of the edited model's
answers against the original's, not against gold.

Departures: tokens are projected through the final norm's gain; each model's own E is used as in the official code, and the
figure with the first model's E for both stands beside it, because with tied embeddings T(v) moves when E trains; both ends
of the token list are compared; BLEU takes the original's answer as the reference (the official code the unlearned one's:
`published_direction`). A kept vector does not prove kept knowledge, nor a changed one its removal: read it with behaviour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from datasets import Dataset
from torch import Tensor

from efface.audit.finding import Estimate
from efface.audit.metrics.bleu import bleu
from efface.audit.metrics.intervals import bootstrap_mean
from efface.audit.metrics.text import rouge
from efface.errors import InputError, RequestError
from efface.measure.value_vectors import Place, vectors_at
from efface.subjects.causal_lm import CausalLM
from efface.subjects.lens import top_tokens, vocabulary_projection

Floats = npt.NDArray[np.float64]
TOP = 200
"""The paper's K."""


@dataclass(frozen=True)
class Captured:
    """What a model's value vectors are and write; N vectors.

    Attributes:
        places: which vectors.
        vectors: [N, d].
        top, bottom: [N, K] tokens under the model's own E.
        top_on_other: [N, K] under another model's E, where one was given.
        head: [V, d] output embedding, kept so that a later capture can be projected on it.
    """

    places: list[Place]
    vectors: Tensor
    top: Tensor
    bottom: Tensor
    top_on_other: Tensor | None
    head: Tensor


def capture(
    subject: CausalLM, places: Sequence[Place], *, k: int = TOP, before: Captured | None = None
) -> Captured:  # fmt: skip
    """Take the vectors of a model as it is now; everything is copied, so the model may be edited afterwards.

    Args:
        places: layer and column of each vector.
        k: tokens in a list; at most the vocabulary.
        before: a capture of the first model, whose E is used for `top_on_other`.

    Raises:
        ConfigError: a place that the model lacks.
        InputError: no places, or a capture of other places or another vocabulary.
    """
    if not places:
        raise InputError("no value vectors to look at", "one or more", "locate them first")
    if before is not None and list(before.places) != list(places):
        raise InputError("a capture of other vectors", "the same places in the same order")
    vectors = vectors_at(subject, places)
    logits = vocabulary_projection(subject, vectors)
    k = min(k, logits.shape[1])
    other = None
    if before is not None:
        if before.head.shape != subject.model.get_output_embeddings().weight.shape:
            raise InputError("a capture of a model with another vocabulary or width", "two states of one model")
        other = top_tokens(vocabulary_projection(subject, vectors, head=before.head), k)
    head = subject.model.get_output_embeddings().weight.detach().cpu().clone()
    return Captured(
        list(places), vectors, top_tokens(logits, k), top_tokens(logits, k, bottom=True), other, head
    )  # fmt: skip


@dataclass(frozen=True)
class Intrinsic:
    """One number a vector, [N] each, and NaN where there is none.

    Attributes:
        jaccard: of the top tokens, each model with its own E.
        jaccard_first_head: the second model's vectors under the first one's E.
        jaccard_bottom: of the bottom tokens, own E.
        cosine, l2: of v and v'.
        related: share of the related tokens of T(v) that survive; NaN without an article or a related token.
    """

    jaccard: Floats
    jaccard_first_head: Floats
    jaccard_bottom: Floats
    cosine: Floats
    l2: Floats
    related: Floats

    def means(self, *, seed: int = 0) -> dict[str, Estimate]:
        """Mean over the vectors of each score that exists, with a bootstrap interval over vectors."""
        rows = {name: values[np.isfinite(values)] for name, values in vars(self).items()}
        return {name: bootstrap_mean(values, seed=seed) for name, values in rows.items() if len(values)}


def jaccard(first: Tensor, second: Tensor) -> Floats:
    """[N] |A and B| / |A or B| of the tokens in the rows of [N, K] and [N, K]."""
    both = np.array(
        [len(set(a) & set(b)) for a, b in zip(first.tolist(), second.tolist(), strict=True)], dtype=np.float64
    )
    result: Floats = both / (first.shape[1] + second.shape[1] - both)
    return result


def intrinsic(before: Captured, after: Captured, *, article: Sequence[int] | None = None) -> Intrinsic:
    """All scores of a model pair.

    Args:
        before: of the original model.
        after: of the edited one, captured with `before=before`.
        article: token ids of the concept's article, for the related-token rate (`article_tokens`).

    Raises:
        InputError: captures of other places or lengths, or `after` made without `before`.
        RequestError: an empty article.
    """
    if before.places != after.places or before.top.shape != after.top.shape or after.top_on_other is None:
        raise InputError("captures that do not belong together", "capture(edited, places, before=first)")
    if article is not None and not len(article):
        raise RequestError("an empty article", "the concept's article as tokens", "leave it out if there is none")
    v, w = before.vectors.double(), after.vectors.double()
    norms = (v.norm(dim=1) * w.norm(dim=1)).clamp_min(1e-300)
    cosine = ((v * w).sum(1) / norms).numpy()
    related = np.full(len(v), np.nan)
    if article is not None:
        words = set(article)
        for i, (a, b) in enumerate(zip(before.top.tolist(), after.top.tolist(), strict=True)):
            own = set(a) & words
            if own:
                related[i] = len(own & set(b)) / len(own)
    return Intrinsic(
        jaccard=jaccard(before.top, after.top), jaccard_first_head=jaccard(before.top, after.top_on_other),
        jaccard_bottom=jaccard(before.bottom, after.bottom), cosine=cosine, l2=(v - w).norm(dim=1).numpy(), related=related,
    )  # fmt: skip


def article_tokens(subject: CausalLM, text: str) -> list[int]:
    """The distinct token ids of an article.

    Raises:
        RequestError: an empty article.
    """
    if not text.strip():
        raise RequestError("an empty article", "the text about the concept")
    return sorted(set(subject.tokenizer(text, add_special_tokens=False)["input_ids"]))


@dataclass(frozen=True)
class Behaviour:
    """How far the edited model still says what the original said; low is forgotten on the concept, high good elsewhere.

    `empty` counts answers without a word, whose scores are 0 unless both are empty.
    """

    bleu: Estimate
    rouge_l: Estimate
    empty: int


def behaviour(
    edited: Sequence[str], original: Sequence[str], *, published_direction: bool = False, seed: int = 0
) -> Behaviour:  # fmt: skip
    """Mean BLEU and ROUGE-L F of the edited model's answers against the original's.

    Args:
        published_direction: the edited model's answer as BLEU's reference, as in the official code.

    Raises:
        InputError: no answers, or lists of different lengths.
    """
    if not edited or len(edited) != len(original):
        raise InputError(f"{len(edited)} answers and {len(original)} of the original", "as many, one or more")
    pairs = list(zip(edited, original, strict=True))
    scores = [bleu(o, e) if published_direction else bleu(e, o) for e, o in pairs]
    overlaps = [
        1.0 if e.split() == o.split() else rouge(e, o).rougeL_f1 if e.strip() and o.strip() else 0.0 for e, o in pairs
    ]
    return Behaviour(
        bootstrap_mean(scores, seed=seed), bootstrap_mean(overlaps, seed=seed),
        sum(not e.strip() or not o.strip() for e, o in pairs),
    )  # fmt: skip


def answers(subject: CausalLM, data: Dataset, *, max_new_tokens: int = 100, batch_size: int = 32) -> list[str]:
    """Greedy answers in the model's own prompt format (paper: 100 new tokens), padded left, prompts cut off by length."""
    prompts = subject.encode_prompts(data)
    return [
        subject.decode(made)
        for made in subject.generate_all(prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
    ]


__all__ = [
    "Behaviour", "Captured", "Intrinsic", "answers", "article_tokens", "behaviour", "capture", "intrinsic", "jaccard",
]  # fmt: skip
