"""Alignment and uniformity on the unit sphere, exact in tiles: the same functions are losses and reports.

Wang and Isola, arXiv 2005.10242, section 4. Between unit vectors -t ||x - y||^2 = 2t <x, y> - 2t, so that uniformity is a
log-sum-exp of inner products and never holds a matrix of pairs. Rows are unit by contract (`unit` makes them so): a loss
takes the embeddings as they come, a report passes them in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from efface.errors import InputError
from efface.numerics.lse import lse_rows, lse_self
from efface.numerics.masks import TILE, Shifted, slices

SAME = 1e-5
"""Distance below which two unit rows count as one point: float32's rounding of one item's embedding, with room."""

FEWEST = 3


def unit(x: Tensor, name: str = "embeddings") -> Tensor:
    """[N, D] rows of length one; differentiable.

    Args:
        x: [N, D] floating point.
        name: what the rows are called in an error.

    Raises:
        InputError: not a matrix, or a row that is zero or not finite (named by its index).
    """
    if x.ndim != 2 or not x.is_floating_point():
        raise InputError(f"{name} of shape {list(x.shape)}, {str(x.dtype).removeprefix('torch.')}", "[N, D] of floats")
    size = x.detach().abs().amax(1) if x.numel() else x.new_zeros(len(x))
    bad = (~torch.isfinite(size)).nonzero()
    if len(bad):
        raise InputError(
            f"row {int(bad[0])} of {name} is not finite ({len(bad)} such rows)", "finite numbers", "drop or repair it"
        )
    bad = (size == 0).nonzero()
    if len(bad):
        raise InputError(
            f"row {int(bad[0])} of {name} is zero ({len(bad)} such rows)", "a direction", "drop or repair it"
        )
    scaled = x / size[:, None]  # the norm of tiny and of huge rows neither vanishes nor overflows
    return torch.nn.functional.normalize(scaled, dim=1)


def alignment(x: Tensor, y: Tensor) -> Tensor:
    """Mean ||x_i - y_i||^2 over pairs of unit rows, []; equal to 2 - 2 mean cosine.

    Args:
        x, y: [N, D].

    Raises:
        InputError: shapes that differ, or no pair.
    """
    return alignment_rows(x, y).mean()


def alignment_rows(x: Tensor, y: Tensor) -> Tensor:
    """[N] squared distance of each pair. Raises as `alignment` does."""
    _pairs(x, y, fewest=1)
    return (x - y).square().sum(1)


def uniformity(z: Tensor, t: float = 2.0, tile: int | None = None) -> Tensor:
    """log mean_{i<j} exp(-t ||z_i - z_j||^2), []: 0 when collapsed, about -2t when spread in many dimensions.

    Args:
        z: [N, D] unit rows.
        t: sharpness of the kernel.
        tile: side of a tile; default: chosen.

    Raises:
        InputError: fewer than three rows, rows that are not unit, t not above 0.
    """
    return _log_mean(uniformity_rows(z, t, tile))


def uniformity_rows(z: Tensor, t: float = 2.0, tile: int | None = None) -> Tensor:
    """[N] log mean_{j != i} exp(-t ||z_i - z_j||^2); the log of the mean of their exps is `uniformity`."""
    _checked(z, t)
    rows = lse_self(z, 2 * t, tile=tile)
    return rows - 2 * t - math.log(len(z) - 1)


def cross_uniformity(x: Tensor, y: Tensor, t: float = 2.0, tile: int | None = None) -> Tensor:
    """log mean_{i != j} exp(-t ||x_i - y_j||^2), [], over the N(N-1) pairs off the diagonal.

    Args:
        x, y: [N, D] unit rows; row i of both is a pair.
        t: sharpness of the kernel.
        tile: side of a tile; default: chosen.

    Raises:
        InputError: shapes that differ, fewer than three pairs, rows that are not unit, t not above 0.
    """
    return _log_mean(cross_uniformity_rows(x, y, t, tile))


def cross_uniformity_rows(x: Tensor, y: Tensor, t: float = 2.0, tile: int | None = None) -> Tensor:
    """[N] log mean_{j != i} exp(-t ||x_i - y_j||^2) of each row of x."""
    _pairs(x, y, fewest=FEWEST)
    _checked(x, t)
    _checked(y, t)
    rows = lse_rows(x, y, 2 * t, exclude=Shifted(0), tile=tile)
    return rows - 2 * t - math.log(len(x) - 1)


def twins(z: Tensor, distance: float = SAME, tile: int | None = None) -> Tensor:
    """[N] int64: how many other rows lie within `distance` of each unit row. No gradient; float64 inside."""
    _checked(z, 1.0)
    wide = torch.nn.functional.normalize(z.detach().double(), dim=1)
    near = 1 - distance**2 / 2
    found = torch.zeros(len(z), dtype=torch.int64, device=z.device)
    for rows in slices(len(z), tile or TILE):
        for cols in slices(len(z), tile or TILE):
            found[rows] += (wide[rows] @ wide[cols].T >= near).sum(1)
    return found - 1  # a row is no twin of itself


def _log_mean(rows: Tensor) -> Tensor:
    """log mean exp, []; float64 inside, so that a million rows add up without loss."""
    return (rows.double().logsumexp(0) - math.log(len(rows))).to(rows.dtype)


def _pairs(x: Tensor, y: Tensor, *, fewest: int) -> None:
    if x.ndim != 2 or x.shape != y.shape:
        raise InputError(f"embeddings of shapes {list(x.shape)} and {list(y.shape)}", "one shape [N, D] for both")
    if len(x) < fewest:
        raise InputError(f"{len(x)} pairs", f"{fewest} or more")


def _checked(z: Tensor, t: float) -> None:
    if z.ndim != 2 or len(z) < FEWEST:
        raise InputError(f"embeddings of shape {list(z.shape)}", f"[N, D] with N of {FEWEST} or more")
    if not (math.isfinite(t) and t > 0):
        raise InputError(f"uniformity with t = {t}", "a number above 0")
    room = 1e-3 if torch.finfo(z.dtype).bits >= 32 else 2e-2
    off = (z.detach().float().norm(dim=1) - 1).abs()
    if not bool((off <= room).all()):
        row = int((~(off <= room)).nonzero()[0])
        raise InputError(
            f"row {row} has length {float(z[row].detach().float().norm()):.4g}",
            "rows of length one",
            "call unit(x) first",
        )
