"""The simple contrastive loss: pull the positive, push all negatives with one and the same weight.

It is the limit of the softmax loss at large temperatures. Paper: Wang and Liu, arXiv 2012.09740, section 3.1, equation 2.
With s_ij = <first_i, second_j>:

    L_i = -s_ii + lambda sum_{j != i} s_ij

No official code was found. Departures: negatives come from the batch, not from a memory bank; the sum over negatives is one
inner product with their total, so no matrix of similarities exists.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from efface.catalog import Card
from efface.errors import InputError
from efface.learn.objective import ContrastiveConfig, Embedded, Recipe
from efface.numerics.contrast import check_marks, check_pair, masked_sum, paired_logits, wide
from efface.numerics.masks import Same, counts

CARD = Card(
    name="simple-contrastive",
    system="contrastive-loss-behaviour",
    title="Simple contrastive loss",
    summary="Pulls the positive and pushes every negative alike: the softmax loss at very large temperature.",
    paper="Wang and Liu, Understanding the behaviour of contrastive loss, arXiv 2012.09740 (CVPR 2021)",
    verb="learn",
    mechanism="objectives",
    modalities=("any",),
    subjects=("encoder",),
    defaults_source="lambda = 1 / number of negatives: the limit of the softmax loss, arXiv 2012.09740, section 3.2",
)


class SimpleContrastiveConfig(ContrastiveConfig):
    """The weight of the negatives."""

    push: float | None = Field(
        None, gt=0, description="lambda, of each negative; default: one over their number (the large-temperature limit)"
    )


def simple_contrastive(
    first: Tensor, second: Tensor, *, push: float | None = None, ids: Tensor | None = None
) -> Tensor:  # fmt: skip
    """The mean over anchors, [].

    Args:
        first, second: [B, D] unit rows; row i of both belong together.
        push: lambda; None: one over the number of the anchor's negatives.
        ids: [B] int; keys of the anchor's id are not negatives.

    Raises:
        InputError: see `check_pair`; ids that are not [B] integers.
    """
    check_pair(first, second, 1.0, paired=True)
    ids = None if ids is None else check_marks("ids", ids, len(first))
    return simple_losses(first, second, second, push=push, ids=ids, ids_all=ids).mean()


def simple_losses(
    first: Tensor, second: Tensor, second_all: Tensor, *, push: float | None = None, ids: Tensor | None = None,
    ids_all: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """L_i of the local anchors, [b].

    Args:
        first, second: [b, D]; second_all: [B, D], with the local rows among them.
        ids, ids_all: [b], [B].

    Raises:
        InputError: an anchor whose id every key carries: it has no negative.
    """
    positive = paired_logits(first, second, 1.0)
    if ids is None or ids_all is None:
        negatives = first.new_full((len(first),), len(second_all) - 1, dtype=positive.dtype)
        sums = (wide(first) * wide(second_all).sum(0)).sum(1) - positive
    else:
        same = Same(ids, ids_all)  # the positive itself is among them
        negatives = (len(second_all) - counts(same, len(ids), len(ids_all), device=first.device)).to(positive.dtype)
        left_out = masked_sum(second_all, same, len(first))
        sums = (wide(first) * (wide(second_all).sum(0) - left_out)).sum(1)
    if bool((negatives == 0).any()):
        raise InputError(
            f"anchor {int((negatives == 0).nonzero()[0])} has no negative: every key carries its id", "one or more",
            "raise batch_size, or set unique_batches",
        )  # fmt: skip
    return torch.addcmul(-positive, sums, 1 / negatives if push is None else torch.full_like(negatives, push))


def _loss(batch: Embedded, config: SimpleContrastiveConfig) -> tuple[Tensor, dict[str, float]]:
    check_pair(batch.first, batch.second_all, 1.0)
    ids = batch.ids if config.unique_ids else None
    losses = simple_losses(
        batch.first, batch.second, batch.second_all, push=config.push, ids=ids, ids_all=batch.ids_all
    )
    return losses.sum() / batch.total, {}


CONFIG = SimpleContrastiveConfig
RECIPE = Recipe(CARD, CONFIG, _loss, takes="views")
