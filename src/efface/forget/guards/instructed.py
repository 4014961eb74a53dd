"""The same tokens with an instruction before them: the inputs of a further pass beside the base's own.

LOL (arXiv 2408.08769) compares what a model says with and without an instruction at every step. Its rows are longer than the
base's, and padding may stand on either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def instructed(given: dict[str, Any], start: int, instruction: Sequence[int], bos: int | None) -> dict[str, Any]:
    """The inputs of a pass with an instruction before each row's first token, or after its beginning token.

    Args:
        given: `input_ids` [B, T]; `attention_mask` [B, start + T] and `position_ids` [B, T], or none.
        start: tokens in the base's cache. From the second pass on the instruction is in the cache already.
        instruction: n token ids.
        bos: stays before the instruction where it begins a row.

    Returns:
        The same with n more columns in the mask, and in ids and positions of a first pass. The last T positions of
        the result predict what the T positions given did.
    """
    ids, n = given["input_ids"], len(instruction)
    mask, positions = given.get("attention_mask"), given.get("position_ids")
    found = dict(given)
    if mask is not None:  # one run of ones a row grows by n, wherever it begins
        first = mask.bool().int().argmax(1)
        found["attention_mask"] = _inserted(mask, first, torch.ones(n, dtype=mask.dtype, device=mask.device))
    else:
        first = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
    if start:
        if positions is not None:
            found["position_ids"] = positions + n
        return found
    if bos is not None:
        begins = ids.gather(1, first[:, None])[:, 0] == bos
        first = first + begins.long()
    found["input_ids"] = _inserted(ids, first, torch.tensor(instruction, dtype=ids.dtype, device=ids.device))
    if positions is not None:
        positions = positions.expand(len(ids), -1)
        at = torch.arange(positions.shape[1], device=ids.device)
        steps = torch.arange(n, device=ids.device)
        # a row of a beginning token alone: what comes next stands one after it
        further = torch.cat([positions, positions[:, -1:] + 1], dim=1)
        begin = further.gather(1, first[:, None])
        shifted = positions + n * (at >= first[:, None])
        made = _inserted(shifted, first, torch.zeros(n, dtype=positions.dtype, device=ids.device))
        place = first[:, None] + steps
        found["position_ids"] = made.scatter(1, place, begin + steps)
    return found


def _inserted(rows: Tensor, first: Tensor, values: Tensor) -> Tensor:
    """[B, T] with n values put in before column first[b] of each row: [B, T + n]."""
    n, width = len(values), rows.shape[1]
    at = torch.arange(width + n, device=rows.device).expand(len(rows), -1)
    inside = at - first[:, None]
    source = torch.where(inside < 0, at, at - n).clamp(0, width - 1)
    made = rows.gather(1, source)
    return torch.where((inside >= 0) & (inside < n), values[inside.clamp(0, n - 1)], made)


__all__ = ["instructed"]
