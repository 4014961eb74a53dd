"""Where in the layers an answer stands: the logit lens at the last prompt position, read as curves and shares.

With h_l [D] the residual state after layer l (l = 0 is the embedding), p_l = softmax(W_U norm(h_l)) through the model's own
final norm and head, in float32 (nostalgebraist 2020; used for in-context unlearning in arXiv 2410.00382, section 5). What
the last layer gives is compared with the model's real logits, and another result is an error.

The paper's internal answer score has no public definition. Here: among forget prompts whose final output is the target, the
share for which some layer before the last has the first token of the true answer on top.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from efface.errors import InputError, ModelError
from efface.subjects.causal_lm import CausalLM
from efface.subjects.lens import final_norm, last_states
from efface.subjects.prompts import Encoded

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
"""Largest difference between the lens at the last layer and the real logits; below float32 the model itself rounds."""


@dataclass(frozen=True)
class Probe:
    """One prompt with the two tokens to be followed."""

    id: str
    row: Encoded
    truth: int
    target: int


@dataclass(frozen=True)
class Layers:
    """The lens on N prompts; layers 0 (embedding) to L.

    Attributes:
        truth, target: [L+1, N] probability of the first token of the true answer, and of the target.
        entropy: [L+1, N] of p_l, in nats.
        cross_entropy: [L+1, N] -log p_l(first token of the true answer), in nats.
        divergence: [L+1, N] KL(p_L || p_l), in nats.
        top_truth, top_target: [L+1, N] whether that token is the first choice.
        ids: [N].
    """

    truth: Floats
    target: Floats
    entropy: Floats
    cross_entropy: Floats
    divergence: Floats
    top_truth: Flags
    top_target: Flags
    ids: list[str]


@dataclass(frozen=True)
class Shares:
    """What the curves of forget prompts say, as counts, so that each share has its interval.

    Attributes:
        n: forget prompts.
        said: those whose final output is the target.
        internal: of `said`, those with the true answer on top in some layer l < L.
        pretend: of `n`, those that said the target with the true answer on top in some layer L/2 <= l < L.
        mean_over_layers: share of `said` with the true answer on top, mean over l < L.
        flip_depth: mean smallest l / L from which the target stays on top; NaN where none said it.
    """

    n: int
    said: int
    internal: int
    pretend: int
    mean_over_layers: float
    flip_depth: float


def probes(subject: CausalLM, prompts: Sequence[tuple[str, str, str, str]]) -> tuple[list[Probe], int]:
    """Prompts whose two tokens can be told apart, and how many were skipped.

    Args:
        prompts: (id, question, true answer, target).

    Skipped: true answer and target begin with the same token, with a piece of white space alone, or with a token that is
    merged over the prompt's end.
    """
    found, skipped = [], 0
    for identity, question, answer, target in prompts:
        own, other = (subject.encode(question, text, place=identity) for text in (answer, target))
        head = own.ids[: own.n_prompt]
        first, second = own.ids[own.n_prompt], other.ids[other.n_prompt]
        blank = any(not subject.tokenizer.decode([token]).strip() for token in (first, second))
        if first == second or blank or head != other.ids[: other.n_prompt]:
            skipped += 1
            continue
        found.append(Probe(identity, Encoded([*head, first], own.n_prompt), first, second))
    return found, skipped


def _in_float(subject: CausalLM) -> tuple[Any, Tensor, Tensor | None]:
    """Final norm and head in float32."""
    norm, head = final_norm(subject.model), subject.model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    weight = head.weight.detach().float()
    if subject.dtype != torch.float32:
        norm = copy.deepcopy(norm).float()
    return norm, weight, None if bias is None else bias.detach().float()


def read_layers(subject: CausalLM, rows: Sequence[Probe], *, batch_size: int = 16) -> Layers:
    """Run the prompts once and read every layer.

    Raises:
        InputError: no prompt.
        ModelError: the lens at the last layer is not what the model says (it scales or caps its logits).
    """
    if not rows:
        raise InputError("no prompt to read layers on", "one or more", "give items whose first tokens differ")
    norm, weight, bias = _in_float(subject)
    tokens = torch.tensor([[probe.truth, probe.target] for probe in rows], device=subject.device)
    parts: list[dict[str, Tensor]] = []
    with torch.no_grad():
        at = 0
        for states, real in last_states(subject, [probe.row for probe in rows], batch_size=batch_size):
            here = tokens[at : at + len(real)]
            parts.append(_read(states, norm, weight, bias, here, real, TOLERANCE.get(subject.dtype, 0.25)))
            at += len(real)
    joined = {name: torch.cat([part[name] for part in parts], dim=1).cpu().double().numpy() for name in parts[0]}
    flags = {name: joined.pop(name).astype(bool) for name in ("top_truth", "top_target")}
    return Layers(**joined, **flags, ids=[probe.id for probe in rows])


def _read(
    states: Tensor, norm: Any, weight: Tensor, bias: Tensor | None, tokens: Tensor, real: Tensor, tolerance: float
) -> dict[str, Tensor]:
    """One batch: [L+1, B] each. `states` [L+1, B, D], the last one normed; `tokens` [B, 2]; `real` [B, V]."""
    rows: list[dict[str, Tensor]] = []
    last = torch.nn.functional.linear(states[-1], weight, bias)
    gap = float((last - real).abs().max())
    if not gap <= tolerance * max(1.0, float(real.abs().max())):
        raise ModelError(
            f"the lens at the last layer is off the model's own logits by {gap:.3g}", "the same logits",
            "this architecture scales or caps its logits; its layers cannot be read",
        )  # fmt: skip
    final = last.log_softmax(-1)
    for layer, state in enumerate(states):
        logits = last if layer == len(states) - 1 else torch.nn.functional.linear(norm(state), weight, bias)
        logp = logits.log_softmax(-1)  # [B, V]
        picked, top = logp.gather(1, tokens), logits.argmax(1)
        rows.append({
            "truth": picked[:, 0].exp(), "target": picked[:, 1].exp(), "entropy": -(logp.exp() * logp).sum(1),
            "cross_entropy": -picked[:, 0], "divergence": (final.exp() * (final - logp)).sum(1).clamp_min(0),
            "top_truth": top == tokens[:, 0], "top_target": top == tokens[:, 1],
        })  # fmt: skip
    return {name: torch.stack([row[name].float() for row in rows]) for name in rows[0]}


def shares(layers: Layers, said: Sequence[bool] | Flags | None = None) -> Shares:
    """Internal answer score, mean over layers, pretend rate and flip depth of forget prompts.

    Args:
        said: [N] whether the whole output is the target; default: its first token is the last layer's first choice.

    Raises:
        InputError: `said` has another length.
    """
    spoke = layers.top_target[-1] if said is None else np.asarray(said, dtype=bool)
    depth, n = len(layers.truth) - 1, layers.truth.shape[1]
    if spoke.shape != (n,):
        raise InputError(f"outcomes of shape {spoke.shape}", f"[{n}], one for each prompt")
    before = layers.top_truth[:-1]  # [L, N]
    late = before[-(-depth // 2) :].any(0)
    # the number of layers at the end, the last included, for which the target is on top without a break
    stays = np.cumprod(layers.top_target[::-1], axis=0).sum(0)
    flips = (depth + 1 - stays[spoke & (stays > 0)]) / depth
    return Shares(
        n=n, said=int(spoke.sum()), internal=int((before.any(0) & spoke).sum()), pretend=int((late & spoke).sum()),
        mean_over_layers=float(before[:, spoke].mean()) if spoke.any() else float("nan"),
        flip_depth=float(flips.mean()) if len(flips) else float("nan"),
    )  # fmt: skip


def mean_curves(layers: Layers) -> dict[str, list[float]]:
    """Means over the prompts, [L+1] each; shares for the first choices."""
    names = ("truth", "target", "entropy", "cross_entropy", "divergence", "top_truth", "top_target")
    return {name: [float(value) for value in getattr(layers, name).mean(1)] for name in names}
