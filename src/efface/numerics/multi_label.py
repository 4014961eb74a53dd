"""Losses of queries with several right labels among very many, with the labels cut into shards.

Paper: DEXML, arXiv 2310.10636. S = scale E(q) E(l)^T [Q, L]; P_q positives, n_q = |P_q|. Every process may hold some of the
labels (a shard) and all queries; its loss is a share, and the shares add up to the loss over all labels. What is needed of
the other shards is [Q] numbers: log-denominators, and for the soft top-k sums inside its bisection.

Memory: softmax, decoupled softmax and BCE hold no Q x L matrix (tiles, computed again in the backward pass); the soft
top-k holds [Q, L of the shard]. The official code masks by the constant -100, which is none where |s| may exceed it, and
its shards lose the last label's positives (an off-by-one); here what is left out has no part in any sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import softplus
from torch.utils.checkpoint import checkpoint

from efface.errors import InputError
from efface.numerics.contrast import lse_or_nothing, wide
from efface.numerics.masks import TILE, Mask, slices
from efface.numerics.soft_topk import Reduce, same, soft_topk


class Pairs(Mask):
    """Pairs given as a list, for matrices of which few entries are in the mask.

    Args:
        rows, cols: [P] int64.
        shape: of the matrix.
    """

    def __init__(self, rows: Tensor, cols: Tensor, shape: tuple[int, int]) -> None:
        order = torch.argsort(rows, stable=True)
        self.rows, self.cols, self.shape = rows[order], cols[order], shape

    def _inside(self, rows: slice, cols: slice) -> tuple[Tensor, Tensor]:
        bounds = torch.searchsorted(self.rows, self.rows.new_tensor([rows.start, rows.stop]))
        r, c = (x[int(bounds[0]) : int(bounds[1])] for x in (self.rows, self.cols))
        here = (c >= cols.start) & (c < cols.stop)
        return r[here] - rows.start, c[here] - cols.start

    def tile(self, rows: slice, cols: slice, device: torch.device) -> Tensor:
        found = torch.zeros(rows.stop - rows.start, cols.stop - cols.start, dtype=torch.bool, device=device)
        r, c = self._inside(rows, cols)
        found[r.to(device), c.to(device)] = True
        return found

    def empty(self, rows: slice, cols: slice) -> bool:
        return not len(self._inside(rows, cols)[0])

    def check(self, n_rows: int, n_cols: int) -> None:
        if (n_rows, n_cols) != self.shape:
            raise InputError(f"pairs of a matrix {list(self.shape)} for one of {[n_rows, n_cols]}", "one shape")


@dataclass(frozen=True)
class Shard:
    """All queries, and the labels of one shard.

    Attributes:
        queries: [Q, D] unit rows of all queries.
        labels: [L', D] unit rows of the shard's labels.
        rows, cols: [P] int64: positives among them, as (query, place in the shard).
        left_out: ([X], [X]) int64: pairs that are neither pulled nor pushed.
        positives: [Q] number of positives over all shards; at least 1.
        total_labels: L, over all shards.
        joined: the log-sum-exp over shards of [Q] local ones, with gradient.
        total, largest: sum and maximum over shards, without gradient.
    """

    queries: Tensor
    labels: Tensor
    rows: Tensor
    cols: Tensor
    left_out: tuple[Tensor, Tensor]
    positives: Tensor
    total_labels: int
    joined: Callable[[Tensor], Tensor] = field(default=same)
    total: Reduce = field(default=same)
    largest: Reduce = field(default=same)

    def __post_init__(self) -> None:
        if len(self.positives) != len(self.queries) or bool((self.positives < 1).any()):
            raise InputError(
                f"{int((self.positives < 1).sum())} of {len(self.queries)} queries without a positive",
                "one or more positives each", "drop queries without labels",
            )  # fmt: skip
        for name, (r, c) in {"positives": (self.rows, self.cols), "left_out": self.left_out}.items():
            if r.shape != c.shape or (len(r) and not (int(c.min()) >= 0 and int(c.max()) < len(self.labels))):
                raise InputError(f"{name} of a shard of {len(self.labels)} labels", "pairs inside it")

    @property
    def shape(self) -> tuple[int, int]:
        """[Q, L']."""
        return len(self.queries), len(self.labels)

    def pair_scores(self, scale: float, rows: Tensor, cols: Tensor) -> Tensor:
        """s of pairs, [P]."""
        return scale * (wide(self.queries[rows]) * wide(self.labels[cols])).sum(1)

    def log_denominator(self, scale: float, *, positives: bool, tile: int | None) -> Tensor:
        """[Q] log-sum-exp over all shards; without the pairs left out, and without the positives unless asked for."""
        rows, cols = self.left_out
        if not positives:
            rows, cols = torch.cat([rows, self.rows]), torch.cat([cols, self.cols])
        mask = Pairs(rows, cols, self.shape) if len(rows) else None
        return self.joined(lse_or_nothing(self.queries, self.labels, scale, exclude=mask, tile=tile))


def log_sum(parts: Tensor) -> Tensor:
    """logsumexp over the first dimension, -inf without gradient where all are -inf; [Q] of [W, Q]."""
    nothing = (parts == -torch.inf).all(0)
    return torch.where(nothing, -torch.inf, torch.where(nothing, torch.zeros_like(parts), parts).logsumexp(0))


def softmax_loss(shard: Shard, scale: float, *, averaged: bool = False, tile: int | None = None) -> Tensor:
    """The share of -(1/Q) sum_q sum_{l in P} (s_ql - lse_q), [] ; `averaged`: each query's sum over its n_q.

    Args:
        shard: see `Shard`.
        scale: 1 / T.
        averaged: divide by n_q.
        tile: side of a tile.
    """
    whole = shard.log_denominator(scale, positives=True, tile=tile)
    losses = whole[shard.rows] - shard.pair_scores(scale, shard.rows, shard.cols)
    weight = 1 / shard.positives[shard.rows].to(losses) if averaged else 1.0
    return (weight * losses).sum() / len(shard.queries)


def decoupled_loss(shard: Shard, scale: float, *, tile: int | None = None) -> Tensor:
    """The share of -(1/Q) sum_q (1/n_q) sum_{l in P} [s_ql - log(e^{s_ql} + sum_{l' not in P} e^{s_ql'})], []."""
    others = shard.log_denominator(scale, positives=False, tile=tile)[shard.rows]
    alone = others == -torch.inf  # every label is a positive: nothing to be told from
    gap = torch.where(alone, torch.zeros_like(others), others) - shard.pair_scores(scale, shard.rows, shard.cols)
    losses = torch.where(alone, 0 * gap, softplus(gap))
    return (losses / shard.positives[shard.rows].to(losses)).sum() / len(shard.queries)


def one_vs_all_loss(shard: Shard, scale: float, *, tile: int | None = None) -> Tensor:
    """The share of [sum_{ql} softplus(s_ql) - sum_{positives} s_ql] / (Q L), []."""

    def pushed(queries: Tensor, labels: Tensor) -> Tensor:
        return softplus(scale * wide(queries) @ wide(labels).T).sum()

    found = -shard.pair_scores(scale, shard.rows, shard.cols).sum()
    found = found - softplus(shard.pair_scores(scale, *shard.left_out)).sum()
    for part in slices(len(shard.labels), tile or 4 * TILE):
        found = found + checkpoint(pushed, shard.queries, shard.labels[part], use_reentrant=False)
    return found / (len(shard.queries) * shard.total_labels)


def soft_topk_loss(
    shard: Shard, scale: float, k: Tensor | float, *, alpha: float = 2.0, iterations: int = 32
) -> Tensor:
    """The share of -(1/Q) sum_q (1/n_q) sum_{l in P} log p_l, [], p the soft top-k of the row; holds [Q, L'].

    Raises:
        InputError: a query with more positives than its k, which p cannot reach; see `soft_topk`.
    """
    goal = torch.as_tensor(k, dtype=torch.float32, device=shard.queries.device).expand(len(shard.queries))
    if bool((shard.positives > goal).any()):
        row = int((shard.positives > goal).int().argmax())
        raise InputError(
            f"query {row} has {int(shard.positives[row])} positives and k={float(goal[row]):g}: p sums to k",
            "at most k positives", "sample k of them, or give each query its own k",
        )  # fmt: skip
    s = scale * wide(shard.queries) @ wide(shard.labels).T
    if len(shard.left_out[0]):
        mask = Pairs(*shard.left_out, shard.shape).tile(slice(0, s.shape[0]), slice(0, s.shape[1]), s.device)
        s = s.masked_fill(mask, -torch.inf)
    log_p = soft_topk(s, k, alpha, iterations=iterations, total=shard.total, largest=shard.largest)
    losses = -log_p[shard.rows, shard.cols] / shard.positives[shard.rows].to(log_p)
    return losses.sum() / len(shard.queries)


def sample_positives(weights: Tensor, queries: Tensor, counts: int, generator: torch.Generator) -> Tensor:
    """[P] bool: up to `counts` positives of each query, drawn without replacement in proportion to their relevance.

    Args:
        weights: [P] relevance above 0 of each (query, label) pair.
        queries: [P] int64 the query of each.
        counts: of each query.
        generator: of the draws.

    Raises:
        InputError: a relevance that is not above 0: a query of zeros has nothing to draw.
    """
    if len(weights) and not bool((weights > 0).all()):
        raise InputError(f"a relevance of {float(weights.min()):g}", "numbers above 0", "drop labels of no relevance")
    noise = torch.rand(len(weights), generator=generator, dtype=torch.float64).clamp(min=1e-300)
    keys = weights.double().log() - (-noise.log()).log()  # Gumbel: the largest keys are such a draw
    order = torch.argsort(keys, descending=True, stable=True)
    order = order[torch.argsort(queries[order], stable=True)]
    place = torch.arange(len(order)) - torch.searchsorted(queries[order], queries[order])
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[order] = place < counts
    return chosen


__all__ = [
    "Pairs", "Shard", "decoupled_loss", "log_sum", "one_vs_all_loss", "sample_positives", "soft_topk_loss", "softmax_loss",
]  # fmt: skip
