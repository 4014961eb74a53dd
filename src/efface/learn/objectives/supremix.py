"""SupReMix: supervised contrast for numbers, with mixes of the batch's own embeddings as hard negatives and hard positives.

Paper: Wu et al., arXiv 2309.16633. z in R^{N x D}, both views of B items; y their numbers; tau the temperature; n a window.
P_r(i): the others with y_i's number. For each k of another number a hard negative l z_i + (1 - l) z_k, l ~ Beta(2, 8), with the
number l y_i + (1 - l) y_k. For y_j < y_i < y_k, both nearer than n, a hard positive a z_j + (1 - a) z_k with
a = (y_k - y_i) / (y_k - y_j), whose number is y_i. Mixes are constants. Over C(i), all others and i's mixes, and P(i), P_r(i)
and i's hard positives, with s = <z_i, .> / tau (or minus the distance) and w_it = 1 + |y_i - y_t|, 1 for positives,

    L_i = -(1/|P(i)|) sum_{p in P(i)} [ s_ip - log sum_{t in C(i)} w_it exp(s_it) ]

Departures from the official code: one sum of exponentials, where it shifts real and mixed logits by different maxima, which
changes their relative weight; the mean is over |P(i)|, not |P(i)| + 1 as in one of its versions; logits of mixes come from the
Gram matrix, at most `positives` hard positives an anchor (all where there are no more), where it forms [N, N, N, D]; the window
is a share of the range of the numbers and weights are scaled to `max_weight`, so that the unit does not matter. Without mixes
and weights it is SupCon. Memory: dense, about 4 N^2 numbers, so there is no `tile`; `chunk` serves the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor

from efface.catalog import Card
from efface.errors import InputError
from efface.learn.contrastive_model import ContrastiveModel
from efface.learn.module import LearnModule, Lesson
from efface.learn.objective import ContrastiveConfig, Embedded, Recipe
from efface.numerics.contrast import Contrast, check_pair, scale_of, shape, wide
from efface.numerics.label_distance import Labels, Weighting, hard_positives, labels_of, log_weights
from efface.numerics.mixing import draw, draw_beta, mix_scores, mix_square, seeded

CARD = Card(
    name="supremix",
    system="supremix",
    title="SupReMix",
    summary="Representations for regression: neighbours in the number are mixed into positives, others into hard negatives.",
    paper="Wu et al., Mixup your own pairs, arXiv 2309.16633 (2023)",
    verb="learn",
    mechanism="objectives",
    modalities=("any",),
    subjects=("encoder",),
    needs=("labels",),
    defaults_source="SupReMix's training script on IMDB-WIKI: temperature 0.3, head of 128, Beta(2, 8), window 5 years of 100, "
    "Adam 1e-3, weight decay 1e-4, batch 64, 100 epochs; max_weight, positives and label_tol are efface's",
)


class SupReMixConfig(ContrastiveConfig):
    """The temperature, what is mixed, and how distant numbers weigh."""

    optimizer: Literal["adamw", "adam", "sgd"] = Field("adam", description="SupReMix: Adam")
    weight_decay: float = Field(1e-4, ge=0, description="SupReMix: 1e-4")
    batch_size: int = Field(64, ge=2, description="SupReMix: 64")
    epochs: float = Field(100, gt=0, description="SupReMix: 100")
    projector: int = Field(128, ge=0, description="SupReMix: a head of 128; used while training only")
    temperature: float = Field(0.3, gt=0, description="SupReMix: 0.3")
    negatives: bool = Field(True, description="mixes of the anchor with others of another number, as negatives")
    positives: int = Field(16, ge=0, description="mixes around the anchor's number, at most, an anchor; SupReMix: all")
    normalize_mix: bool = Field(
        False, description="divide mixes by their length; SupReMix: no. Recommended to try: without it positives cap the "
        "similarity that can be reached",
    )  # fmt: skip
    window: float = Field(
        0.05, ge=0, le=1, description="n as a share of the range; SupReMix: 5 years, of about a hundred"
    )
    beta: tuple[float, float] = Field(
        (2.0, 8.0), description="of the anchor's share in negatives; SupReMix's code: 2, 8. A mean near 1 would push the "
        "anchor from itself",
    )  # fmt: skip
    weighting: Weighting = Field(
        "distance", description="of candidates by the distance of their number; SupReMix: distance"
    )
    max_weight: float | None = Field(
        11.0, gt=1, description="weight at the whole range; none: 1 + distance in the numbers' own unit, as SupReMix (ages: 101, "
        "two thirds of the logits' range at temperature 0.3)",
    )  # fmt: skip
    label_tol: float | None = Field(
        None, ge=0, description="numbers this near are equal; default: half the smallest step of numbers on a grid, else 1 % "
        "of the range",
    )  # fmt: skip
    similarity: Literal["cosine", "distance"] = Field("cosine", description="logits: cosine, or minus the distance")

    @model_validator(mode="after")
    def _possible(self) -> SupReMixConfig:
        if min(self.beta) <= 0:
            raise ValueError("beta is two positive numbers")
        if self.tile is not None:
            raise ValueError("supremix has no tiles: weights and mixes need the whole matrix, leave tile out")
        return self


@dataclass(frozen=True)
class Mixes:
    """What is mixed.

    Attributes:
        negatives: mix the anchor with all others of another number.
        positives: hard positives an anchor, at most.
        window: n, in the unit of the numbers.
        beta: of the anchor's share in its negatives.
        normalise: divide mixes by their length.
        generator: of shares and pairs.
    """

    negatives: bool = True
    positives: int = 16
    window: float = 0.0
    beta: tuple[float, float] = (2.0, 8.0)
    normalise: bool = False
    generator: Generator | None = None


def supremix(
    z: Tensor, targets: Tensor, temperature: float, mixes: Mixes, labels: Labels, *, weighting: Weighting = "distance",
    max_weight: float | None = None, similarity: str = "cosine",
) -> Tensor:  # fmt: skip
    """The mean over the anchors that have a positive, [].

    Args:
        z: [N, D] unit rows; put both views of an item beneath each other, with the number twice.
        targets: [N].
        temperature: tau.
        mixes, labels: what is mixed; range and tolerance of the numbers.
        weighting, max_weight: see `log_weights`.
        similarity: `cosine` or `distance`.

    Raises:
        InputError: see `check_pair`; tau <= 0; targets that are not [N] finite numbers; no anchor has a positive.
    """
    scale = scale_of(temperature)
    check_pair(z, z, scale)
    found = supremix_losses(
        z, z, targets, targets, torch.arange(len(z), device=z.device), scale, mixes, labels, weighting=weighting,
        max_weight=max_weight, similarity=similarity,
    )  # fmt: skip
    return found.losses.sum() / (found.positives > 0).sum()


def supremix_losses(
    z: Tensor, z_all: Tensor, targets: Tensor, targets_all: Tensor, place: Tensor, scale: Tensor | float, mixes: Mixes,
    labels: Labels, *, weighting: Weighting = "distance", max_weight: float | None = None, similarity: str = "cosine",
    ids: Tensor | None = None, ids_all: Tensor | None = None,
) -> Contrast:  # fmt: skip
    """L_i of the anchors z [n, D], which are the rows `place` [n] of z_all [N, D]; candidates of their id are left out."""
    q, k = wide(z), wide(z_all)
    y, y_all = (_numbers(t, len(rows)) for t, rows in ((targets, z), (targets_all, z_all)))
    itself = place[:, None] == torch.arange(len(k), device=k.device)
    apart = (y[:, None] - y_all[None, :]).abs()
    equal = apart <= labels.tolerance
    left_out = itself if ids is None or ids_all is None else itself | ((ids[:, None] == ids_all[None, :]) & ~equal)

    def logits(inner: Tensor, square: Tensor | float) -> Tensor:
        if similarity == "cosine":
            return scale * inner
        return -scale * (1 + square - 2 * inner).clamp(min=1e-12).sqrt()

    def weigh(distance: Tensor) -> Tensor:
        return log_weights(distance, weighting, labels.reach, max_weight).to(q)

    positive = equal & ~itself
    real = logits(q @ k.T, 1.0)
    rows = [(real + weigh(apart.masked_fill(equal, 0))).masked_fill(left_out, -torch.inf)]
    gains, count = (real * positive).sum(1), positive.sum(1)
    fixed = q @ k.detach().T  # mixes are constants
    if mixes.negatives:
        assert mixes.generator is not None
        a = draw_beta(mixes.generator, len(k), len(k), a=mixes.beta[0], b=mixes.beta[1]).to(k.device)[place]
        own = (q * q.detach()).sum(1, keepdim=True).expand_as(fixed)
        found, square = _mixed(own, fixed, a, fixed, mixes.normalise)
        rows.append((logits(found, square) + weigh((1 - a) * apart)).masked_fill(left_out | equal, -torch.inf))
    if mixes.positives and mixes.window > 0:
        assert mixes.generator is not None
        drawn = draw(mixes.generator, len(k), mixes.positives, like=y_all)[place]
        lower, upper, a, there = hard_positives(y, y_all, mixes.window, labels.tolerance, mixes.positives, drawn)
        dots = (k.detach() @ k.detach().T)[lower, upper]
        found, square = _mixed(fixed.gather(1, lower), fixed.gather(1, upper), a, dots, mixes.normalise)
        mixed = logits(found, square)
        rows.append(mixed.masked_fill(~there, -torch.inf))
        gains, count = gains + (mixed * there).sum(1), count + there.sum(1)
    every = torch.cat(rows, 1)
    used = count > 0
    if not bool(used.any()):
        raise InputError(
            f"none of the {len(q)} anchors has a positive among {len(k)} candidates", "two views of each item, or equal "
            "numbers", "raise label_tol",
        )  # fmt: skip
    total = torch.logsumexp(torch.where(used[:, None], every, 0.0), 1)
    return Contrast(torch.where(used, total - gains / count.clamp(min=1), 0.0), count)


def _mixed(
    first: Tensor, second: Tensor, share: Tensor, dots: Tensor, normalise: bool
) -> tuple[Tensor, Tensor | float]:
    """Inner products with mixes, and the mixes' squared lengths."""
    if normalise:
        return mix_scores(first, second, share, dots), 1.0
    return mix_scores(first, second, share), mix_square(share.to(first), dots.detach())


def _numbers(targets: Tensor, rows: int) -> Tensor:
    if targets.shape != (rows,) or not bool(torch.isfinite(targets).all()):
        raise InputError(f"targets of shape {shape(targets)} for {rows} rows", f"[{rows}] finite numbers")
    return targets.double()


def _loss_for(labels: Labels) -> Any:
    """The loss of a step for numbers of a known range."""

    def loss(batch: Embedded, config: SupReMixConfig) -> tuple[Tensor, dict[str, float]]:
        check_pair(batch.first, batch.second_all, batch.scale)
        check_pair(batch.second, batch.first_all, batch.scale)
        assert batch.targets is not None
        assert batch.targets_all is not None
        here = torch.arange(batch.start, batch.start + len(batch.first), device=batch.first.device)
        mixes = Mixes(
            config.negatives, config.positives, config.window * labels.reach, config.beta, config.normalize_mix,
            seeded(config.seed, batch.step),
        )  # fmt: skip
        masked = config.unique_ids and batch.ids is not None and batch.ids_all is not None
        found = supremix_losses(
            torch.cat([batch.first, batch.second]), torch.cat([batch.first_all, batch.second_all]), batch.targets.repeat(2),
            batch.targets_all.repeat(2), torch.cat([here, here + batch.total]), batch.scale, mixes, labels,
            weighting=config.weighting, max_weight=config.max_weight, similarity=config.similarity,
            ids=batch.ids.repeat(2) if masked and batch.ids is not None else None,
            ids_all=batch.ids_all.repeat(2) if masked and batch.ids_all is not None else None,
        )  # fmt: skip
        return found.losses.sum() / (2 * batch.total), {"positives": float(found.positives.float().mean())}

    return loss


def _build(subject: Any, config: SupReMixConfig, lesson: Lesson) -> LearnModule:
    """The contrastive model whose loss knows the range of the whole data set's numbers."""
    labels = labels_of(lesson.targets, config.label_tol)
    return ContrastiveModel(subject, replace(RECIPE, loss=_loss_for(labels), build=None), config, lesson)


CONFIG = SupReMixConfig
RECIPE = Recipe(CARD, CONFIG, None, takes="targets", build=_build)
