"""Corruptions of a prompt's embeddings: pure functions that ruin chosen rows and leave all others bit for bit.

Source: ECO, arXiv 2406.07933, section 3.3, and the kinds of the official code (`eco/attack/corrupt.py`). The noise of a prompt
comes from a generator made of the seed and the prompt's own tokens, so the same prompt is corrupted alike in every run, with
every neighbour in its batch and on either side of padding; two strengths differ by the factor alone.

Departures from the official code, and why: every kind touches the chosen positions only (there `set_rand_noise` also clears
the first numbers of all other positions, and `shuffle` and `reverse_order` move the whole sequence, its last token included);
nothing is changed in place; noise is drawn in float32 on the CPU, so that precision and device do not change it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from efface.errors import ConfigError, InputError
from efface.run.digests import canonical

Kind = Literal[
    "rand_noise_first_n", "rand_noise_rand_n", "rand_noise_top_k", "set_rand_noise_first_n", "zero_out_first_n",
    "zero_out_top_k", "flip_sign_first_n", "flip_sign_top_k", "shuffle", "reverse_order",
]  # fmt: skip
KINDS: tuple[str, ...] = get_args(Kind)
WITHOUT_STRENGTH = frozenset(
    {"zero_out_first_n", "zero_out_top_k", "flip_sign_first_n", "flip_sign_top_k", "shuffle", "reverse_order"}
)
"""Kinds that have no sigma, so there is nothing to search."""
WHOLE_ROWS = frozenset({"shuffle", "reverse_order"})
"""Kinds that have no n."""

Rows = Callable[[Tensor, int, Tensor, torch.Generator], Tensor]
"""(rows [m, d], n, sigma [] or [n], generator) -> [m, d], a new tensor."""


def request_generator(seed: int, ids: Sequence[int]) -> torch.Generator:
    """The generator of one prompt: of the seed and the prompt's token ids (padding left out), on the CPU."""
    raw = hashlib.sha256(canonical([seed, [int(i) for i in ids]])).digest()
    return torch.Generator().manual_seed(int.from_bytes(raw[:8], "big") >> 1)


def _noise(rows: Tensor, n: int, sigma: Tensor, generator: torch.Generator) -> Tensor:
    """[m, n] of N(0, sigma^2): the draw does not depend on sigma."""
    drawn = torch.randn(len(rows), n, generator=generator, dtype=torch.float32)
    return (drawn * sigma.float().cpu()).to(rows)


def _largest(rows: Tensor, n: int) -> Tensor:
    """[m, n] places of the n largest |e| of each row."""
    return rows.abs().topk(n, dim=1).indices


def _rand_noise_first_n(rows: Tensor, n: int, sigma: Tensor, generator: torch.Generator) -> Tensor:
    return torch.cat([rows[:, :n] + _noise(rows, n, sigma, generator), rows[:, n:]], dim=1)


def _rand_noise_rand_n(rows: Tensor, n: int, sigma: Tensor, generator: torch.Generator) -> Tensor:
    chosen = torch.randperm(rows.shape[1], generator=generator)[:n].to(rows.device)  # the same for all rows of a prompt
    return rows.index_add(1, chosen, _noise(rows, n, sigma, generator))


def _rand_noise_top_k(rows: Tensor, n: int, sigma: Tensor, generator: torch.Generator) -> Tensor:
    return rows.scatter_add(1, _largest(rows, n), _noise(rows, n, sigma, generator))


def _set_rand_noise_first_n(rows: Tensor, n: int, sigma: Tensor, generator: torch.Generator) -> Tensor:
    return torch.cat([_noise(rows, n, sigma, generator), rows[:, n:]], dim=1)


def _zero_out_first_n(rows: Tensor, n: int, sigma: Tensor, generator: torch.Generator) -> Tensor:
    return torch.cat([torch.zeros_like(rows[:, :n]), rows[:, n:]], dim=1)


def _zero_out_top_k(rows: Tensor, n: int, sigma: Tensor, generator: torch.Generator) -> Tensor:
    return rows.scatter(1, _largest(rows, n), 0.0)


def _flip_sign_first_n(rows: Tensor, n: int, sigma: Tensor, generator: torch.Generator) -> Tensor:
    return torch.cat([-rows[:, :n], rows[:, n:]], dim=1)


def _flip_sign_top_k(rows: Tensor, n: int, sigma: Tensor, generator: torch.Generator) -> Tensor:
    places = _largest(rows, n)
    return rows.scatter(1, places, -rows.gather(1, places))


def _shuffle(rows: Tensor, n: int, sigma: Tensor, generator: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=generator).to(rows.device)]


def _reverse_order(rows: Tensor, n: int, sigma: Tensor, generator: torch.Generator) -> Tensor:
    return rows.flip(0)


_RULES: dict[str, Rows] = {
    "rand_noise_first_n": _rand_noise_first_n, "rand_noise_rand_n": _rand_noise_rand_n,
    "rand_noise_top_k": _rand_noise_top_k, "set_rand_noise_first_n": _set_rand_noise_first_n,
    "zero_out_first_n": _zero_out_first_n, "zero_out_top_k": _zero_out_top_k, "flip_sign_first_n": _flip_sign_first_n,
    "flip_sign_top_k": _flip_sign_top_k, "shuffle": _shuffle, "reverse_order": _reverse_order,
}  # fmt: skip


def corrupted(
    embeddings: Tensor, where: Tensor, kind: str, n: int, sigma: Tensor | float, generator: torch.Generator
) -> Tensor:
    """The embeddings of one prompt with the chosen rows corrupted; a new tensor, all other rows bit for bit.

    Args:
        embeddings: [T, d].
        where: [T] bool.
        kind: one of `KINDS`.
        n: how many of the d numbers of a row (the first, random, or largest by absolute value).
        sigma: standard deviation of the noise: one, or [n], one for each of those numbers.
        generator: of the prompt; see `request_generator`.

    Raises:
        ConfigError: an unknown kind, or n larger than d.
        InputError: as many strengths as there are not numbers, or a negative one.
    """
    if kind not in _RULES:
        raise ConfigError(f"corruption '{kind}'", ", ".join(KINDS))
    check_width(kind, n, embeddings.shape[1])
    strength = torch.as_tensor(sigma, dtype=torch.float32).cpu()
    if strength.ndim and strength.shape != (n,):
        raise InputError(f"strengths {list(strength.shape)} for n={n}", "one, or n of them")
    if bool((strength < 0).any()):
        raise InputError(f"a strength of {float(strength.min()):g}", "a standard deviation of 0 or more")
    out = embeddings.clone()
    if bool(where.any()):
        out[where] = _RULES[kind](embeddings[where], n, strength, generator)
    return out


def check_width(kind: str, n: int, width: int) -> None:
    """Refuse an n that the embeddings do not have.

    Raises:
        ConfigError: n larger than the width.
    """
    if kind not in WHOLE_ROWS and n > width:
        raise ConfigError(f"n={n} on embeddings of {width} numbers", f"at most {width}", "lower n")


def rms(embeddings: Tensor) -> float:
    """Root mean square of embeddings, any shape: what a strength is to be compared with."""
    return float(embeddings.detach().float().square().mean().sqrt())


__all__ = ["KINDS", "WHOLE_ROWS", "WITHOUT_STRENGTH", "Kind", "check_width", "corrupted", "request_generator", "rms"]
