"""PixPro: a cell, smoothed by the cells of its own view that look like it, is to equal the matching cell of the other view.

Paper: Xie et al., arXiv 2011.10043, section 3.2. With x [N, D] the cells of one view after the head, g a few 1 x 1
convolutions, x' [M, D] unit cells of the moving copy in the other view and A [N, M] the matches:

    y_i = sum_j max(cos(x_i, x_j), 0)^gamma g(x_j) / ||g(x_j)||          (pixel propagation)
    L   = -2 mean over images of ( mean_{A_ij} cos(y_i, x'_j) + the same with the views swapped )

There are no negatives. Departures from the official code (zdaxie/PixPro): the mean over images leaves out those without a
match (there they count as 0 and dilute it) and the mean over pairs has no 1e-6 in it; the instance branch pools whatever
size the map has (there 7 x 7 only). The factor 2 is the code's. See `learn.pixel_towers` for optimiser and views.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from efface.catalog import Card
from efface.errors import InputError
from efface.learn.heads import MapNorm
from efface.learn.module import Lesson
from efface.learn.objective import Recipe
from efface.learn.pixel_towers import PixelConfig, PixelModule, Seen, cells_of, draws, pixel_head, total
from efface.numerics.contrast import shape

CARD = Card(
    name="pixpro",
    system="pixpro",
    title="PixPro",
    summary="Features for every place of a picture: each cell, smoothed by its like, is to equal the moving copy's matching "
    "cell. No negatives, no gradient caching; a batch of b pictures needs about 16 b cells^2 bytes.",
    paper="Xie et al., Propagate yourself, arXiv 2011.10043 (CVPR 2021)",
    verb="learn",
    mechanism="recipes",
    modalities=("image",),
    subjects=("encoder",),
    defaults_source="the released scripts (gamma 2, one value layer); optimiser and batch: efface (there LARS, batch 1024)",
)

ROOM = 1e-6
"""Added before a power below 1, whose slope at 0 is infinite (the official code)."""


class PixProConfig(PixelConfig):
    """Propagation and the instance branch."""

    gamma: float = Field(2.0, ge=0, description="sharpness of the smoothing; PixPro's scripts: 2")
    value_layers: int = Field(1, ge=0, description="1 x 1 convolutions of g; PixPro's scripts: 1; 0: g(x) = x")
    instance_weight: float = Field(0.0, ge=0, description="of the loss of whole pictures; PixPro: 0, with the branch 1")


def propagate(cells: Tensor, values: Tensor, gamma: float) -> Tensor:
    """y_i = sum_j max(cos(x_i, x_j), 0)^gamma v_j / ||v_j||, [B, N, D].

    Args:
        cells: [B, N, C] x, of any length.
        values: [B, N, D] v.
        gamma: 0 or above; 0 gives every cell the same sum.

    Raises:
        InputError: shapes that do not fit, or gamma below 0.
    """
    if cells.ndim != 3 or values.ndim != 3 or cells.shape[:2] != values.shape[:2]:
        raise InputError(f"cells {shape(cells)} and values {shape(values)}", "[B, N, C] and [B, N, D]")
    if gamma < 0:
        raise InputError(f"gamma = {gamma}", "0 or above")
    near = normalize(cells, dim=2)
    alike = (near @ near.transpose(1, 2)).clamp(min=0)
    return ((alike + ROOM if gamma < 1 else alike) ** gamma) @ normalize(values, dim=2)


def agreement(first: Tensor, second: Tensor, match: Tensor) -> Tensor:
    """[B] mean cosine over the matching pairs of cells of each image; 0 where there is none.

    Args:
        first: [B, N, D].
        second: [B, M, D].
        match: [B, N, M] bool.

    Raises:
        InputError: shapes that do not fit.
    """
    fit = first.ndim == second.ndim == 3 and first.shape[::2] == second.shape[::2]
    if not fit or match.shape != (*first.shape[:2], second.shape[1]):
        raise InputError(
            f"cells {shape(first)} and {shape(second)} with matches {shape(match)}",
            "[B, N, D], [B, M, D] and [B, N, M]",
        )
    cosines = normalize(first, dim=2) @ normalize(second, dim=2).transpose(1, 2)
    return (cosines * match).sum((1, 2)) / match.sum((1, 2)).clamp(min=1)


def value_layers(width: int, layers: int) -> nn.Module:
    """g: 1 x 1 convolutions that keep the width, with norm and ReLU between them."""
    found: list[nn.Module] = []
    for place in range(layers):
        if place:
            found += [MapNorm(width), nn.ReLU()]
        found.append(nn.Conv2d(width, width, 1))
    return nn.Sequential(*found)


class PixProModule(PixelModule):
    """Propagation on the trained side; optionally a projector and a predictor of whole pictures."""

    def __init__(self, subject: Any, config: Any, lesson: Lesson) -> None:
        super().__init__(subject, config, lesson, instance=config.instance_weight > 0)
        self.values = value_layers(config.head_width, config.value_layers)
        self.predictor: nn.Module | None = None
        if config.instance_weight > 0:
            self.predictor = pixel_head(config.head_width, config.head_hidden, config.head_width)

    def pixel_loss(self, online: list[Seen], keys: list[Seen], match: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Both directions, by the images of all processes that have a match."""
        count = total(match.flatten(1).any(1).sum())
        value = online[0].cells.sum() * 0
        for one, other, pairs in ((0, 1, match), (1, 0, match.transpose(1, 2))):
            values = cells_of(self.values(online[one].heads[0]))
            smooth = propagate(online[one].cells, values, self.settings.gamma)
            value = value - 2 * agreement(smooth, keys[other].cells, pairs).sum() / count
        numbers = {"pixel": float(value.detach())}
        if self.predictor is None:
            return value, numbers
        instance = self.instance_loss(online, keys)
        return value + self.settings.instance_weight * instance, numbers | {"instance": float(instance.detach())}

    def instance_loss(self, online: list[Seen], keys: list[Seen]) -> Tensor:
        """-2 cos between a view's predicted and the other view's slow mean vector, both ways: this process's share."""
        assert self.predictor is not None
        rows = total(torch.tensor(len(online[0].maps), device=online[0].maps.device))
        value = online[0].maps.new_zeros(())
        for one, other in ((0, 1), (1, 0)):
            said = self.predictor(online[one].heads[1]).mean((2, 3))
            value = value - 2 * cosine_similarity(said, keys[other].heads[1].mean((2, 3)), dim=1).sum() / rows
        return value


CONFIG = PixProConfig
RECIPE = Recipe(CARD, CONFIG, None, takes="views", draws=draws, build=PixProModule)
