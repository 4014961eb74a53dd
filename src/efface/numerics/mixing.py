"""Convex mixes of embeddings as candidates of a contrast: their logits from inner products, without the mixes themselves.

For constants u, v and a share a, the mix is h = a u + (1 - a) v, optionally divided by its length, and

    <q, h> = (a <q, u> + (1 - a) <q, v>) / |h|,   |h|^2 = a^2 |u|^2 + (1 - a)^2 |v|^2 + 2 a (1 - a) <u, v>.

MoCHi (arXiv 2010.01028) mixes queue entries and normalises; SupReMix (arXiv 2309.16633) mixes samples of a batch and does
not. Neither lets a gradient into a mix. Departure from the official code of SupReMix: it forms [N, N, N, D], 8.6 GB at
N = 256, D = 128; here nothing is larger than the logits. Mixes shorter than `SHORTEST` (of nearly opposite directions) are
divided by that instead of their length, so that they stay short and no number of them is a quotient of roundings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from efface.errors import InputError
from efface.numerics.masks import TILE, Mask, slices

SHORTEST = 1e-3
GATHERED = 2**22
"""Numbers that are gathered at once: 16 MB in float32."""


def mix(u: Tensor, v: Tensor, share: Tensor, *, normalise: bool) -> Tensor:
    """The mixes themselves, share u + (1 - share) v -> [..., D].

    Args:
        u, v: [..., D].
        share: [...] of u.
    """
    found = share[..., None] * u + (1 - share[..., None]) * v
    return found / found.norm(dim=-1, keepdim=True).clamp(min=SHORTEST) if normalise else found


def mix_square(share: Tensor, dots: Tensor) -> Tensor:
    """|h|^2 of mixes of unit vectors with inner products `dots`, [...]; not below 0."""
    return (share.square() + (1 - share).square() + 2 * share * (1 - share) * dots).clamp(min=0)


def mix_scores(first: Tensor, second: Tensor, share: Tensor, dots: Tensor | None = None) -> Tensor:
    """<q, h> of mixes of unit vectors, [...]; gradient flows through `first` and `second` only.

    Args:
        first, second: [...] <q, u> and <q, v>.
        share: [...] of u.
        dots: [...] <u, v>; with it the mixes are normalised, without it they are left as they are.
    """
    share = share.detach().to(first)
    found = share * first + (1 - share) * second
    if dots is None:
        return found
    return found / mix_square(share, dots.detach()).sqrt().clamp(min=SHORTEST)


def draw(generator: Generator, *size: int, like: Tensor, high: float = 1.0) -> Tensor:
    """Uniform in [0, high), drawn in float64 where the generator is and then brought to `like`'s type and device."""
    found = torch.rand(*size, generator=generator, device=generator.device, dtype=torch.float64)
    return (high * found).to(like)


def draw_beta(generator: Generator, *size: int, a: float, b: float) -> Tensor:
    """Draws of Beta(a, b), float64 [size] on the CPU.

    torch draws gammas from its global generator only, so numpy draws, seeded by the generator.
    """
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return torch.from_numpy(np.random.default_rng(seed).beta(a, b, size))


def seeded(seed: int, step: int) -> Generator:
    """The generator of a step of a run: a resumed run draws what the killed one would have drawn."""
    mixed = np.random.SeedSequence([seed, step, 0x313C]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed((int(mixed[0]) << 31) ^ int(mixed[1]))


def hardest(
    q: Tensor, keys: Tensor, count: int, *, exclude: Mask | None = None, tile: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The keys with the highest inner products of each row, without gradient and tile by tile.

    Args:
        q: [B, D].
        keys: [K, D].
        count: N, how many of each row.
        exclude: [B, K] pairs that do not count.

    Returns:
        scores [B, N] in falling order (-inf where a row has fewer), their places [B, N], and how many each row has [B].

    Raises:
        InputError: fewer than N keys.
    """
    if not 1 <= count <= len(keys):
        raise InputError(f"the {count} hardest of {len(keys)} keys", "as many keys or more", "lower `hard`")
    if exclude is not None:
        exclude.check(len(q), len(keys))
    every, places = [], []
    with torch.no_grad():
        for rows in slices(len(q), tile or TILE):
            scores = q.new_empty(rows.stop - rows.start, 0)
            index = torch.empty(*scores.shape, dtype=torch.int64, device=q.device)
            for cols in slices(len(keys), tile or 8 * TILE):
                new = q[rows] @ keys[cols].T
                if exclude is not None and not exclude.empty(rows, cols):
                    new = new.masked_fill(exclude.tile(rows, cols, q.device), -torch.inf)
                own = torch.arange(cols.start, cols.stop, device=q.device).expand_as(new)
                scores, index = torch.cat([scores, new], 1), torch.cat([index, own], 1)
                scores, best = scores.topk(min(count, scores.shape[1]), dim=1)
                index = index.gather(1, best)
            every.append(scores)
            places.append(index)
    found = torch.cat(every)
    return found, torch.cat(places), torch.isfinite(found).sum(1)


def gathered_scores(q: Tensor, keys: Tensor, places: Tensor) -> Tensor:
    """<q_i, keys[places_is]> -> [B, S] with gradient to q, in parts: no [B, S, D] is kept.

    Args:
        q: [B, D].
        keys: [K, D] constants.
        places: [B, S] of the keys.
    """
    found: Tensor = _Gathered.apply(q, keys.detach(), places)  # type: ignore[no-untyped-call]
    return found


def gathered_dots(keys: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """<keys[first_is], keys[second_is]> -> [B, S], a constant."""
    found = keys.new_empty(first.shape)
    with torch.no_grad():
        for rows in _parts(first, keys):
            found[rows] = (keys[first[rows]] * keys[second[rows]]).sum(2)
    return found


def _parts(places: Tensor, keys: Tensor) -> list[slice]:
    """Slices of the rows, each of about `GATHERED` numbers."""
    if not places.numel():
        return []
    return list(slices(len(places), max(1, GATHERED // (places.shape[1] * keys.shape[1]))))


class _Gathered(torch.autograd.Function):
    """Inner products with gathered rows; both passes gather part by part."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, keys: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(keys, places)
        found = q.new_empty(places.shape)
        with torch.autocast(q.device.type, enabled=False):
            for rows in _parts(places, keys):
                found[rows] = torch.einsum("bd,bsd->bs", q[rows], keys[places[rows]].to(q))
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        keys, places = ctx.saved_tensors
        (grad,) = grads
        found = grad.new_zeros(len(grad), keys.shape[1])
        with torch.autocast(grad.device.type, enabled=False):
            for rows in _parts(places, keys):
                found[rows] = torch.einsum("bs,bsd->bd", grad[rows], keys[places[rows]].to(grad))
        return found, None, None
