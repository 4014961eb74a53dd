"""SupCon: every view of the anchor's class is a positive, averaged outside the logarithm.

Paper: Khosla et al., arXiv 2004.11362, equation 2 ('out'). Over N embeddings, P(i) those of i's label without i:

    L_i = -(1/|P(i)|) sum_{p in P(i)} [ s_ip - log sum_{a != i} exp(s_ia) ],  s = <z, z> / T

Departures from the official code: it multiplies by T / T_base, which only rescales the learning rate; we do not, nor does
the paper's equation. Anchors without a positive are left out of the mean and counted.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from efface.catalog import Card
from efface.learn.objective import ContrastiveConfig, Embedded, Recipe
from efface.numerics.contrast import Contrast, check_marks, check_pair, scale_of, supervised_contrast
from efface.numerics.masks import Mask, Same, Shifted

CARD = Card(
    name="sup-con",
    system="infonce-core",
    title="SupCon",
    summary="Pulls all views of one class together and apart from the other classes.",
    paper="Khosla et al., Supervised contrastive learning, arXiv 2004.11362 (NeurIPS 2020)",
    verb="learn",
    mechanism="objectives",
    modalities=("any",),
    subjects=("encoder",),
    needs=("labels",),
    defaults_source="temperature 0.1: SupCon, section 4",
)


class SupConConfig(ContrastiveConfig):
    """SupCon's temperature."""

    temperature: float = Field(0.1, gt=0, description="SupCon, section 4: 0.1")


def sup_con(z: Tensor, labels: Tensor, temperature: float, *, tile: int | None = None) -> Tensor:
    """The mean over the anchors that have a positive, [].

    Args:
        z: [N, D] unit rows; put both views of an item beneath each other, with the label twice.
        labels: [N] int.
        temperature: T.
        tile: side of a tile of the [N, N] similarities.

    Raises:
        InputError: see `check_pair`; T <= 0; labels that are not [N] integers; no label appears twice.
    """
    scale = scale_of(temperature)
    check_pair(z, z, scale)
    labels = check_marks("labels", labels, len(z))
    found = supervised_contrast(z, z, scale, Same(labels), Shifted(0), tile=tile)
    return found.losses.sum() / (found.positives > 0).sum()


def sup_con_views(
    first: Tensor, second: Tensor, first_all: Tensor, second_all: Tensor, labels: Tensor, labels_all: Tensor,
    scale: Tensor | float, *, start: int = 0, ids: Tensor | None = None, ids_all: Tensor | None = None,
    tile: int | None = None,
) -> Contrast:  # fmt: skip
    """One loss for each local anchor of [first; second] among [first_all; second_all]: [2b].

    Each has its other view as a positive. Candidates of the anchor's id and another label are left out.
    """
    total = len(first_all)
    place = torch.arange(start, start + len(first), device=first.device)
    everyone = torch.arange(2 * total, device=first.device)
    positive = Same(labels.repeat(2), labels_all.repeat(2))
    exclude: Mask = Same(torch.cat([place, place + total]), everyone)  # itself
    if ids is not None and ids_all is not None:
        exclude = exclude | (Same(ids.repeat(2), ids_all.repeat(2)) & ~positive)
    anchors, candidates = torch.cat([first, second]), torch.cat([first_all, second_all])
    return supervised_contrast(anchors, candidates, scale, positive, exclude, tile=tile)


def _loss(batch: Embedded, config: SupConConfig) -> tuple[Tensor, dict[str, float]]:
    check_pair(batch.first, batch.second_all, batch.scale)
    check_pair(batch.second, batch.first_all, batch.scale)
    labels = check_marks("labels", batch.labels, len(batch.first))
    labels_all = check_marks("labels", batch.labels_all, batch.total)
    found = sup_con_views(
        batch.first, batch.second, batch.first_all, batch.second_all, labels, labels_all, batch.scale,
        start=batch.start, ids=batch.ids if config.unique_ids else None, ids_all=batch.ids_all, tile=config.tile,
    )  # fmt: skip
    return found.losses.sum() / (2 * batch.total), {"positives": float(found.positives.float().mean())}


CONFIG = SupConConfig
RECIPE = Recipe(CARD, CONFIG, _loss, takes="labelled")
