"""Whether distance in a representation follows distance in a number: Spearman's rank correlation over pairs of items.

Used by SupReMix (arXiv 2309.16633) to say how ordered a space is: 1 where farther in number is always farther in space.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from efface.errors import InputError

PAIRS = 500_000
"""Pairs that are looked at, at most; of more, a draw."""


def ordinality(rows: Tensor, targets: Tensor, *, seed: int = 0, pairs: int = PAIRS) -> float:
    """Spearman correlation of Euclidean distance of rows and absolute difference of numbers, in [-1, 1].

    Args:
        rows: [N, D].
        targets: [N].
        seed: of the draw of pairs, where there are more than `pairs`.

    Raises:
        InputError: fewer than three rows, other shapes, values that are not finite, or all distances or all numbers equal.
    """
    if rows.ndim != 2 or targets.shape != rows.shape[:1] or len(rows) < 3:
        raise InputError(
            f"rows {list(rows.shape)} and targets {list(targets.shape)}", "[N, D] and [N] with N of 3 or more"
        )
    x, y = rows.detach().double().cpu(), targets.detach().double().cpu()
    if not (bool(torch.isfinite(x).all()) and bool(torch.isfinite(y).all())):
        raise InputError("rows or targets with NaN or infinity", "finite numbers", "drop or repair those rows")
    n = len(x)
    if n * (n - 1) // 2 <= pairs:
        i, j = torch.triu_indices(n, n, offset=1)
    else:
        rng = np.random.default_rng(seed)
        i = torch.from_numpy(rng.integers(0, n, pairs))
        j = (i + torch.from_numpy(rng.integers(1, n, pairs))) % n
    apart = torch.cat([(x[a] - x[b]).norm(dim=1) for a, b in zip(i.split(65536), j.split(65536), strict=True)])
    differ = (y[i] - y[j]).abs()
    if not (float(apart.max()) > float(apart.min()) and float(differ.max()) > float(differ.min())):
        raise InputError("all distances or all differences are equal", "some that differ", "look for a collapsed space")
    return float(spearmanr(apart.numpy(), differ.numpy()).statistic)
