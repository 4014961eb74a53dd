"""What the recipes of many views share: their number, how they are drawn, how their losses are called, what is logged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from pydantic import Field
from torch import Tensor

from efface.learn.objective import ContrastiveConfig, Embedded, LossOfStep
from efface.learn.views.images import ViewConfig
from efface.numerics.contrast import check_marks, scale_of
from efface.numerics.multi_view import as_views, check_views, pair_logits, unordered

ViewLosses = Callable[..., Tensor]
"""(views, views_all, scale, *, start, ids, ids_all, tile, ...) -> [b] the losses of the local items."""


class MultiViewConfig(ContrastiveConfig):
    """The number of views and the temperature."""

    n_views: int = Field(4, ge=2, description="N views of each item; arXiv 2507.06979: 2, 3, 4, to 8 and more")
    temperature: float = Field(
        0.5, gt=0, description="official code: 0.5 on CIFAR and ImageNet-100, 0.1 on ImageNet-1K"
    )


def draws(config: Any) -> Sequence[ViewConfig]:
    """`n_views` views of one kind, of a configuration that has `n_views` and `views`."""
    return [config.views] * config.n_views


def pair_cosines(views: Sequence[Tensor]) -> dict[str, float]:
    """Mean cosine of each pair of views, `cosine_0_1` and so on.

    The alignment term is led by the best pair; a view that agrees with no other shows only here.
    """
    means = unordered(pair_logits([view.detach() for view in views], 1.0)).mean(0)
    return {
        f"cosine_{i}_{j}": float(mean) for (i, j), mean in zip(combinations(range(len(views)), 2), means, strict=True)
    }


def mean_over_items(
    losses: ViewLosses, views: Tensor | Sequence[Tensor], temperature: float, *, ids: Tensor | None, tile: int | None,
    **more: Any,
) -> Tensor:  # fmt: skip
    """The mean of `losses` over the items of one process, [].

    Args:
        views: [V, B, D], or V times [B, D]; unit rows, row i of all views is item i.
        ids: [B] int, or None.
        more: further arguments of `losses`.

    Raises:
        InputError: see `as_views` and `check_pair`; T <= 0; ids that are not [B] integers.
    """
    scale, z = scale_of(temperature), as_views(views)
    check_views(z, z, scale)
    ids = None if ids is None else check_marks("ids", ids, len(z[0]))
    return losses(z, z, scale, ids=ids, ids_all=ids, tile=tile, **more).mean()


def step_of(losses: ViewLosses, more: Callable[[Any], dict[str, Any]] = lambda config: {}) -> LossOfStep:
    """`losses` as the runner calls an objective.

    Args:
        more: configuration -> further arguments of `losses`.
    """

    def step(batch: Embedded, config: Any) -> tuple[Tensor, dict[str, float]]:
        check_views(batch.views, batch.views_all, batch.scale)
        found = losses(
            batch.views, batch.views_all, batch.scale, start=batch.start, ids=batch.ids if config.unique_ids else None,
            ids_all=batch.ids_all, tile=config.tile, **more(config),
        )  # fmt: skip
        return found.sum() / batch.total, pair_cosines(batch.views)

    return step
