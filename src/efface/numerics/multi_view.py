"""Several views of each item in one contrast: all pairs of an item's views, and log-sum-exps over the views of a batch.

What the losses of many views share: `pair_logits` holds the V x V similarities of each item (small), and the energies are
rows of log-sum-exp by tiles, so that no matrix over the batch is kept. Views are lists, or one tensor [V, B, D] in which
the view comes first; a flat [V B, D] does not say whose rows it holds and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from efface.errors import InputError
from efface.numerics.contrast import check_pair, shape, wide
from efface.numerics.lse import lse_rows, lse_self
from efface.numerics.masks import Mask, Same

Own = Literal["itself", "view", "item"]
"""What of an anchor's own is no candidate: itself alone; every row of its view; every view of its item."""


def as_views(views: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """V times [B, D].

    Raises:
        InputError: a flat tensor, fewer than two views, or views of several shapes.
    """
    if isinstance(views, Tensor) and views.ndim != 3:
        raise InputError(
            f"views as one tensor {shape(views)}", "[V, B, D], or a list of V times [B, D]",
            "reshape rows that are view by view to [V, B, D]",
        )  # fmt: skip
    found = tuple(views)
    if len(found) < 2:
        raise InputError(f"{len(found)} view of each item", "two or more: one has no positive", "set n_views")
    if any(view.shape != found[0].shape for view in found):
        raise InputError(
            f"views of shapes {', '.join(map(shape, found))}", "one shape [B, D]: every item has every view",
            "drop the items that lack a view",
        )  # fmt: skip
    return found


def check_views(views: Sequence[Tensor], views_all: Sequence[Tensor], scale: Tensor | float) -> None:
    """Refuse what no contrast of many views can use; see `as_views` and `check_pair`."""
    as_views(views)
    if len(as_views(views_all)) != len(views):
        raise InputError(f"{len(views)} views here and {len(views_all)} over all processes", "the same number")
    for view, everyone in zip(views, views_all, strict=True):
        check_pair(view, everyone, scale)


def pair_logits(views: Sequence[Tensor], scale: Tensor | float) -> Tensor:
    """scale <z_l, z_m> of each item's own views -> [b, V, V]; in float32 or better."""
    z = torch.stack([wide(view) for view in views])
    with torch.autocast(z.device.type, enabled=False):
        return scale * torch.einsum("lid,mid->ilm", z, z)


def unordered(pairs: Tensor) -> Tensor:
    """[b, V, V] -> [b, V (V - 1) / 2]: each pair of different views once, (0, 1), (0, 2), ..., (1, 2), ..."""
    rows, columns = torch.triu_indices(pairs.shape[1], pairs.shape[2], 1, device=pairs.device)
    return pairs[:, rows, columns]


def energies_within(
    views: Sequence[Tensor], views_all: Sequence[Tensor], scale: Tensor | float, *, start: int = 0,
    ids: Tensor | None = None, ids_all: Tensor | None = None, tile: int | None = None,
) -> Tensor:  # fmt: skip
    """log sum_{j != i} exp(scale <z_li, z_lj>): each view against the other items of the same view -> [V, b].

    Args:
        views: V times [b, D], rows start to start + b of `views_all`, V times [B, D].
        ids, ids_all: [b], [B]; rows of the anchor's id are left out.
    """
    exclude, whole = _items(views, views_all, start, ids, ids_all), len(views[0]) == len(views_all[0])
    if whole:
        return torch.stack([lse_self(view, scale, exclude=exclude, tile=tile) for view in views_all])
    return torch.stack([
        lse_rows(view, everyone, scale, exclude=exclude, tile=tile)
        for view, everyone in zip(views, views_all, strict=True)
    ])  # fmt: skip


def energies_among(
    views: Sequence[Tensor], views_all: Sequence[Tensor], scale: Tensor | float, own: Own, *, start: int = 0,
    ids: Tensor | None = None, ids_all: Tensor | None = None, tile: int | None = None,
) -> Tensor:  # fmt: skip
    """Log-sum-exp of each view's similarities to the rows of all views but `own` -> [V, b].

    Args:
        views, views_all, ids, ids_all: as in `energies_within`; with `itself` and `view` the anchor's own item stays in,
            whatever its id.
        own: see `Own`.
    """
    count, b, total = len(views), len(views[0]), len(views_all[0])
    device = views[0].device
    place = torch.arange(start, start + b, device=device)
    item, item_all = place.repeat(count), torch.arange(total, device=device).repeat(count)
    exclude: Mask | None = None
    if ids is not None and ids_all is not None:
        exclude = Same(ids.repeat(count), ids_all.repeat(count)) & ~Same(item, item_all)
    if own == "item":
        exclude = _either(exclude, Same(item, item_all))
    if own == "view":
        view = torch.arange(count, device=device)
        exclude = _either(exclude, Same(view.repeat_interleave(b), view.repeat_interleave(total)))
    candidates = torch.cat(list(views_all))
    if b == total:  # every anchor is a candidate: half of the work
        return lse_self(candidates, scale, exclude=exclude, tile=tile).view(count, b)
    if own == "itself":
        row = torch.cat([place + i * total for i in range(count)])
        exclude = _either(exclude, Same(row, torch.arange(count * total, device=device)))
    return lse_rows(torch.cat(list(views)), candidates, scale, exclude=exclude, tile=tile).view(count, b)


def _items(
    views: Sequence[Tensor], views_all: Sequence[Tensor], start: int, ids: Tensor | None, ids_all: Tensor | None
) -> Mask:
    """[b, B] the anchor's own row, and with ids the rows of its id."""
    if ids is not None and ids_all is not None:
        return Same(ids, ids_all)
    place = torch.arange(len(views_all[0]), device=views[0].device)
    return Same(place[start : start + len(views[0])], place)


def _either(first: Mask | None, second: Mask) -> Mask:
    return second if first is None else first | second
