"""Which cells of two feature maps show nearly the same point of a picture, from the boxes that the two views show.

Paper: PixPro, Xie et al., arXiv 2011.10043, equation 1. A cell's place is its centre in the whole picture, in shares of the
picture's sides; a distance counts in units of a cell's diagonal, the larger of the two views'. Boxes are counted from the
picture's edges (the whole picture is 0, 0, 1, 1, and column s of w shows x0 + (s + 0.5) (x1 - x0) / w), the convention of
`learn.views.images`; the official code counts from the centres of the outermost pixels and divides by width - 1.

Just below 1 / sqrt(2) = 0.7071 lies the ratio at which a square cell's four neighbours of equal scale become matches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from efface.errors import InputError

Size = tuple[int, int]
"""(rows, columns) of a map."""


def centres(boxes: Tensor, size: Size) -> Tensor:
    """Where the cells' centres lie in the whole picture, [B, h w, 2] as (x, y), row by row.

    Args:
        boxes: [B, 4] as (x0, y0, x1, y1) in shares of the sides; a horizontal flip has x0 > x1.
        size: (h, w) of the map.

    Raises:
        InputError: no boxes of that form, or a box without height or width.
    """
    _check(boxes, size)
    rows, columns = size
    x0, y0, x1, y1 = boxes.unbind(1)
    across = (torch.arange(columns).to(boxes) + 0.5) / columns
    down = (torch.arange(rows).to(boxes) + 0.5) / rows
    x = x0[:, None] + across * (x1 - x0)[:, None]
    y = y0[:, None] + down * (y1 - y0)[:, None]
    x, y = x[:, None, :].expand(-1, rows, -1), y[:, :, None].expand(-1, -1, columns)
    return torch.stack([x, y], 3).flatten(1, 2)


def diagonals(boxes: Tensor, size: Size) -> Tensor:
    """[B] the diagonal of one cell, in shares of the sides. Raises as `centres` does."""
    _check(boxes, size)
    rows, columns = size
    return torch.hypot((boxes[:, 2] - boxes[:, 0]) / columns, (boxes[:, 3] - boxes[:, 1]) / rows)


def matches(first: Tensor, second: Tensor, sizes: tuple[Size, Size], ratio: float = 0.7) -> Tensor:
    """A: whether cell i of the first view and cell j of the second show nearly the same point, [B, h w, h' w'] bool.

    Args:
        first, second: [B, 4] what the views show of the same B pictures; see `centres`.
        sizes: (h, w) and (h', w') of their maps.
        ratio: T, the largest distance (not reached) in diagonals of the larger cell.

    Raises:
        InputError: boxes of other forms, or a ratio that is not above 0.
    """
    if not (math.isfinite(ratio) and ratio > 0):
        raise InputError(f"a ratio of {ratio}", "a number above 0", "0.7 is the published one")
    if first.shape != second.shape:
        raise InputError(f"boxes of shapes {list(first.shape)} and {list(second.shape)}", "one shape [B, 4] for both")
    a, b = centres(first, sizes[0]), centres(second, sizes[1])
    (ax, ay), (bx, by) = a.unbind(2), b.unbind(2)
    apart = torch.hypot(ax[:, :, None] - bx[:, None], ay[:, :, None] - by[:, None])
    unit = torch.maximum(diagonals(first, sizes[0]), diagonals(second, sizes[1]))
    return apart < ratio * unit[:, None, None]


def _check(boxes: Tensor, size: Size) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        raise InputError(f"boxes of shape {list(boxes.shape)}, {boxes.dtype}", "[B, 4] of floats: x0, y0, x1, y1")
    if len(size) != 2 or min(size) < 1:
        raise InputError(f"a map of {size} cells", "rows and columns, each 1 or more")
    sides = (boxes[:, 2:] - boxes[:, :2]).abs()
    bad = (~(torch.isfinite(boxes).all(1) & (sides > 0).all(1))).nonzero()
    if len(bad):
        row = int(bad[0])
        raise InputError(f"box {row} is {boxes[row].tolist()}", "finite numbers, with a width and a height")
