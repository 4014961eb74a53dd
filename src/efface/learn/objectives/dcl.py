"""DCL: contrast without the positive in the denominator; weighted (DCLW), far positives pull more.

Paper: Yeh et al., Decoupled contrastive learning, arXiv 2110.06848. For the anchor z_i^k of view k, with
U_i^k = sum_{j != i} sum_m exp(<z_i^k, z_j^m> / T) over the 2 (B - 1) rows of the other items,

    L_i^k = log U_i^k - w_i <z_i^1, z_i^2> / T,  mean over the 2B anchors
    w_i = 1, or with `weighted` 2 - exp(<z_i^1, z_i^2> / sigma) / mean_j exp(<z_j^1, z_j^2> / sigma), without gradient

NT-Xent's gradient at an anchor is q_i times DCL's, q_i = 1 - softmax probability of the positive: what is easy, or has few
negatives, teaches little. Without the factor the gradients are 1 / q_i larger, so each method wants a learning rate of its
own. q_i is the sigmoid of the unweighted L_i^k, and its mean is logged as `coupling`. The loss has no lower bound at 0.

No official code was found; the form is lightly's (both directions, unit rows, no gradient through w). Departures: the
weights are a softmax over the positives of all processes, so that the value does not depend on their number; pairs are
masked exactly (a popular code adds log 1e-45 = -103, through which self-similarities leak at T near 0.01); repeated items
are masked by id, which matters more here than in NT-Xent, for nothing caps a false negative's gradient.
"""

from __future__ import annotations

import math
import warnings

from pydantic import Field
from torch import Tensor

from efface.catalog import Card
from efface.errors import InputError
from efface.learn.objective import ContrastiveConfig, Embedded, Recipe
from efface.numerics.contrast import check_marks, check_pair, paired_logits, scale_of
from efface.numerics.multi_view import energies_among

CARD = Card(
    name="dcl",
    system="dcl",
    title="DCL, decoupled contrastive learning",
    summary="NT-Xent without the positive in the denominator, so that easy positives and small batches still teach.",
    paper="Yeh et al., Decoupled contrastive learning, arXiv 2110.06848 (ECCV 2022)",
    verb="learn",
    mechanism="objectives",
    modalities=("any",),
    subjects=("encoder",),
    defaults_source="temperature 0.1, sigma 0.5: the paper; lightly has the same",
)

PUSHED = 0.05
"""Share of pairs with a negative weight from which DCLW warns: those pairs are pushed apart."""


class DCLConfig(ContrastiveConfig):
    """Temperature and weights."""

    temperature: float = Field(0.1, gt=0, description="paper: 0.1 (0.07 to 0.1 on CIFAR)")
    weighted: bool = Field(False, description="DCLW: positives that are far apart weigh more; paper: both forms")
    sigma: float = Field(0.5, gt=0, description="weighted: width of the von Mises-Fisher weight; paper: 0.5")


def dcl(
    first: Tensor, second: Tensor, temperature: float, *, sigma: float | None = None, ids: Tensor | None = None,
    tile: int | None = None,
) -> Tensor:  # fmt: skip
    """The mean over the 2B anchors, [].

    Args:
        first, second: [B, D] unit rows, the two views.
        temperature: T.
        sigma: of the weights; None leaves them at 1.
        ids: [B] int; rows of the anchor's id are left out.
        tile: side of a tile of the [2B, 2B] similarities.

    Raises:
        InputError: see `check_pair`; T or sigma not above 0; ids that are not [B] integers; an anchor without any negative.
    """
    scale = scale_of(temperature)
    check_pair(first, second, scale, paired=True)
    ids = None if ids is None else check_marks("ids", ids, len(first))
    weights = None if sigma is None else vmf_weights(first, second, sigma)
    return dcl_losses(first, second, first, second, scale, weights=weights, ids=ids, ids_all=ids, tile=tile).mean()


def dcl_losses(
    first: Tensor, second: Tensor, first_all: Tensor, second_all: Tensor, scale: Tensor | float, *, start: int = 0,
    weights: Tensor | None = None, ids: Tensor | None = None, ids_all: Tensor | None = None, tile: int | None = None,
) -> Tensor:  # fmt: skip
    """L_i of the local anchors [first; second] among [first_all; second_all] -> [2b].

    Args:
        first, second: [b, D], rows start to start + b of the whole.
        first_all, second_all: [B, D].
        weights: [b] w_i; None for 1.
    """
    energies = energies_among(
        (first, second), (first_all, second_all), scale, "item", start=start, ids=ids, ids_all=ids_all, tile=tile
    )  # [2, b]
    positive = paired_logits(first, second, scale)
    return (energies - (positive if weights is None else weights * positive)).reshape(-1)


def vmf_weights(first_all: Tensor, second_all: Tensor, sigma: float) -> Tensor:
    """w [B], mean 1 over the batch, at most 2 and negative where one positive is far closer than the rest; no gradient.

    Raises:
        InputError: sigma not above 0.
    """
    if not (sigma > 0 and math.isfinite(sigma)):
        raise InputError(f"sigma {sigma}", "a number above 0", "the paper's is 0.5")
    closeness = paired_logits(first_all.detach(), second_all.detach(), 1 / sigma)
    return 2 - len(closeness) * closeness.softmax(0)


def coupling(losses: Tensor) -> Tensor:
    """q_i = U_i / (exp(s_i+) + U_i), the factor of NT-Xent's gradient, from unweighted losses of DCL; same shape."""
    return losses.detach().sigmoid()


def _loss(batch: Embedded, config: DCLConfig) -> tuple[Tensor, dict[str, float]]:
    check_pair(batch.first, batch.second_all, batch.scale)
    check_pair(batch.second, batch.first_all, batch.scale)
    losses = dcl_losses(
        batch.first, batch.second, batch.first_all, batch.second_all, batch.scale, start=batch.start,
        ids=batch.ids if config.unique_ids else None, ids_all=batch.ids_all, tile=config.tile,
    )  # fmt: skip
    numbers = {"coupling": float(coupling(losses).mean())}
    if config.weighted:
        weights = vmf_weights(batch.first_all, batch.second_all, config.sigma)
        pushed = float((weights < 0).float().mean())
        numbers |= {"least_weight": float(weights.min()), "pushed_apart": pushed}
        if pushed > PUSHED:
            warnings.warn(
                f"dcl: sigma={config.sigma:g} gives {pushed:.0%} of the pairs a negative weight, which pushes them apart; "
                "raise sigma", stacklevel=2,
            )  # fmt: skip
        own = weights[batch.start : batch.start + len(batch.first)]
        # log U - w s = (log U - s) + (1 - w) s
        losses = losses + ((1 - own) * paired_logits(batch.first, batch.second, batch.scale)).repeat(2)
    return losses.sum() / (2 * batch.total), numbers


CONFIG = DCLConfig
RECIPE = Recipe(CARD, CONFIG, _loss, takes="views")
