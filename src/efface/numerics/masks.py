"""Masks over a [B, M] matrix of pairs that is never held whole.

A mask answers for one tile at a time which pairs it contains (True = in the mask). Masks combine by `|`, `&` and `~`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from efface.errors import InputError

TILE = 1024
"""Side of a tile where nothing else decides it."""


class Mask:
    """A set of pairs (row, column) of a [B, M] matrix.

    Subclasses give `tile`; `empty` may give a cheap certainty and `check` the shapes that are accepted.
    """

    def tile(self, rows: slice, cols: slice, device: torch.device) -> Tensor:
        """Whether each pair of the tile is in the mask, [r, c] bool on `device`; the slices have start and stop."""
        raise NotImplementedError

    def empty(self, rows: slice, cols: slice) -> bool:
        """True only if the tile surely holds no pair; False says nothing. Much cheaper than the tile."""
        return False

    def symmetric(self) -> bool:
        """True only if (i, j) is surely in the mask wherever (j, i) is; False says nothing."""
        return False

    def check(self, n_rows: int, n_cols: int) -> None:
        """Raises InputError if the mask is not one over a [n_rows, n_cols] matrix."""

    def __or__(self, other: Mask) -> Mask:
        return Union(self, other)

    def __and__(self, other: Mask) -> Mask:
        return Intersection(self, other)

    def __invert__(self) -> Mask:
        return Complement(self)


class Same(Mask):
    """Pairs of equal ids.

    Args:
        rows: [B] int64, the ids of the rows.
        cols: [M] int64, the ids of the columns; default: those of the rows.

    Raises:
        InputError: not one-dimensional int64 tensors.
    """

    def __init__(self, rows: Tensor, cols: Tensor | None = None) -> None:
        self.rows, self.cols = rows, rows if cols is None else cols
        for name, ids in (("rows", self.rows), ("columns", self.cols)):
            if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.ndim != 1:
                raise InputError(
                    f"ids of the {name}: {_described(ids)}", "a tensor [N] of int64", "convert with .long()"
                )

    def tile(self, rows: slice, cols: slice, device: torch.device) -> Tensor:
        return self.rows[rows].to(device)[:, None] == self.cols[cols].to(device)[None, :]

    def empty(self, rows: slice, cols: slice) -> bool:
        ids, others = self.rows[rows], self.cols[cols].to(self.rows.device)
        return not bool(torch.isin(ids, others).any())

    def symmetric(self) -> bool:
        return self.rows is self.cols or torch.equal(self.rows, self.cols.to(self.rows.device))

    def check(self, n_rows: int, n_cols: int) -> None:
        _same_shape("ids", (len(self.rows), len(self.cols)), (n_rows, n_cols))


class Shifted(Mask):
    """Pairs with column == row + start: the self pairs, or each row's paired column.

    Args:
        start: the column of row 0; may be negative.
    """

    def __init__(self, start: int = 0) -> None:
        self.start = int(start)

    def tile(self, rows: slice, cols: slice, device: torch.device) -> Tensor:
        found = torch.zeros(rows.stop - rows.start, cols.stop - cols.start, dtype=torch.bool, device=device)
        offset = rows.start + self.start - cols.start  # the tile's column of its row 0
        if -found.shape[0] < offset < found.shape[1]:
            found.diagonal(offset).fill_(True)
        return found

    def empty(self, rows: slice, cols: slice) -> bool:
        return bool(rows.stop + self.start <= cols.start or rows.start + self.start >= cols.stop)

    def symmetric(self) -> bool:
        return self.start == 0


class Dense(Mask):
    """Pairs given as a matrix that is small enough to hold.

    Args:
        matrix: [B, M] bool.

    Raises:
        InputError: not a two-dimensional bool tensor.
    """

    def __init__(self, matrix: Tensor) -> None:
        if not isinstance(matrix, Tensor) or matrix.dtype != torch.bool or matrix.ndim != 2:
            raise InputError(f"a mask: {_described(matrix)}", "a tensor [B, M] of bool", "compare, as in matrix > 0")
        self.matrix = matrix

    def tile(self, rows: slice, cols: slice, device: torch.device) -> Tensor:
        return self.matrix[rows, cols].to(device)

    def symmetric(self) -> bool:
        return torch.equal(self.matrix, self.matrix.T)

    def check(self, n_rows: int, n_cols: int) -> None:
        _same_shape("a mask", tuple(self.matrix.shape), (n_rows, n_cols))


class Union(Mask):
    """Pairs in either mask."""

    def __init__(self, first: Mask, second: Mask) -> None:
        self.first, self.second = _mask(first), _mask(second)

    def tile(self, rows: slice, cols: slice, device: torch.device) -> Tensor:
        return self.first.tile(rows, cols, device) | self.second.tile(rows, cols, device)

    def empty(self, rows: slice, cols: slice) -> bool:
        return self.first.empty(rows, cols) and self.second.empty(rows, cols)

    def symmetric(self) -> bool:
        return self.first.symmetric() and self.second.symmetric()

    def check(self, n_rows: int, n_cols: int) -> None:
        self.first.check(n_rows, n_cols)
        self.second.check(n_rows, n_cols)


class Intersection(Mask):
    """Pairs in both masks."""

    def __init__(self, first: Mask, second: Mask) -> None:
        self.first, self.second = _mask(first), _mask(second)

    def tile(self, rows: slice, cols: slice, device: torch.device) -> Tensor:
        return self.first.tile(rows, cols, device) & self.second.tile(rows, cols, device)

    def empty(self, rows: slice, cols: slice) -> bool:
        return self.first.empty(rows, cols) or self.second.empty(rows, cols)

    def symmetric(self) -> bool:
        return self.first.symmetric() and self.second.symmetric()

    def check(self, n_rows: int, n_cols: int) -> None:
        self.first.check(n_rows, n_cols)
        self.second.check(n_rows, n_cols)


class Complement(Mask):
    """Pairs that are not in the mask."""

    def __init__(self, mask: Mask) -> None:
        self.mask = _mask(mask)

    def tile(self, rows: slice, cols: slice, device: torch.device) -> Tensor:
        return ~self.mask.tile(rows, cols, device)

    def symmetric(self) -> bool:
        return self.mask.symmetric()

    def check(self, n_rows: int, n_cols: int) -> None:
        self.mask.check(n_rows, n_cols)

    def __invert__(self) -> Mask:
        return self.mask


def counts(mask: Mask, n_rows: int, n_cols: int, tile: int = TILE, device: torch.device | None = None) -> Tensor:
    """Pairs of each row of a [n_rows, n_cols] matrix that are in the mask, [n_rows] int64, computed tile by tile.

    Raises:
        InputError: the mask is of another shape, or a tile below 1.
    """
    mask.check(n_rows, n_cols)
    device = device or torch.device("cpu")
    total = torch.zeros(n_rows, dtype=torch.int64, device=device)
    for rows in slices(n_rows, tile):
        for cols in slices(n_cols, tile):
            if not mask.empty(rows, cols):
                total[rows] += mask.tile(rows, cols, device).sum(1)
    return total


def slices(total: int, size: int) -> Iterator[slice]:
    """0:size, size:2*size, ... up to `total`; raises InputError for a size below 1."""
    if size < 1:
        raise InputError(f"a tile of side {size}", "1 or more", "leave tile out to have it chosen")
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _mask(value: object) -> Mask:
    if not isinstance(value, Mask):
        raise InputError(f"a mask: {_described(value)}", "a Mask", "wrap a bool matrix in Dense(matrix)")
    return value


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {list(value.shape)}"
    return type(value).__name__


def _same_shape(name: str, given: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if given != expected:
        raise InputError(f"{name} for a matrix of shape {list(given)}", f"shape {list(expected)}")
