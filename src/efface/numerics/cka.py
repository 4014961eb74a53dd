"""Linear CKA and the Procrustes distance of two representations, from moments that are streamed in float64.

CKA: Kornblith et al., arXiv 1905.00414, with the unbiased HSIC of Song et al. (JMLR 2012, equation 5). Orthogonal
Procrustes: Ding et al., arXiv 2108.01661. With centred rows the unbiased HSIC needs only X'Y and the squared norms
k_i = |x_i|^2, l_i = |y_i|^2: n(n-3) HSIC_1 = ||X'Y||_F^2 - n/(n-2) sum k l + sum k sum l / ((n-1)(n-2)).
Rows with more dimensions than items are first turned into n coordinates by a QR step, so that nothing larger than
min(n, d) squared is held; longer ones are streamed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from efface.errors import InputError
from efface.numerics.masks import slices

FEWEST = 4
"""The unbiased HSIC divides by n - 3."""

CHUNK = 65536
"""Rows that are held in float64 at once."""


@dataclass(frozen=True)
class Moments:
    """What every figure of centred rows x, y needs.

    Attributes:
        x, y: [n, d1], [n, d2] the rows, turned where d > n, not yet centred.
        mean_x, mean_y: [d1], [d2].
        xx, xy, yy: [d1, d1], [d1, d2], [d2, d2] sums of products of centred rows, float64.
        k, l: [n] squared norms of the centred rows.
        still: whether nothing varies in x, in y.
    """

    x: Tensor
    y: Tensor
    mean_x: Tensor
    mean_y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor
    k: Tensor
    l: Tensor  # noqa: E741 (the letter of the papers)
    still: tuple[bool, bool]

    @property
    def n(self) -> int:
        """Items."""
        return len(self.x)

    def chunk(self, part: slice) -> tuple[Tensor, Tensor]:
        """Centred rows of a part, float64."""
        return self.x[part].double() - self.mean_x, self.y[part].double() - self.mean_y


def moments(x: Tensor, y: Tensor, chunk: int = CHUNK) -> Moments:
    """Stream the moments of two representations of the same items.

    Args:
        x, y: [n, d1], [n, d2].
        chunk: rows held in float64 at once.

    Raises:
        InputError: not two matrices of equally many rows, fewer than four rows, or a row that is not finite.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise InputError(
            f"features of shapes {list(x.shape)} and {list(y.shape)}", "[N, d1] and [N, d2] of the same items"
        )
    if len(x) < FEWEST:
        raise InputError(f"{len(x)} items", f"{FEWEST} or more")
    for name, rows in (("first", x), ("second", y)):
        for part in slices(len(rows), chunk):
            bad = (~torch.isfinite(rows[part]).all(1)).nonzero()
            if len(bad):
                raise InputError(
                    f"row {part.start + int(bad[0])} of the {name} features is not finite",
                    "finite numbers",
                    "repair it",
                )
    given = (x, y)
    x, y = _turned(x), _turned(y)
    n, parts = len(x), list(slices(len(x), chunk))
    mean_x = torch.stack([x[part].sum(0, dtype=torch.float64) for part in parts]).sum(0) / n
    mean_y = torch.stack([y[part].sum(0, dtype=torch.float64) for part in parts]).sum(0) / n
    dx, dy = x.shape[1], y.shape[1]
    xx, xy, yy = mean_x.new_zeros(dx, dx), mean_x.new_zeros(dx, dy), mean_x.new_zeros(dy, dy)
    k, l = mean_x.new_zeros(n), mean_x.new_zeros(n)  # noqa: E741
    for part in parts:
        a, b = x[part].double() - mean_x, y[part].double() - mean_y
        xx.addmm_(a.T, a)
        xy.addmm_(a.T, b)
        yy.addmm_(b.T, b)
        k[part], l[part] = a.square().sum(1), b.square().sum(1)
    still = (_still(given[0].dtype, n, mean_x, k.sum()), _still(given[1].dtype, n, mean_y, l.sum()))
    return Moments(x, y, mean_x, mean_y, xx, xy, yy, k, l, still)


def cka(x: Tensor, y: Tensor, *, unbiased: bool = True) -> float:
    """Linear CKA of features [n, d1] and [n, d2]; NaN when nothing varies in one of them.

    Raises:
        InputError: as `moments`.
    """
    return cka_of(moments(x, y), unbiased=unbiased)


def cka_of(m: Moments, *, unbiased: bool = True) -> float:
    """Linear CKA from moments: HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y))."""
    if any(m.still):
        return math.nan
    if unbiased:
        xy, xx, yy = _hsic(m.xy, m.k, m.l), _hsic(m.xx, m.k, m.k), _hsic(m.yy, m.l, m.l)
    else:
        xy, xx, yy = (float(part.square().sum()) for part in (m.xy, m.xx, m.yy))
    return xy / math.sqrt(xx * yy) if xx > 0 and yy > 0 else math.nan


def cka_influence(m: Moments, *, unbiased: bool = True) -> Tensor:
    """[n] first-order effect of each item's weight on CKA; only differences count.

    The unbiased HSIC is the mean over i of (1/(n-3)) sum_{j != i} A_ij B_ij with A, B the U-centred Gram matrices (Szekely
    and Rizzo 2014), the biased one that of x_i' X'Y y_i, up to a constant.
    """
    hsic = _item_hsic if unbiased else _item_product
    by_k, by_l = torch.zeros_like(m.mean_x), torch.zeros_like(m.mean_y)
    cross_k, cross_l = torch.zeros_like(m.mean_y), torch.zeros_like(m.mean_x)
    for part in slices(m.n, CHUNK):
        a, b = m.chunk(part)
        by_k += m.k[part] @ a
        by_l += m.l[part] @ b
        cross_k += m.k[part] @ b
        cross_l += m.l[part] @ a
    xy, xx, yy = (torch.empty_like(m.k) for _ in range(3))
    for part in slices(m.n, CHUNK):
        a, b = m.chunk(part)
        k, l = m.k[part], m.l[part]  # noqa: E741
        xy[part] = hsic(((a @ m.xy) * b).sum(1), a @ cross_l, b @ cross_k, k, l, m.k, m.l)
        xx[part] = hsic(((a @ m.xx) * a).sum(1), a @ by_k, a @ by_k, k, k, m.k, m.k)
        yy[part] = hsic(((b @ m.yy) * b).sum(1), b @ by_l, b @ by_l, l, l, m.l, m.l)
    size = (xx.mean() * yy.mean()).sqrt()
    effect: Tensor = 2 * (xy - xy.mean() * (xx / xx.mean() + yy / yy.mean()) / 2) / size
    return effect


def procrustes_of(m: Moments) -> tuple[float, Tensor]:
    """Orthogonal Procrustes distance after centring and scaling to unit norm, with each item's influence [n].

    min over rotations R of ||X R - Y||_F^2 = 2 - 2 ||X'Y||_*; NaN when nothing varies.
    """
    if any(m.still):
        return math.nan, torch.zeros_like(m.k)
    u, s, v = torch.linalg.svd(m.xy, full_matrices=False)
    size = (m.k.sum() * m.l.sum()).sqrt()
    closeness = s.sum() / size
    effect = torch.empty_like(m.k)
    turn = u @ v
    for part in slices(m.n, CHUNK):
        a, b = m.chunk(part)
        effect[part] = ((a @ turn) * b).sum(1)
    n = m.n
    effect = n * (effect / size - closeness * (m.k / m.k.sum() + m.l / m.l.sum()) / 2)
    return max(0.0, float(2 - 2 * closeness)), -2 * effect


def procrustes(x: Tensor, y: Tensor) -> float:
    """Orthogonal Procrustes distance, in [0, 2]; see `procrustes_of`. Raises as `moments`."""
    return procrustes_of(moments(x, y))[0]


def _hsic(product: Tensor, k: Tensor, l: Tensor) -> float:  # noqa: E741
    """The unbiased HSIC of centred rows from X'Y and the squared norms (equation in the module's docstring)."""
    n = len(k)
    total = product.square().sum() - n / (n - 2) * (k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2))
    return float(total / (n * (n - 3)))


def _item_hsic(
    product: Tensor, x_by_l: Tensor, y_by_k: Tensor, k: Tensor, l: Tensor, all_k: Tensor, all_l: Tensor,  # noqa: E741
) -> Tensor:  # fmt: skip
    """[b] (1/(n-3)) sum_{j != i} A_ij B_ij of some items; their mean over all items is `_hsic`.

    With centred rows A_ij = x_i.x_j + (k_i + k_j)/(n-2) - kappa, kappa = sum k / ((n-1)(n-2)), and rows of A add to zero.

    Args:
        product: [b] x_i' X'Y y_i.
        x_by_l: [b] sum_j l_j <x_i, x_j>; y_by_k: [b] sum_j k_j <y_i, y_j>.
        k, l: [b] squared norms of these items; all_k, all_l: [n] of all.
    """
    n, both = len(all_k), (all_k * all_l).sum()
    kappa = all_k.sum() / ((n - 1) * (n - 2))
    with_l = product - k * l + (y_by_k - 2 * k * l) / (n - 2) + kappa * l
    spread = k * (all_l.sum() - l) + both - k * l
    by_l = x_by_l - k * l + spread / (n - 2) - kappa * (all_l.sum() - l)
    return (with_l + by_l / (n - 2)) / (n - 3)


def _item_product(product: Tensor, *_: Tensor) -> Tensor:
    """The biased form's share of an item."""
    return product


def _turned(x: Tensor) -> Tensor:
    """Rows with more dimensions than items as n coordinates: the same inner products, one QR step."""
    if x.shape[1] <= len(x):
        return x
    coordinates: Tensor = torch.linalg.qr(x.double().T, mode="r").R.T
    return coordinates


def _still(dtype: torch.dtype, n: int, mean: Tensor, spread: Tensor) -> bool:
    """Whether nothing varies beyond the rounding of the dtype; `spread` is the sum of squared norms of centred rows."""
    room = (16 * torch.finfo(dtype).eps) ** 2
    return bool(spread <= room * (spread + n * mean.square().sum()))
