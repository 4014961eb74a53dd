"""The four terms of SepCLR: common and salient codes, a background without salient information, and no shared information.

Paper: Louiset et al., arXiv 2402.11928, section 3. Common codes c [B, d_c] are unit, salient ones s [B, d_s] of any length;
target [B] says which rows may hold something salient, s' is s with the background's rows at 0. The kernel is
exp(-||x - y||^2 / (2 tau)), so t = 1 / (2 tau) in `kernel_entropy`.
"""

from __future__ import annotations

from torch import Tensor

from efface.errors import InputError
from efface.numerics.kernel_entropy import joint_kernel_entropy, kernel_uniformity

FEWEST = 2
"""Rows of each set in a batch: the mean over none is not a number, and uniformity needs a pair."""


def align(a: Tensor, b: Tensor | float, temperature: float) -> Tensor:
    """mean_i ||a_i - b_i||^2 / (2 tau), [].

    Args:
        a: [B, D].
        b: [B, D], or a number for every entry.
        temperature: tau.

    Raises:
        InputError: no rows: their mean is not a number.
    """
    if a.ndim != 2 or not len(a):
        raise InputError(f"codes of shape {list(a.shape)}", "[B, D] with a row at least", "give rows of both sets")
    return (a - b).square().sum(1).mean() / (2 * temperature)


def common_loss(first: Tensor, second: Tensor, temperature: float, weight: float = 2.0) -> Tensor:
    """align(c1, c2) + weight (unif(c1) + unif(c2)) / 2 over all rows, [].

    Args:
        first, second: [B, d_c] unit codes of two views.
        temperature: tau.
        weight: of the uniformity.
    """
    t = 1 / (2 * temperature)
    spread = (kernel_uniformity(first, t) + kernel_uniformity(second, t)) / 2
    return align(first, second, temperature) + weight * spread


def salient_loss(first: Tensor, second: Tensor, target: Tensor, temperature: float, weight: float = 2.0) -> Tensor:
    """align of the target's codes + weight times the uniformity of all rows with the background's at 0, [].

    Args:
        first, second: [B, d_s] codes of two views.
        target: [B] bool.

    Raises:
        InputError: fewer than two rows of either set.
    """
    check_sets(target)
    t = 1 / (2 * temperature)
    spread = (kernel_uniformity(taught(first, target), t) + kernel_uniformity(taught(second, target), t)) / 2
    return align(first[target], second[target], temperature) + weight * spread


def information_loss(first: Tensor, second: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Mean over the views of ||s||^2 / (2 tau) of the background, []. Arguments and errors: see `salient_loss`."""
    check_sets(target)
    return (align(first[~target], 0.0, temperature) + align(second[~target], 0.0, temperature)) / 2


def joint_loss(
    common: tuple[Tensor, Tensor], salient: tuple[Tensor, Tensor], target: Tensor, temperature: float
) -> Tensor:
    """Mean over the views of minus the joint kernel entropy of c and s', [], between -log B and 0.

    Args:
        common: of two views, [B, d_c].
        salient: of two views, [B, d_s].
        target: [B] bool.
    """
    t = 1 / (2 * temperature)
    found = [-joint_kernel_entropy(c, taught(s, target), t) for c, s in zip(common, salient, strict=True)]
    return (found[0] + found[1]) / 2


def taught(salient: Tensor, target: Tensor) -> Tensor:
    """s' [B, d_s]: the target's codes, and 0 for the background."""
    return salient * target[:, None].to(salient)


def check_sets(target: Tensor) -> None:
    """Refuse a batch in which a set is missing.

    Raises:
        InputError: fewer than two rows of either set.
    """
    count, total = int(target.sum()), len(target)
    if min(count, total - count) < FEWEST:
        raise InputError(f"{count} target rows and {total - count} background rows", f"{FEWEST} of each at least")
