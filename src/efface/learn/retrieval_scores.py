"""Exact search for labels, and what the field reads off it: P@k, propensity-scored P@k, nDCG@k, recall@k, R-precision.

Sources: the Extreme Classification Repository's definitions (binary relevance); propensities of Jain et al., KDD 2016. P@k of
a query with fewer than k labels cannot reach 1: read R-precision beside it. Ties are in the order of `torch.topk`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from efface.errors import InputError

PROPENSITY = (0.55, 1.5)
"""A and B of Jain et al.; the repository takes 0.5, 0.4 for Wikipedia and 0.6, 2.6 for Amazon."""


def search(queries: Tensor, labels: Tensor, k: int, *, chunk: int = 65536) -> tuple[Tensor, Tensor]:
    """The k labels of largest inner product, exactly: scores and places, [N, k] each, best first.

    Args:
        queries: [N, D].
        labels: [L, D].
        k: at most L.
        chunk: labels in one product, so that no [N, L] matrix is held.

    Raises:
        InputError: shapes that do not fit, or k outside 1..L.
    """
    if queries.ndim != 2 or labels.ndim != 2 or queries.shape[1] != labels.shape[1]:
        raise InputError(f"queries {list(queries.shape)} and labels {list(labels.shape)}", "[N, D] and [L, D]")
    if not 1 <= k <= len(labels):
        raise InputError(f"the best {k} of {len(labels)} labels", f"1 to {len(labels)}")
    best, places = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
    places = places.to(queries.device)
    for start in range(0, len(labels), chunk):
        scores = queries @ labels[start : start + chunk].T
        found, here = scores.topk(min(k, scores.shape[1]), dim=1)
        best, places = torch.cat([best, found], dim=1), torch.cat([places, here + start], dim=1)
        best, kept = best.topk(min(k, best.shape[1]), dim=1)
        places = places.gather(1, kept)
    return best, places


def propensities(counts: Tensor, rows: int, a: float = PROPENSITY[0], b: float = PROPENSITY[1]) -> Tensor:
    """[L] chance that a true label was noted: 1 / (1 + C exp(-a log(N_l + b))), C = (log N - 1) (b + 1)^a.

    Args:
        counts: [L] training rows of each label.
        rows: N training rows.
        a, b: of the data set.
    """
    c = (math.log(max(rows, 3)) - 1) * (b + 1) ** a
    found: Tensor = 1 / (1 + c * (counts.double() + b) ** -a)
    return found


def retrieval_scores(
    found: Tensor, relevant: Sequence[Sequence[int]], *, at: Sequence[int] = (1, 3, 5), propensity: Tensor | None = None
) -> dict[str, float]:
    """Means over the queries.

    Args:
        found: [N, K] places of the labels found, best first, none twice in a row.
        relevant: the places of each query's right labels; queries without any are left out and counted.
        at: the k; K must reach the largest, and the largest number of right labels (for R-precision).
        propensity: [L], for `psp@k`: sum over the right labels among the k of 1 / propensity, over its largest possible sum.

    Returns:
        `p@k`, `ndcg@k`, `recall@k`, `psp@k` for each k, `r-precision`, and `left_out`.

    Raises:
        InputError: shapes that do not fit, too few labels found, or no query with labels.
    """
    if found.ndim != 2 or len(found) != len(relevant):
        raise InputError(f"{list(found.shape)} labels found for {len(relevant)} queries", "[N, K] and N lists")
    rows = [row for row, labels in enumerate(relevant) if len(labels)]
    if not rows:
        raise InputError("no query with a right label", "one or more")
    right = [set(relevant[row]) for row in rows]
    n = torch.tensor([len(labels) for labels in right])
    need = max(max(at), int(n.max()))
    if found.shape[1] < need:
        raise InputError(f"{found.shape[1]} labels found a query", f"{need} or more", "search for more labels")
    places = found[rows].tolist()
    hits = torch.tensor([
        [label in labels for label in line] for line, labels in zip(places, right, strict=True)
    ], dtype=torch.float64)  # fmt: skip
    ranks = torch.arange(1, found.shape[1] + 1, dtype=torch.float64)
    discount = 1 / (ranks + 1).log2()
    result: dict[str, float] = {}
    for k in at:
        top = hits[:, :k]
        result[f"p@{k}"] = float(top.mean())
        result[f"recall@{k}"] = float((top.sum(1) / n).mean())
        ideal = discount[:k].cumsum(0)[n.clamp(max=k) - 1]
        result[f"ndcg@{k}"] = float(((top * discount[:k]).sum(1) / ideal).mean())
        if propensity is not None:
            value = 1 / propensity.double()
            got = (top * value[torch.tensor(places)[:, :k]]).sum()
            best = sum(float(value[list(labels)].sort(descending=True).values[:k].sum()) for labels in right)
            result[f"psp@{k}"] = float(got) / best
    result["r-precision"] = float(((hits * (ranks <= n[:, None])).sum(1) / n).mean())
    result["left_out"] = float(len(relevant) - len(rows))
    return result


__all__ = ["propensities", "retrieval_scores", "search"]
