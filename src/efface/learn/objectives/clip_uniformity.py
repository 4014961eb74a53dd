"""CLIP with uniformity and alignment: spreads both sides over the sphere and closes the gap between them.

Paper: Fahim, Murphy and Fyshe, It's Not a Modality Gap, arXiv 2405.18570 (2024). With X, Y the unit rows of both sides:

    L = L_CLIP + w_u (U(X) + U(Y)) / 2 + w_a mean_i ||x_i - y_i||^2 + w_xu log mean_{i != j} exp(-2 ||x_i - y_j||^2)

CUA is w_xu = 0, CUAXU w_xu = 1. The authors' code carries no licence that we know of; nothing of it was copied.
Departures: uniformity is exact in tiles, and over several processes it is that of the whole batch.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor

from efface.catalog import Card
from efface.learn.objective import ContrastiveConfig, Embedded, Recipe
from efface.learn.objectives.clip import batch_losses, clip
from efface.numerics.contrast import scale_of
from efface.numerics.sphere import alignment, alignment_rows, cross_uniformity, uniformity

CARD = Card(
    name="clip-uniformity",
    system="contrastive-gap",
    title="CLIP with uniformity and alignment (CUA, CUAXU)",
    summary="Adds uniformity within and across the two sides and alignment of the pairs to CLIP's loss; closes the gap.",
    paper="Fahim, Murphy and Fyshe, It's not a modality gap, arXiv 2405.18570 (2024)",
    verb="learn",
    mechanism="objectives",
    modalities=("image", "text"),
    subjects=("dual-encoder",),
    defaults_source="all weights 1, t = 2, temperature fixed at 0.01: arXiv 2405.18570",
)
T = 2.0
"""t of the uniformities, as in the paper."""


class CLIPUniformityConfig(ContrastiveConfig):
    """Weights of the terms, and the temperature, which stays where it is."""

    w_u: float = Field(1.0, ge=0, description="weight of the uniformity within each side; paper: 1")
    w_a: float = Field(1.0, ge=0, description="weight of the alignment of pairs; paper: 1")
    w_xu: float = Field(0.0, ge=0, description="weight of the uniformity across sides; CUA: 0, CUAXU: 1")
    temperature: float = Field(0.01, gt=0, description="fixed while training; paper: 0.01")
    learn_temperature: bool = Field(False, description="refused: that it stays fixed is part of the finding")

    @model_validator(mode="after")
    def _fixed(self) -> CLIPUniformityConfig:
        if self.learn_temperature:
            raise ValueError(
                f"learn_temperature together with a temperature fixed at {self.temperature:g}: one of both; a learnt one "
                "drifts and changes the gap, use the recipe clip for that"
            )
        return self


def clip_uniformity(
    first: Tensor, second: Tensor, temperature: float = 0.01, *, w_u: float = 1.0, w_a: float = 1.0, w_xu: float = 0.0,
    tile: int | None = None,
) -> Tensor:  # fmt: skip
    """The whole loss, [].

    Args:
        first, second: [B, D] unit rows of the two sides; row i of both belong together.
        temperature: of CLIP's term.
        w_u, w_a, w_xu: weights; a term of weight 0 is not computed.
        tile: side of a tile.

    Raises:
        InputError: fewer than three pairs, shapes that differ, rows that are not unit, T <= 0.
    """
    total = clip(first, second, scale_of(temperature), tile=tile)
    if w_u:
        total = total + w_u * (uniformity(first, T, tile) + uniformity(second, T, tile)) / 2
    if w_a:
        total = total + w_a * alignment(first, second)
    if w_xu:
        total = total + w_xu * cross_uniformity(first, second, T, tile)
    return total


def duplicate_share(batch: Embedded) -> float:
    """Share of the rows of all processes that have a twin; twins hold uniformity near 0.

    By id where there are ids, else by equal embeddings, on the side that has more of them.
    """
    marks = [batch.first_all, batch.second_all] if batch.ids_all is None else [batch.ids_all]
    shares = []
    for rows in marks:
        _, member, size = torch.unique(rows.detach(), return_inverse=True, return_counts=True, dim=0)
        shares.append(float((size[member] > 1).double().mean()))
    return max(shares)


def _loss(batch: Embedded, config: CLIPUniformityConfig) -> tuple[Tensor, dict[str, float]]:
    """CLIP and alignment are sums over the local pairs; a uniformity is one number of the whole batch.

    Every process computes it from all rows and takes its share of it, so that the processes add up to it once.
    """
    share, tile = len(batch.first) / batch.total, config.tile
    contrast = batch_losses(batch, config).sum() / batch.total
    numbers = {"clip": float(contrast.detach())}
    total = contrast
    if config.w_a:
        aligned = alignment_rows(batch.first, batch.second).sum() / batch.total
        numbers["alignment"] = float(aligned.detach())
        total = total + config.w_a * aligned
    if config.w_u:
        within = (uniformity(batch.first_all, T, tile) + uniformity(batch.second_all, T, tile)) / 2
        numbers["uniformity"] = float(within.detach())
        total = total + config.w_u * share * within
    if config.w_xu:
        across = cross_uniformity(batch.first_all, batch.second_all, T, tile)
        numbers["cross_uniformity"] = float(across.detach())
        total = total + config.w_xu * share * across
    numbers["duplicate_share"] = duplicate_share(batch)
    return total, numbers


CONFIG = CLIPUniformityConfig
RECIPE = Recipe(CARD, CONFIG, _loss, takes="pairs")
