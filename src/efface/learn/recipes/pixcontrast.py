"""PixContrast: a cell of one view is to find the cells of the other that show the same point, among all cells of that view.

Paper: Xie et al., arXiv 2011.10043, section 3.1, equation 2, with x [N, D] unit cells of the trained tower, x' [M, D] of the
moving copy, and A [N, M] the matches:

    L_i = -log( sum_{j: A_ij} exp(x_i . x'_j / T) / sum_j exp(x_i . x'_j / T) ),  mean over cells i with a match

It is not in the released code. Chosen here: the mean goes over the cells of the whole batch, and the loss is the mean of
both directions. The negatives are the cells of the same picture's other view.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from efface.catalog import Card
from efface.errors import InputError
from efface.learn.module import Lesson
from efface.learn.objective import Recipe
from efface.learn.pixel_towers import PixelConfig, PixelModule, Seen, cells_of, draws, total
from efface.numerics.contrast import scale_of, shape

CARD = Card(
    name="pixcontrast",
    system="pixpro",
    title="PixContrast",
    summary="Contrast between places: cells of two views that show the same point of a picture attract each other. No "
    "gradient caching; a batch of b pictures needs about 16 b cells^2 bytes.",
    paper="Xie et al., Propagate yourself, arXiv 2011.10043 (CVPR 2021), section 3.1",
    verb="learn",
    mechanism="recipes",
    modalities=("image",),
    subjects=("encoder",),
    defaults_source="temperature 0.3: the paper; the rest is PixPro's",
)


class PixContrastConfig(PixelConfig):
    """PixContrast's temperature."""

    temperature: float = Field(0.3, gt=0, description="PixContrast: 0.3")


def pixel_contrast(queries: Tensor, keys: Tensor, match: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(sum of L_i over the cells that have a match [], their number []).

    Args:
        queries: [B, N, D] unit cells of one view.
        keys: [B, M, D] unit cells of the other; no gradient flows into them.
        match: [B, N, M] bool.
        temperature: T.

    Raises:
        InputError: shapes that do not fit, or T <= 0.
    """
    scale = scale_of(temperature)
    fit = queries.ndim == keys.ndim == 3 and queries.shape[::2] == keys.shape[::2]
    if not fit or match.shape != (*queries.shape[:2], keys.shape[1]):
        raise InputError(
            f"cells {shape(queries)} and {shape(keys)} with matches {shape(match)}",
            "[B, N, D], [B, M, D] and [B, N, M]",
        )
    has = match.any(2)
    logits = (scale * queries @ keys.detach().transpose(1, 2))[has]  # [R, M]: rows without a match would give NaN
    found = logits.logsumexp(1) - logits.masked_fill(~match[has], float("-inf")).logsumexp(1)
    return found.sum(), has.sum()


class PixContrastModule(PixelModule):
    """The trained tower's cells against the moving copy's."""

    def __init__(self, subject: Any, config: Any, lesson: Lesson) -> None:
        super().__init__(subject, config, lesson)

    def pixel_loss(self, online: list[Seen], keys: list[Seen], match: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Both directions, by the cells of all processes that have a match."""
        value = online[0].cells.sum() * 0
        for one, other, pairs in ((0, 1, match), (1, 0, match.transpose(1, 2))):
            losses, count = pixel_contrast(
                normalize(online[one].cells, dim=2), normalize(cells_of(keys[other].heads[0]), dim=2), pairs,
                self.settings.temperature,
            )  # fmt: skip
            value = value + losses / (2 * total(count))
        return value, {}


CONFIG = PixContrastConfig
RECIPE = Recipe(CARD, CONFIG, None, takes="views", draws=draws, build=PixContrastModule)
