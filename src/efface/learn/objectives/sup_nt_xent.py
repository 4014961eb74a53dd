"""Supervised NT-Xent, pair by pair: each positive pair competes with the anchor's negatives only, not with its other
positives. This is what pytorch-metric-learning calls NTXentLoss with labels; SupCon keeps all positives in the sum.

Paper: Sohn, N-pair loss (NeurIPS 2016), with NT-Xent's temperature (arXiv 2002.05709). For a positive pair (i, p):

    L_ip = -s_ip + log( exp(s_ip) + sum_{n: label n != label i} exp(s_in) ) = softplus(lse_n s_in - s_ip)

and the mean over all positive pairs, so an anchor counts once for each positive. Without labels it is NT-Xent.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from efface.catalog import Card
from efface.errors import InputError
from efface.learn.objective import ContrastiveConfig, Embedded, Recipe
from efface.numerics.contrast import check_marks, check_pair, lse_or_nothing, scale_of, shape
from efface.numerics.masks import Mask, Same, Shifted
from efface.numerics.sigmoid import softplus_rows

CARD = Card(
    name="sup-nt-xent",
    system="infonce-core",
    title="Supervised NT-Xent by pairs",
    summary="Every pair of one class is told from the anchor's other classes, each pair by itself.",
    paper="Sohn, Multi-class N-pair loss, NeurIPS 2016; Chen et al., arXiv 2002.05709 (ICML 2020)",
    verb="learn",
    mechanism="objectives",
    modalities=("any",),
    subjects=("encoder",),
    needs=("labels",),
    defaults_source="temperature 0.07: pytorch-metric-learning's NTXentLoss",
)


class SupNTXentConfig(ContrastiveConfig):
    """The temperature."""

    temperature: float = Field(0.07, gt=0, description="pytorch-metric-learning: 0.07")


def sup_nt_xent(z: Tensor, labels: Tensor, temperature: float, *, tile: int | None = None) -> Tensor:
    """The mean over all positive pairs, [].

    Args:
        z: [N, D] unit rows.
        labels: [N] int.
        temperature: T.
        tile: side of a tile of the [N, N] similarities.

    Raises:
        InputError: see `check_pair`; T <= 0; labels that are not [N] integers; no label appears twice.
    """
    scale = scale_of(temperature)
    check_pair(z, z, scale)
    labels = check_marks("labels", labels, len(z))
    pairs = positive_pairs(labels)
    return pair_losses(z, z, scale, Same(labels), Shifted(0), tile=tile).sum() / pairs


def pair_losses(
    q: Tensor, k: Tensor, scale: Tensor | float, same_label: Mask, itself: Mask, *, same_item: Mask | None = None,
    tile: int | None = None,
) -> Tensor:  # fmt: skip
    """sum_p L_ip of each anchor [b, D] among the candidates [N, D] -> [b]; 0 without positives or without negatives."""
    never = same_label if same_item is None else same_label | same_item
    negatives = lse_or_nothing(q, k, scale, exclude=never, tile=tile)
    pairs = same_label & ~itself
    return softplus_rows(q, k, scale, -negatives, positive=pairs, exclude=~pairs, tile=tile)


def positive_pairs(labels: Tensor) -> int:
    """Ordered pairs (i, p), i != p, of one label. Raises InputError if there is none."""
    n = torch.unique(labels, return_counts=True)[1]
    found = int((n * (n - 1)).sum())
    if found == 0:
        raise InputError(f"labels {shape(labels)}, each of them once", "a label that appears twice", "raise batch_size")
    return found


def _loss(batch: Embedded, config: SupNTXentConfig) -> tuple[Tensor, dict[str, float]]:
    check_pair(batch.first, batch.second_all, batch.scale)
    check_pair(batch.second, batch.first_all, batch.scale)
    labels = check_marks("labels", batch.labels, len(batch.first)).repeat(2)
    labels_all = check_marks("labels", batch.labels_all, batch.total).repeat(2)
    place = torch.arange(batch.start, batch.start + len(batch.first), device=labels.device)
    itself = Same(torch.cat([place, place + batch.total]), torch.arange(2 * batch.total, device=labels.device))
    twins: Mask | None = None
    if config.unique_ids and batch.ids is not None and batch.ids_all is not None:
        twins = Same(batch.ids.repeat(2), batch.ids_all.repeat(2))
    losses = pair_losses(
        torch.cat([batch.first, batch.second]), torch.cat([batch.first_all, batch.second_all]), batch.scale,
        Same(labels, labels_all), itself, same_item=twins, tile=config.tile,
    )  # fmt: skip
    pairs = positive_pairs(labels_all)
    return losses.sum() / pairs, {"positives": pairs / (2 * batch.total)}


CONFIG = SupNTXentConfig
RECIPE = Recipe(CARD, CONFIG, _loss, takes="labelled")
