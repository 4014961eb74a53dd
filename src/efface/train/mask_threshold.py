"""The k largest of billions of scores, exactly, without sorting them.

Two counting passes over the scores in pieces: the first counts the upper 16 bits of each score's order-preserving integer,
the second the lower 16 bits within the few bins where a threshold lies. Together they give the exact k-th largest float32
value for any number of k at once; equal scores are then taken by index, so that every count is met to the entry. Beyond the
scores themselves this needs memory for one piece, where sorting would take two 64-bit integers a weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from efface.errors import InputError

PIECE = 2**20
"""Scores that are looked at together."""

BINS = 2**16


class Cut(NamedTuple):
    """Selected are all keys above `key`, and of those equal to it the first `ties` in order."""

    key: int
    ties: int


def order_keys(scores: Tensor, *, largest: bool = True, name: str = "scores") -> Tensor:
    """Integers in [0, 2^32) in the order of the scores taken as float32.

    Args:
        scores: [n], any floating type; -0.0 counts as 0.0.
        largest: False turns the order round.

    Raises:
        InputError: a score is NaN or infinite.
    """
    x = scores.detach().to(torch.float32) + 0.0
    if not bool(torch.isfinite(x).all()):
        raise InputError(f"{name} hold NaN or infinity", "finite numbers", "check the model and the data")
    b = x.view(torch.int32)
    key = (b ^ ((b >> 31) & 0x7FFFFFFF)).to(torch.int64) + 2**31
    return key if largest else (2**32 - 1) - key


def _pieces(scores: Mapping[str, Tensor], largest: bool) -> Iterator[Tensor]:
    for name in scores:
        flat = scores[name].reshape(-1)
        for start in range(0, flat.numel(), PIECE):
            yield order_keys(flat[start : start + PIECE], largest=largest, name=f"scores of '{name}'")


def cuts(scores: Mapping[str, Tensor], counts: Sequence[int], *, largest: bool = True) -> list[Cut]:
    """Where to cut, for each number of entries to select.

    Args:
        scores: by name; read twice, one tensor at a time, so a mapping may compute them when asked.
        counts: numbers between 0 and that of all scores.
        largest: False selects the smallest.

    Raises:
        InputError: a score is NaN or infinite, or a count out of range.
    """
    high = torch.zeros(BINS, dtype=torch.int64)
    for key in _pieces(scores, largest):
        high += torch.bincount(key >> 16, minlength=BINS).cpu()
    total = int(high.sum())
    for count in counts:
        if not 0 <= count <= total:
            raise InputError(f"{count} of {total} scores", f"between 0 and {total}")
    above = total - high.cumsum(0)  # [bins] scores in higher bins
    places = {count: int(((above < count) & (count <= above + high)).int().argmax()) for count in counts if count}
    index = torch.full((BINS,), -1, dtype=torch.int64)
    used = sorted(set(places.values()))
    index[used] = torch.arange(len(used))
    low = torch.zeros(len(used) * BINS, dtype=torch.int64)
    for key in _pieces(scores, largest):
        slot = index.to(key.device)[key >> 16]
        inside = slot >= 0
        if bool(inside.any()):
            low += torch.bincount(slot[inside] * BINS + (key[inside] & (BINS - 1)), minlength=len(low)).cpu()
    low = low.view(len(used), BINS)
    found = []
    for count in counts:
        if not count:
            found.append(Cut(2**32, 0))
            continue
        place = places[count]
        row = low[int(index[place])]
        rest = count - int(above[place])  # to be taken within the bin
        over = int(row.sum()) - row.cumsum(0)
        at = int(((over < rest) & (rest <= over + row)).int().argmax())
        found.append(Cut((place << 16) | at, rest - int(over[at])))
    return found


def apply_cuts(
    scores: Mapping[str, Tensor], several: Sequence[Cut], *, largest: bool = True
) -> list[dict[str, Tensor]]:
    """The boolean masks of cuts, each by name, of the scores' shapes and on their devices; scores are read once for all."""
    left = [cut.ties for cut in several]
    found: list[dict[str, Tensor]] = [{} for _ in several]
    for name in scores:
        score = scores[name]
        flat = score.reshape(-1)
        masks = [torch.zeros(score.numel(), dtype=torch.bool, device=score.device) for _ in several]
        for start in range(0, flat.numel(), PIECE):
            key = order_keys(flat[start : start + PIECE], largest=largest)
            for i, cut in enumerate(several):
                part = key > cut.key
                if left[i]:
                    equal = key == cut.key
                    n = int(equal.sum())
                    if n:
                        part |= equal & (equal.cumsum(0) <= left[i])
                        left[i] -= min(left[i], n)
                masks[i][start : start + len(part)] = part
        for own, mask in zip(found, masks, strict=True):
            own[name] = mask.view(score.shape)
    return found
