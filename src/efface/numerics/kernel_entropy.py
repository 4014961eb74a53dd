"""How spread a set of vectors is, by a Gaussian kernel: uniformity and entropy of any rows, joint entropy of two sets.

Paper: SepCLR, Louiset et al., arXiv 2402.11928, section 3, with k(x, y) = exp(-t ||x - y||^2) and t = 1 / (2 tau). Rows need
not be unit (`sphere.uniformity` is the tiled form for those that are). Of two sets of codes of the same items the joint kernel
is the product of both kernels, which is the kernel of the codes set side by side. One value needs B^2 numbers of memory.

Squared distances come from centred inner products and are cut off at 0, so that equal rows have a gradient of 0 (that of
`torch.cdist` is not defined there).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from efface.errors import InputError


def squared_distances(x: Tensor) -> Tensor:
    """||x_i - x_j||^2, [B, B]; the diagonal is exactly 0.

    Args:
        x: [B, D] floating point.

    Raises:
        InputError: not such a matrix.
    """
    if x.ndim != 2 or not x.is_floating_point():
        raise InputError(f"rows of shape {list(x.shape)}, {str(x.dtype).removeprefix('torch.')}", "[B, D] of floats")
    near = x - x.detach().mean(0)  # distances do not change, their rounding error does
    lengths = near.square().sum(1)
    found = (lengths[:, None] + lengths - 2 * near @ near.T).clamp(min=0)
    return found * ~torch.eye(len(x), dtype=torch.bool, device=x.device)


def kernel_uniformity(x: Tensor, t: float) -> Tensor:
    """log mean_{i<j} exp(-t ||x_i - x_j||^2), []: 0 when all rows are equal, low when they are far apart.

    Args:
        x: [B, D].
        t: sharpness of the kernel.

    Raises:
        InputError: fewer than two rows, or t not above 0.
    """
    logs = _logs(x, t)
    apart = ~torch.eye(len(x), dtype=torch.bool, device=x.device)
    return logs[apart].logsumexp(0) - math.log(len(x) * (len(x) - 1))


def kernel_entropy(x: Tensor, t: float) -> Tensor:
    """-mean_i log mean_j exp(-t ||x_i - x_j||^2), []: from 0 (all rows equal) to log B (all far apart); j = i counts.

    Values at different B are not to be compared. Arguments and errors are those of `kernel_uniformity`.
    """
    logs = _logs(x, t)
    return math.log(len(x)) - logs.logsumexp(1).mean()


def joint_kernel_entropy(x: Tensor, y: Tensor, t: float) -> Tensor:
    """-mean_i log mean_j exp(-t ||x_i - x_j||^2) exp(-t ||y_i - y_j||^2), []; see `kernel_entropy`.

    Args:
        x, y: [B, D], [B, E] two codes of the same items.
        t: sharpness of both kernels.

    Raises:
        InputError: numbers of rows that differ; see `kernel_uniformity`.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise InputError(f"codes of shapes {list(x.shape)} and {list(y.shape)}", "[B, D] and [B, E] of the same items")
    return kernel_entropy(torch.cat([x, y.to(x.dtype)], 1), t)


def _logs(x: Tensor, t: float) -> Tensor:
    if not (math.isfinite(t) and t > 0):
        raise InputError(f"a kernel with t = {t}", "a number above 0")
    found = -t * squared_distances(x)
    if len(x) < 2:
        raise InputError(f"{len(x)} rows", "two or more: a spread needs another one")
    return found
