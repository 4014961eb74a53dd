"""Which MLP value vectors write a concept: by attribution on prompts, or by the words that they promote.

Column j of layer l's down-projection, v_j, is added to the residual stream k_j(x) times (Geva et al., arXiv 2012.14913), and
E (w * v_j) says which tokens it promotes, with w the final norm's gain. ConceptVectors (arXiv 2406.11614) finds by hand one
vector a concept in 7B models; small models spread a concept over tens, so everything here ranks, and callers say how many.
A concept may also be written negatively, by k_j < 0 or at the bottom of the list: attribution counts the product, and the
word score looks at both ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from efface.errors import ConfigError, RequestError
from efface.subjects.causal_lm import CausalLM
from efface.subjects.hooks import Site, at_positions, layers_of, recorded, value_matrix
from efface.subjects.lens import vocabulary_projection
from efface.subjects.prompts import Encoded, pad
from efface.subjects.spans import name_tokens


class Place(NamedTuple):
    """A value vector: layer l and column j."""

    layer: int
    dim: int


def parse_places(text: str) -> list[Place]:
    """'3:17,4:2' as places.

    Raises:
        ConfigError: not of that form, or one named twice.
    """
    found = []
    for part in text.split(","):
        layer, colon, dim = part.strip().partition(":")
        if not (colon and layer.isdigit() and dim.isdigit()):
            raise ConfigError(f"vectors='{text}'", "layer:column pairs such as '3:17,4:2'")
        found.append(Place(int(layer), int(dim)))
    if len(set(found)) < len(found):
        raise ConfigError(f"vectors='{text}'", "each vector once")
    return found


def value_vector(subject: CausalLM, place: Place) -> Tensor:
    """v_j of layer l, [d]: a view of the live weights, writable under `torch.no_grad`.

    Raises:
        ConfigError: no such layer or column.
        ModelError: an architecture without a known down-projection.
    """
    matrix = value_matrix(subject.model, place.layer)
    if not 0 <= place.dim < matrix.shape[1]:
        raise ConfigError(f"value vector {place.dim} of layer {place.layer}", f"0 to {matrix.shape[1] - 1}")
    return matrix[:, place.dim]


def vectors_at(subject: CausalLM, places: Sequence[Place]) -> Tensor:
    """[N, d] copies of the vectors, float32 on the CPU. Raises as `value_vector`."""
    return torch.stack([value_vector(subject, place).detach().float().cpu() for place in places])


def attribution(subject: CausalLM, rows: Sequence[Encoded], *, batch_size: int = 32) -> list[Tensor]:
    """Mean over rows of k_j(x) (E (w * v_j))[answer] at the last prompt token; one [h] float32 tensor a layer.

    Args:
        rows: prompts with the answer whose first token counts.

    Raises:
        RequestError: no rows.
    """
    if not rows:
        raise RequestError("no prompt to attribute", "one or more that ask for the concept")
    depth = len(layers_of(subject.model))
    answers = torch.tensor([row.ids[row.n_prompt] for row in rows])
    used, which = torch.unique(answers, return_inverse=True)
    head = subject.model.get_output_embeddings().weight[used.to(subject.device)]
    writes = [
        vocabulary_projection(subject, value_matrix(subject.model, layer).detach().T, head=head)
        for layer in range(depth)
    ]  # [h, U] each
    totals = [torch.zeros(len(write)) for write in writes]
    sites = [Site("keys", layer) for layer in range(depth)]
    with subject.evaluating() as model, recorded(model, sites) as found:
        for start in range(0, len(rows), batch_size):
            chunk = rows[start : start + batch_size]
            batch = pad([row.ids[: row.n_prompt] for row in chunk], subject.pad_id, side="right")
            model(**{name: tensor.to(subject.device) for name, tensor in batch.items()}, use_cache=False)
            at = torch.tensor([row.n_prompt - 1 for row in chunk])
            for layer, site in enumerate(sites):
                k = at_positions(found[site], at).float().cpu()  # [B, h]
                totals[layer] += (k * writes[layer].T[which[start : start + len(chunk)]]).sum(0)
    return [total / len(rows) for total in totals]


def ranked(scores: Sequence[Tensor], layers: Sequence[int] | None = None) -> list[Place]:
    """All vectors by falling score, ties by place.

    Args:
        scores: [h] for every layer of the model.
        layers: only these.
    """
    chosen = range(len(scores)) if layers is None else layers
    rows = [(-float(score), Place(layer, j)) for layer in chosen for j, score in enumerate(scores[layer].tolist())]
    return [place for _, place in sorted(rows)]


def word_tokens(subject: CausalLM, words: Sequence[str]) -> list[int]:
    """One token a word, in the spelling after a space where there are two.

    Raises:
        RequestError: no words, or one that is not a single token of the vocabulary.
    """
    found = []
    for word in words:
        spellings = name_tokens(subject.tokenizer, word)
        single = [ids[0] for ids in spellings if len(ids) == 1 and ids[0] != subject.tokenizer.unk_token_id]
        if not single:
            raise RequestError(
                f"the concept word '{word}' is {len(spellings[-1])} tokens or unknown", "a word that is one token",
                "choose another word, or use attribution",
            )  # fmt: skip
        found.append(single[-1])
    if not found:
        raise RequestError("no concept words", "one or more")
    return found


@dataclass(frozen=True)
class WordScores:
    """How clearly the vectors of a layer write a word list; [h] each.

    `top` counts words among the largest logits, `bottom` among the smallest; `strong` marks those whose mean logit is not
    among the lowest of the layer, which ConceptVectors drops.
    """

    top: Tensor
    bottom: Tensor
    strong: Tensor


def word_scores(subject: CausalLM, layer: int, words: Sequence[str], *, k: int = 200, drop: float = 0.3) -> WordScores:
    """z-scored (mean logit of the words - mean logit of all) x share of the words among the k top tokens.

    The stand-in for the official rating of top tokens by a strong language model.

    Args:
        k: length of the token list (paper: 200); at most the vocabulary.
        drop: share of vectors with the lowest mean logit that are not `strong` (paper: about 0.3).

    Raises:
        RequestError: a word that is no single token.
        ConfigError: no such layer.
    """
    tokens = torch.tensor(word_tokens(subject, words))
    logits = vocabulary_projection(subject, value_matrix(subject.model, layer).detach().T)  # [h, V]
    mean = logits.mean(1)
    above = logits[:, tokens].mean(1) - mean
    z = (above - above.mean()) / above.std().clamp_min(1e-12)
    k = min(k, logits.shape[1])
    shares = [
        torch.isin(logits.topk(k, dim=1, largest=largest).indices, tokens).sum(1) / len(tokens)
        for largest in (True, False)
    ]
    cut = mean.sort().values[int(drop * len(mean))]
    return WordScores(z * shares[0], -z * shares[1], mean >= cut)
