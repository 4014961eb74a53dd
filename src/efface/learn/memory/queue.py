"""A queue of earlier keys: more negatives than a batch holds, at the price of keys from slightly older weights.

Paper: MoCo, He et al., arXiv 1911.05722 (K = 65536). A ring buffer with a fill count. Departures from the peers: it starts
empty, not with random vectors as negatives; a batch that crosses the end wraps round without loss; its state, ids included,
is in the state_dict, so that a resumed run goes on with the same negatives; keys carry the id of their item, so that an
item's own earlier key can be masked.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from efface.errors import ConfigError, InputError


class FeatureQueue(nn.Module):
    """The newest K keys [K, D], with ids and, where asked for, labels.

    Enqueue after the loss was computed: a batch is never compared with its own keys. With several processes, enqueue the
    gathered rows, so that every process holds the same queue.

    Args:
        size: K, keys held.
        width: D.
        labels: keep labels beside the ids.

    Raises:
        ConfigError: a size or width below 1.
    """

    keys: Tensor
    ids: Tensor
    labels: Tensor | None
    position: Tensor
    count: Tensor

    def __init__(self, size: int, width: int, *, labels: bool = False) -> None:
        super().__init__()
        if size < 1 or width < 1:
            raise ConfigError(f"a queue of {size} keys of width {width}", "at least 1 each")
        self.size, self.width = size, width
        self.register_buffer("keys", torch.zeros(size, width))
        self.register_buffer("ids", torch.full((size,), -1, dtype=torch.int64))
        self.register_buffer("labels", torch.full((size,), -1, dtype=torch.int64) if labels else None)
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        """Keys held now, at most K."""
        return int(self.count)

    def filled(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys [n, D], ids [n] and labels [n] or None of what was enqueued, n = len(self), in no promised order.

        Copies: a loss may be computed from them, the batch enqueued, and the backward pass come after that.
        """
        n = len(self)
        labels = None if self.labels is None else self.labels[:n].clone()
        return self.keys[:n].clone(), self.ids[:n].clone(), labels

    @torch.no_grad()
    def enqueue(self, keys: Tensor, ids: Tensor, labels: Tensor | None = None) -> None:
        """Put the rows in, over the oldest ones; of more than K rows the last K stay.

        Args:
            keys: [b, D] real; kept in the queue's type, without gradient.
            ids: [b] integer.
            labels: [b] integer, exactly where the queue keeps labels.

        Raises:
            InputError: shapes or types that do not fit.
        """
        self._check(keys, ids, labels)
        n = keys.shape[0]
        start = int(self.position)
        kept = min(n, self.size)
        # the place of each kept row is the one it would have after enqueueing row by row
        places = (start + n - kept + torch.arange(kept, device=self.keys.device)) % self.size
        self.keys[places] = keys[n - kept :].to(self.keys)
        self.ids[places] = ids[n - kept :].to(self.ids)
        if self.labels is not None and labels is not None:
            self.labels[places] = labels[n - kept :].to(self.labels)
        self.position.fill_((start + n) % self.size)
        self.count.fill_(min(self.size, len(self) + n))

    @torch.no_grad()
    def clear(self) -> None:
        """Forget all keys."""
        self.position.zero_()
        self.count.zero_()

    def _check(self, keys: Tensor, ids: Tensor, labels: Tensor | None) -> None:
        if keys.ndim != 2 or keys.shape[1] != self.width or not keys.is_floating_point():
            raise InputError(f"keys of shape {list(keys.shape)} and type {keys.dtype}", f"real [b, {self.width}]")
        if (labels is None) != (self.labels is None):
            given, expected = ("no labels", "labels") if labels is None else ("labels", "none")
            raise InputError(f"{given} for a queue that keeps {expected}", None, "set labels= when it is made")
        for name, column in (("ids", ids), ("labels", labels)):
            if column is None:
                continue
            whole = not (column.is_floating_point() or column.is_complex() or column.dtype == torch.bool)
            if not whole or column.shape != keys.shape[:1]:
                raise InputError(
                    f"{name} of shape {list(column.shape)} and type {column.dtype} for keys of shape {list(keys.shape)}",
                    f"integer [{keys.shape[0]}]",
                )
