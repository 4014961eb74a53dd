"""What the recipes of many views share: their number, how they are drawn, and what is logged of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from pydantic import Field
from torch import Tensor

from efface.learn.objective import ContrastiveConfig
from efface.learn.views.images import ViewConfig
from efface.numerics.multi_view import pair_logits, unordered


class MultiViewConfig(ContrastiveConfig):
    """The number of views and the temperature."""

    n_views: int = Field(4, ge=2, description="N views of each item; arXiv 2507.06979: 2, 3, 4, to 8 and more")
    temperature: float = Field(
        0.5, gt=0, description="official code: 0.5 on CIFAR and ImageNet-100, 0.1 on ImageNet-1K"
    )


def draws(config: MultiViewConfig) -> Sequence[ViewConfig]:
    """`n_views` views of one kind."""
    return [config.views] * config.n_views


def pair_cosines(views: Sequence[Tensor]) -> dict[str, float]:
    """Mean cosine of each pair of views, `cosine_0_1` and so on.

    The alignment term is led by the best pair; a view that agrees with no other shows only here.
    """
    means = unordered(pair_logits([view.detach() for view in views], 1.0)).mean(0)
    return {
        f"cosine_{i}_{j}": float(mean) for (i, j), mean in zip(combinations(range(len(views)), 2), means, strict=True)
    }
