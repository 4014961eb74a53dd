"""A memory of embeddings that is split into clusters while it moves: DyCE, the dynamic clustered memory.

Paper: BECLR, Poulakakis-Daktylidis and Jamali-Rad, arXiv 2402.02444, section 4.1. The newest M rows wait in a ring with a
cluster's number each; a batch is shared evenly among the P prototypes by optimal transport and put over the oldest rows;
each prototype then is the mean of its rows. A row's neighbours are looked up in the cluster of its nearest prototype.

Departures from the official code: distances enter the transport with a minus sign (there, by default, a row goes to the
*farthest* prototypes that have room; `metric="released"` keeps that for comparison); eps is honoured; rows are stored at
unit length; the ring wraps without dropping rows; the search is one masked product; a row's own item (the copy that was
just put in, its other view, and older copies) is no neighbour of it, which with the right sign would be the nearest.
"""

from __future__ import annotations

import warnings
from typing import Literal

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from efface.errors import ConfigError, InputError
from efface.learn.memory.queue import FeatureQueue
from efface.numerics.transport import balanced_codes

Metric = Literal["euclidean", "cosine", "released"]
RESTARTS = 10


class ClusteredMemory(nn.Module):
    """The newest M unit rows [M, D], their items' ids and their clusters; all of it is in the state_dict.

    With several processes, give the gathered rows, so that every process holds the same memory.

    Args:
        size: M.
        width: D.
        clusters: P.
        eps: entropy of the assignment, in units of the metric.
        iterations: of Sinkhorn.
        metric: the assignment prefers a small `euclidean` distance, a large `cosine`, or a large distance (`released`).
        every: epochs between two clusterings by k-means.
        momentum: of the prototypes' moving average; 0 replaces them.
        seed: of k-means.

    Raises:
        ConfigError: a size that is not positive, or fewer rows than clusters.
    """

    prototypes: Tensor
    epoch: Tensor
    clusterings: Tensor
    kept: Tensor

    def __init__(
        self, size: int, width: int, clusters: int, *, eps: float = 0.1, iterations: int = 10, metric: Metric = "euclidean",
        every: int = 60, momentum: float = 0.0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if not 2 <= clusters <= size:
            raise ConfigError(f"{clusters} clusters in a memory of {size} rows", "from 2 to its rows")
        self.ring = FeatureQueue(size, width, labels=True)
        self.clusters, self.eps, self.iterations, self.metric = clusters, eps, iterations, metric
        self.every, self.momentum, self.seed = every, momentum, seed
        self.register_buffer("prototypes", torch.zeros(clusters, width))
        self.register_buffer("epoch", torch.full((), -1, dtype=torch.int64))  # of the last clustering
        self.register_buffer("clusterings", torch.zeros((), dtype=torch.int64))
        self.register_buffer("kept", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        """Rows held now, at most M."""
        return len(self.ring)

    @property
    def ready(self) -> bool:
        """Whether there are clusters, which is from the moment when the memory is full for the first time."""
        return int(self.clusterings) > 0

    @property
    def labels(self) -> Tensor:
        """[M] the cluster of each row, -1 while there is none."""
        assert self.ring.labels is not None
        return self.ring.labels

    @torch.no_grad()
    def push(self, rows: Tensor, ids: Tensor, epoch: int = 0) -> None:
        """Put a batch in, with its clusters; k-means when it is full for the first time, and every so many epochs.

        Args:
            rows: [b, D] embeddings; they are put to unit length.
            ids: [b] integer, the item of each.
            epoch: the present one, from 0.

        Raises:
            InputError: shapes that do not fit, or rows that are not finite.
        """
        if rows.ndim != 2 or not bool(torch.isfinite(rows).all()):
            raise InputError(f"embeddings of shape {list(rows.shape)}", f"finite numbers [b, {self.ring.width}]")
        unit = nn.functional.normalize(rows.to(self.ring.keys), dim=1)
        if not self.ready:
            self.ring.enqueue(unit, ids, torch.full_like(ids, -1))
            if len(self.ring) == self.ring.size:
                self._cluster(epoch)
            return
        due = (self.every > 0 and epoch % self.every == 0) or len(torch.unique(self.labels)) < 2
        if due and epoch != int(self.epoch):
            self._cluster(epoch)
        self.ring.enqueue(unit, ids, self.assign(unit))
        self._move_prototypes()

    def assign(self, unit: Tensor) -> Tensor:
        """[b] the cluster of each unit row [b, D], shared evenly over the batch."""
        cosines = unit @ nn.functional.normalize(self.prototypes, dim=1).T
        distances = (2 - 2 * cosines).clamp(min=0).sqrt()
        scores = {"euclidean": -distances, "cosine": cosines, "released": distances}[self.metric]
        return balanced_codes(scores, eps=self.eps, iterations=self.iterations).argmax(1)

    def _cluster(self, epoch: int) -> None:
        """k-means on all rows; fewer clusters than asked for (equal rows) leave the old ones where there are any."""
        rows = self.ring.keys.cpu().numpy()
        model = KMeans(self.clusters, n_init=RESTARTS, random_state=(self.seed + int(self.clusterings)) % 2**32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct rows than clusters: counted in `kept`
            found = model.fit_predict(rows)
        self.epoch.fill_(epoch)
        if self.ready and len(np.unique(found)) < self.clusters:
            self.kept += 1
            return
        self.prototypes.copy_(torch.from_numpy(model.cluster_centers_))
        self.labels.copy_(torch.from_numpy(found))
        self.clusterings += 1

    def _move_prototypes(self) -> None:
        """The mean of each cluster's rows; a cluster without rows stays where it is."""
        counts = torch.bincount(self.labels, minlength=self.clusters).to(self.prototypes)
        sums = torch.zeros_like(self.prototypes).index_add_(0, self.labels, self.ring.keys)
        means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], self.prototypes)
        self.prototypes.copy_(self.momentum * self.prototypes + (1 - self.momentum) * means)

    @torch.no_grad()
    def neighbours(self, rows: Tensor, ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The nearest stored rows of other items, by cosine, inside the cluster of the nearest prototype.

        Where the cluster holds fewer than `count` rows of other items, all clusters are searched; where the whole memory
        does, the item's own rows count too.

        Args:
            rows: [b, D].
            ids: [b] integer.
            count: k, at most M.

        Returns:
            places in the memory [b, k], nearest first; and [b] boolean, whether the cluster was too small.

        Raises:
            InputError: before the memory is ready, or more neighbours than it has rows.
        """
        if not self.ready or not 1 <= count <= self.ring.size:
            raise InputError(
                f"{count} neighbours from a memory with {len(self)} of {self.ring.size} rows",
                "a full memory with as many",
            )
        unit = nn.functional.normalize(rows.to(self.ring.keys), dim=1)
        nearest = (unit @ nn.functional.normalize(self.prototypes, dim=1).T).argmax(1)
        others = self.ring.ids[None, :] != ids[:, None]
        allowed = others & (self.labels[None, :] == nearest[:, None])
        small = allowed.sum(1) < count
        allowed = torch.where(small[:, None], others, allowed)
        allowed |= (others.sum(1) < count)[:, None]
        cosines = (unit @ self.ring.keys.T).masked_fill(~allowed, -torch.inf)
        return cosines.topk(count, dim=1).indices, small

    def rows(self, places: Tensor) -> Tensor:
        """[..., D] stored unit rows at some places, a copy."""
        return self.ring.keys[places].clone()
