"""Effective rank: how many directions a set of vectors really uses.

Paper: Roy and Vetterli, The effective rank, EUSIPCO 2007: exp of the Shannon entropy of the singular values, divided by
their sum. It is D where all directions carry the same, 1 where all rows lie on one line.
"""

from __future__ import annotations

import torch
from torch import Tensor

from efface.errors import InputError


def effective_rank(rows: Tensor, *, centre: bool = False) -> float:
    """exp(-sum p log p), p = singular values over their sum; in [1, min(N, D)].

    Args:
        rows: [N, D] real.
        centre: take the mean away first.

    Raises:
        InputError: no matrix, or all zeros, or NaN.
    """
    if rows.ndim != 2 or 0 in rows.shape:
        raise InputError(f"rows of shape {list(rows.shape)}", "[N, D]")
    x = rows.detach().double()
    values = torch.linalg.svdvals(x - x.mean(0) if centre else x)
    total = float(values.sum())
    if not total > 0 or not bool(torch.isfinite(values).all()):
        raise InputError("rows that are all equal to zero, or hold NaN", "vectors with a direction")
    p = values / total
    return float(torch.exp(-(p * p.clamp(min=1e-300).log()).sum()))
