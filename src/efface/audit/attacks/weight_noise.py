"""Small accidents to the weights, and what changed in them.

A fact that a little noise or the loss of a few random weights brings back was not gone (tests T9 and T10 of the unlearning
taxonomy, arXiv 2506.09227). The weight trace compares models by entries sampled at the same places of every matrix, so that
no second model need be in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from efface.subjects.causal_lm import CausalLM
from efface.subjects.prompts import Encoded
from efface.subjects.quantise import linear_weights
from efface.train.reference import answer_probabilities
from efface.train.snapshot import Snapshot

NOISE, PRUNED = 0.05, 0.02
"""Standard deviation of the noise over that of each matrix, and the share of weights that are set to zero."""

SAMPLED = 256
"""Entries of each matrix in the trace."""


def shaken(weight: Tensor, generator: torch.Generator) -> Tensor:
    """The matrix with Gaussian noise of `NOISE` of its own deviation."""
    noise = torch.randn(weight.shape, generator=generator)
    return weight + (noise * NOISE * weight.float().std().cpu()).to(weight.device, weight.dtype)


def thinned(weight: Tensor, generator: torch.Generator) -> Tensor:
    """The matrix with a random `PRUNED` of its entries at zero."""
    return weight.masked_fill((torch.rand(weight.shape, generator=generator) < PRUNED).to(weight.device), 0.0)


def accidents(subject: CausalLM, rows: Sequence[Encoded], seed: int) -> dict[str, list[float]]:
    """`noise` and `prune`: [N] probability of every answer afterwards; the subject comes back bit for bit."""
    weights, _ = linear_weights(subject.model)
    found: dict[str, list[float]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="efface-noise-") as folder,
        Snapshot(weights, Path(folder) / "base.safetensors") as base,
    ):
        for name, change in (("noise", shaken), ("prune", thinned)):
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for weight in weights.values():
                    weight.copy_(change(weight, generator))
            found[name] = answer_probabilities(subject, rows)
            base.restore()
    return found


def trace(subject: CausalLM) -> dict[str, list[float]]:
    """By matrix: entries at places that hang on its shape alone."""
    weights, _ = linear_weights(subject.model)
    found = {}
    for name, weight in weights.items():
        places = torch.randint(weight.numel(), (SAMPLED,), generator=torch.Generator().manual_seed(weight.numel()))
        found[name] = weight.detach().reshape(-1)[places.to(weight.device)].float().cpu().tolist()
    return found


def relative_change(before: dict[str, list[float]], after: dict[str, list[float]]) -> dict[str, float]:
    """By matrix of both: the estimate of |after - before| / |before| from the sampled entries."""
    found = {}
    for name in before:
        if name in after and len(before[name]) == len(after[name]):
            x, y = torch.tensor(before[name], dtype=torch.float64), torch.tensor(after[name], dtype=torch.float64)
            found[name] = float((y - x).norm() / x.norm().clamp_min(1e-12))
    return found


__all__ = ["NOISE", "PRUNED", "SAMPLED", "accidents", "relative_change", "shaken", "thinned", "trace"]
