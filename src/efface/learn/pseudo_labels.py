"""Clusters of embeddings, and groups of items that agree in several clusterings (MCL, arXiv 2402.11816)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from torch import Tensor

from efface.errors import InputError

LARGE = 100_000
"""Above so many items the clusters are found by mini-batches."""


def cluster(rows: Tensor, clusters: int, seed: int) -> Tensor:
    """[n] int64 k-means clusters of unit rows [n, D].

    Raises:
        InputError: fewer rows than clusters.
    """
    if len(rows) < clusters:
        raise InputError(f"{len(rows)} items for {clusters} clusters", "one item a cluster or more", "lower clusters")
    if len(rows) > LARGE:
        model: Any = MiniBatchKMeans(clusters, max_iter=100, batch_size=LARGE, tol=1e-5, n_init=3, random_state=seed)
    else:
        model = KMeans(clusters, n_init=10, random_state=seed)
    return torch.as_tensor(model.fit_predict(rows.double().numpy()), dtype=torch.int64)


def pseudo_labels(clusterings: Sequence[Tensor], clusters: int) -> Tensor:
    """u [n] int64 of clusterings [n] with values in 0..K-1, the first the most significant; zeros of none is an error.

    Raises:
        InputError: no clustering, unequal lengths, values out of range, or more codes than an int64 holds.
    """
    if not clusterings or len({len(one) for one in clusterings}) != 1:
        raise InputError(f"clusterings of lengths {[len(one) for one in clusterings]}", "one or more of one length")
    if clusters ** len(clusterings) >= 2**63:
        raise InputError(
            f"{len(clusterings)} clusterings of {clusters}", "codes below 2^63", "fewer stages or clusters"
        )
    u = torch.zeros_like(clusterings[0])
    for one in clusterings:
        if bool((one < 0).any()) or bool((one >= clusters).any()):
            raise InputError(f"clusters from {int(one.min())} to {int(one.max())}", f"0 to {clusters - 1}")
        u = u * clusters + one
    return u


def sizes_of(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The groups that there are [G], the place of each item's among them [n], and their sizes [G]."""
    names, places, sizes = groups.unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    return names, places, sizes


def merged(groups: Tensor, rows: Tensor, least: int) -> Tensor:
    """[n] groups in which each of fewer than `least` items went to the usable one with the nearest centroid.

    Args:
        groups: [n] int64.
        rows: [n, D] unit rows, whose means are the centroids.
        least: items of a usable group.
    """
    names, places, sizes = sizes_of(groups)
    usable = sizes >= least
    if not bool(usable.any()):
        return groups
    centroids = torch.zeros(len(names), rows.shape[1]).index_add_(0, places, rows) / sizes[:, None]
    goal = torch.arange(len(names))
    kept = goal[usable]
    goal[~usable] = kept[torch.cdist(centroids[~usable], centroids[usable]).argmin(1)]
    found: Tensor = names[goal[places]]
    return found


def coverage(groups: Tensor, batch_size: int) -> float:
    """Share of the items whose group fills a batch."""
    sizes = sizes_of(groups)[2]
    return float(sizes[sizes >= batch_size].sum()) / len(groups)
