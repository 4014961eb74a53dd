"""Contrast in a subspace of each anchor's own: a gate in (0, 1)^D switches dimensions of the anchor and of all its keys.

Paper: SimLAP (v1: Hydra), arXiv 2410.18200. With w_i = g_i^2 the gated cosine needs three products and no [B, M, D]:

    s_im = (z_i w_i) . k_m / sqrt( (w_i . z_i^2) (w_i . k_m^2) ) / T

Loss: every positive of an anchor against its negatives only, averaged over all positive pairs of the batch,
l_im = log( exp(s_im) + sum_{m' negative} exp(s_im') ) - s_im. Departure from the official code: it subtracts a row's mean
before it exponentiates, which overflows at a small T; log-sum-exp does not.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from efface.errors import InputError
from efface.numerics.contrast import shape, wide

TINY = 1e-12
"""Least squared length of a gated row: what is gated away entirely is alike to nothing, and no quotient of zeros."""


def gated_cosine(z: Tensor, k: Tensor, gates: Tensor) -> Tensor:
    """Cosine of z_i g_i and k_m g_i -> [B, M]; memory is that of the result and of the inputs.

    Args:
        z: [B, D] anchors.
        k: [M, D] keys.
        gates: [B, D], one for each anchor.

    Raises:
        InputError: shapes that do not fit.
    """
    if z.ndim != 2 or k.ndim != 2 or gates.shape != z.shape or k.shape[1] != z.shape[1]:
        raise InputError(
            f"anchors {shape(z)}, keys {shape(k)}, gates {shape(gates)}", "[B, D], [M, D] and [B, D] with one D"
        )
    z, k, weights = wide(z), wide(k), wide(gates).square()
    anchor = (weights * z.square()).sum(1).clamp(min=TINY)  # [B]
    keys = (weights @ k.square().T).clamp(min=TINY)  # [B, M]
    return (z * weights) @ k.T * (anchor[:, None] * keys).rsqrt()


def pair_losses(logits: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """[B]: the sum of l_im over each anchor's positives.

    Args:
        logits: [B, M] s.
        positive, negative: [B, M] bool.

    Raises:
        InputError: an anchor with positives and no negative.
    """
    some = negative.any(1)
    if bool((positive.any(1) & ~some).any()):
        raise InputError(
            "an anchor with positives and no negatives",
            "keys of a third class",
            "give batches of three classes or more",
        )
    rest = torch.logsumexp(torch.where(some[:, None], logits.masked_fill(~negative, -torch.inf), 0.0), 1)
    return (softplus(rest[:, None] - logits) * positive).sum(1)
