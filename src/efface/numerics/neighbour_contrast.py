"""Alignment with neighbours and uniformity without them: the two terms of BECLR on unit rows.

Paper: Poulakakis-Daktylidis and Jamali-Rad, arXiv 2402.02444, equations 3 to 5. Both terms are given twice: as the authors'
code has them, row by row over a batch that was made longer by neighbours, and as the text means them, with neighbours as
targets of their anchor and never its negatives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from efface.errors import InputError
from efface.numerics.contrast import shape


def target_cosines(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean cosine of each prediction with its targets, [b]; no gradient into the targets.

    Args:
        predictions: [b, D] unit rows.
        targets: [b, m, D] unit rows.

    Raises:
        InputError: shapes that do not fit.
    """
    if targets.ndim != 3 or predictions.shape != (len(targets), targets.shape[2]):
        raise InputError(f"targets {shape(targets)} for predictions {shape(predictions)}", "[b, m, D] and [b, D]")
    return torch.einsum("bd,bmd->b", predictions, targets.detach()) / targets.shape[1]


def paired_uniformity(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """log mean_r 1 / (2n - 2) sum_{r' not r, not its other view} exp(<z_r, z_r'> / T), [].

    Args:
        first, second: [n, D] unit rows of both views, n of 2 or more; row i of both are one pair.
        temperature: T.

    Raises:
        InputError: shapes that do not fit, T <= 0.
    """
    _check(first, second, temperature)
    z = torch.cat([first, second])
    own = torch.eye(len(first), dtype=torch.bool, device=z.device).repeat(2, 2)
    return _log_mean(z @ z.T, own, temperature)


def uniformity_without_neighbours(
    first: Tensor, second: Tensor, ids: Tensor, extra: Tensor, extra_ids: Tensor, temperature: float
) -> Tensor:
    """log mean_i mean_{r not of i's item, nor of its neighbours' items} exp(<z_i, z_r> / T), [].

    The anchors i are the rows of both views; the candidates r are these rows and all neighbours. It goes by items, not rows:
    a neighbour's item may be in the batch too, and a neighbour of another row may be an earlier copy of the anchor. An anchor
    whose every candidate is left out takes no part.

    Args:
        first, second: [B, D] unit rows of both views, B of 2 or more.
        ids: [B] integer, the item of each row.
        extra: [2, B, k, D] unit rows, the neighbours of both views' rows; no gradient flows into them.
        extra_ids: [2, B, k] integer, their items.
        temperature: T.

    Raises:
        InputError: shapes that do not fit, T <= 0.
    """
    _check(first, second, temperature)
    count, width = first.shape
    fits = extra.ndim == 4 and extra.shape[:2] == (2, count) and extra.shape[3] == width
    if not fits or extra_ids.shape != extra.shape[:3] or ids.shape != (count,):
        raise InputError(
            f"neighbours {shape(extra)} of items {shape(extra_ids)} for rows {shape(first)} of items {shape(ids)}",
            "[2, B, k, D], [2, B, k], [B, D] and [B]",
        )
    z = torch.cat([first, second])
    items = torch.unique(torch.cat([ids, ids, extra_ids.reshape(-1)]), return_inverse=True)[1]  # [2B + 2Bk]
    mine = torch.cat([items[:count, None], items[2 * count :].view(2, count, -1).transpose(0, 1).flatten(1)], 1)
    member = torch.zeros(count, int(items.max()) + 1, dtype=torch.bool, device=z.device).scatter_(1, mine, True)
    candidates = torch.cat([z, extra.detach().reshape(-1, width)])
    return _log_mean(z @ candidates.T, member[:, items].repeat(2, 1), temperature)


def _log_mean(cosines: Tensor, out: Tensor, temperature: float) -> Tensor:
    """log of the mean over rows of the mean of exp(cosine / T) over what is not `out`."""
    some = ~out.all(1)
    if not bool(some.any()):
        return 0 * cosines.sum()
    out = out[some]
    kept = (cosines[some] / temperature).masked_fill(out, -torch.inf)
    means = kept.logsumexp(1) - (~out).sum(1).to(kept).log()
    return means.logsumexp(0) - math.log(len(means))


def _check(first: Tensor, second: Tensor, temperature: float) -> None:
    if first.ndim != 2 or first.shape != second.shape or len(first) < 2:
        raise InputError(f"views {shape(first)} and {shape(second)}", "one shape [n, D] with n of 2 or more")
    if not temperature > 0:
        raise InputError(f"temperature {temperature}", "a number above 0")
