"""Mutual information machines: densities of a Gaussian posterior and of decoders, A-MIM, and a contrast without positives.

Papers: MIM, Livne et al., arXiv 1910.03175 (log q enters with the opposite sign of a VAE's: a sharp posterior is rewarded);
cMIM, Livne, arXiv 2502.19642. Every density is summed over pixels and over latent dimensions: one number [B] a row.
"""

from __future__ import annotations

import math
import warnings

from torch import Tensor
from torch.nn import functional as F

from efface.errors import InputError
from efface.numerics.contrast import scale_of
from efface.numerics.lse import lse_rows
from efface.numerics.masks import Shifted

LOG_2PI = math.log(2 * math.pi)
EPS = 1e-8
"""Added to no norm: a code shorter than this is treated as one of this length, so that a zero code has the cosine 0."""


def log_posterior(z: Tensor, mu: Tensor, log_variance: Tensor) -> Tensor:
    """log N(z; mu, diag exp(lv)), [B] of three [B, d]: -1/2 sum_d (log 2 pi + lv + (z - mu)^2 / exp(lv))."""
    return -0.5 * (LOG_2PI + log_variance + (z - mu).square() * (-log_variance).exp()).sum(-1)


def log_prior(z: Tensor) -> Tensor:
    """log N(z; 0, I), [B] of [B, d]."""
    return -0.5 * (LOG_2PI + z.square()).sum(-1)


def log_bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    """sum x log s(l) + (1 - x) log s(-l) over all values, [B] of two [B, ...]; x in [0, 1].

    Raises:
        InputError: shapes that differ, or x outside [0, 1].
    """
    _same(x, logits)
    if x.numel() and not bool(((x >= 0) & (x <= 1)).all()):
        raise InputError(
            f"values from {float(x.min()):.4g} to {float(x.max()):.4g} under a Bernoulli likelihood", "values in [0, 1]",
            "scale them, or choose the Gaussian likelihood",
        )  # fmt: skip
    return -F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)


def log_gaussian(x: Tensor, mean: Tensor, deviation: float) -> Tensor:
    """log N(x; mean, deviation^2 I) over all values, [B] of two [B, ...].

    Raises:
        InputError: shapes that differ, or a deviation that is not above 0.
    """
    _same(x, mean)
    if not (deviation > 0 and math.isfinite(deviation)):
        raise InputError(f"a Gaussian of deviation {deviation}", "a number above 0")
    each = LOG_2PI + 2 * math.log(deviation) + ((x - mean) / deviation).square()
    return -0.5 * each.flatten(1).sum(1)


def a_mim(log_x: Tensor, log_q: Tensor, log_p: Tensor) -> Tensor:
    """-(log p(x|z) + 1/2 (log q(z|x) + log P(z))), [B]; note the plus sign of log q."""
    return -(log_x + 0.5 * (log_q + log_p))


def negative_elbo(log_x: Tensor, log_q: Tensor, log_p: Tensor) -> Tensor:
    """-(log p(x|z) + log P(z) - log q(z|x)), [B]: one sample of a VAE's loss, the baseline."""
    return -(log_x + log_p - log_q)


def self_contrast(
    codes: Tensor, temperature: float, *, codes_all: Tensor | None = None, start: int = 0, tile: int | None = None
) -> Tensor:
    """-log p_i of 'z_i belongs to x_i', [b]: the positive is the code itself, negatives enter by their mean.

    -log p_i = log(1 + exp(lse_{j != i}(c_ij / T) - log(B - 1) - 1 / T)), c the cosine. It lies between
    log(1 + exp(-2 / T)) and log 2 (all codes alike) whatever B is.

    Args:
        codes: [b, d] this process's.
        temperature: T.
        codes_all: [B, d] of all processes, of which the rows from `start` on are `codes`; default: `codes`.
        start: the place of the first local row.
        tile: side of a tile of the [b, B] cosines.

    Returns:
        zeros, with a warning, for a single code: it has nothing to be told from.

    Raises:
        InputError: T <= 0, or no matrix.
    """
    scale = scale_of(temperature)
    if codes.ndim != 2:
        raise InputError(f"codes of shape {list(codes.shape)}", "[B, d]")
    everyone = codes if codes_all is None else codes_all
    if len(everyone) < 2:
        warnings.warn("one code in the batch: the contrastive factor is 0", stacklevel=2)
        return 0 * codes.sum(1)
    own, others = (F.normalize(rows.float() if rows.dtype.itemsize < 4 else rows, dim=1, eps=EPS)
                   for rows in (codes, everyone))  # fmt: skip
    among = lse_rows(own, others, scale, exclude=Shifted(start), tile=tile)
    return F.softplus(among - math.log(len(everyone) - 1) - scale)


def _same(x: Tensor, other: Tensor) -> None:
    if x.shape != other.shape or x.ndim < 2:
        raise InputError(f"data {list(x.shape)} and a reconstruction {list(other.shape)}", "one shape [B, ...]")


__all__ = [
    "a_mim", "log_bernoulli", "log_gaussian", "log_posterior", "log_prior", "negative_elbo", "self_contrast",
]  # fmt: skip
