"""MoCHi: beside the queue's keys, hard negatives that are mixed from the hardest of them, for each anchor anew.

Paper: Kalantidis et al., arXiv 2010.01028, section 4. Q_i = the N keys of the queue nearest to the anchor q_i, n in Q_i,

    h  = normalise(a n + (1 - a) n'), a ~ U(0, 1),  s of them;   h' = normalise(b q_i + (1 - b) n), b ~ U(0, 1/2),  s' of them
    L_i = log( exp(s_i+) + sum_queue exp(s_ik) + sum_h exp(<q_i, h> / T) + sum_h' exp(<q_i, h'> / T) ) - s_i+

No official code was found; against the unofficial davidsvy/hard-negative-mixing, whose page puts b on the wrong term and
whose code does not: mixes are constants (no gradient through the q inside h' either), their logits come from inner products
and not from [B, s, D] tensors, nothing is mixed before the queue holds N keys, and an anchor's own item is neither a negative
nor mixed, by its id. With several processes each draws for the whole batch and takes its anchors' part.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor
from torch.nn.functional import softplus

from efface.catalog import Card
from efface.errors import InputError
from efface.learn.objective import ContrastiveConfig, Embedded, Recipe
from efface.numerics.contrast import check_marks, check_pair, lse_or_nothing, paired_logits, scale_of, shape, wide
from efface.numerics.masks import Mask, Same
from efface.numerics.mixing import draw, gathered_dots, gathered_scores, hardest, mix_scores, seeded

CARD = Card(
    name="mochi",
    system="mochi",
    title="MoCHi",
    summary="MoCo with synthetic negatives: mixes of the hardest keys, and of such a key with the anchor, at no forward pass.",
    paper="Kalantidis et al., Hard negative mixing for contrastive learning, arXiv 2010.01028 (NeurIPS 2020)",
    verb="learn",
    mechanism="objectives",
    modalities=("any",),
    subjects=("encoder",),
    defaults_source="MoCHi on ImageNet-100: N 1024, s 1024, s' 128, from epoch 10, queue 16384, T 0.2, m 0.999; in the place "
    "of its SGD the optimiser of the other recipes",
)


class MoCHiConfig(ContrastiveConfig):
    """The moving copy, the queue, and what is mixed from it."""

    temperature: float = Field(0.2, gt=0, description="MoCHi, as MoCo v2: 0.2")
    momentum: float = Field(0.999, ge=0, lt=1, description="m of key <- m key + (1 - m) query; MoCHi: 0.999")
    queue_size: int = Field(16384, ge=1, description="K, keys kept; MoCHi: 16384 on ImageNet-100, 65536 on ImageNet-1K")
    unique_ids: bool = Field(True, description="earlier keys of the anchor's own item are no negatives and not mixed")
    hard: int = Field(1024, ge=1, description="N, the hardest keys that are mixed; MoCHi: 1024. Far below K / classes")
    mixed: int = Field(1024, ge=0, description="s, mixes of two hard keys an anchor; MoCHi: 1024")
    with_anchor: int = Field(128, ge=0, description="s', mixes of a hard key with the anchor; MoCHi: 128")
    synthesis_epoch: float = Field(
        10, ge=0, description="no mixing before this pass over the data; MoCHi: 10 on ImageNet-100, 15 on ImageNet-1K"
    )
    oracle_labels: bool = Field(
        False, description="never mix a key of the anchor's class: the paper's upper bound, for audits; needs labels"
    )

    @model_validator(mode="after")
    def _fits(self) -> MoCHiConfig:
        if self.hard > self.queue_size:
            raise ValueError(f"hard={self.hard} is at most queue_size={self.queue_size}")
        return self


@dataclass(frozen=True)
class Mixing:
    """How much is mixed, and where its randomness comes from.

    Attributes:
        hard, mixed, with_anchor: N, s, s'.
        generator: of places and shares.
        start, total: the anchors are rows `start` and on of a batch of `total`; by default they are the whole batch.
    """

    hard: int
    mixed: int
    with_anchor: int
    generator: Generator
    start: int = 0
    total: int | None = None


@dataclass(frozen=True)
class Mixed:
    """Of each of B anchors.

    Attributes:
        losses: L_i.
        base: the loss without mixes at the same state, a constant.
        mass: share of the softmax that lies on mixes.
        share: of the logits that are mixes, [].
        first: whether the own key outranks every real negative.
    """

    losses: Tensor
    base: Tensor
    mass: Tensor
    share: float
    first: Tensor


def mochi(
    first: Tensor, keys: Tensor, queue: Tensor, temperature: float, mixing: Mixing, *, ids: Tensor | None = None,
    queue_ids: Tensor | None = None, labels: Tensor | None = None, queue_labels: Tensor | None = None,
    tile: int | None = None,
) -> Tensor:  # fmt: skip
    """The mean over the anchors, [].

    Args:
        first: [B, D] unit rows of the encoder.
        keys: [B, D] unit rows of the moving copy; no gradient flows into them.
        queue: [K, D] earlier keys, K >= N.
        temperature: T.
        mixing: N, s, s' and the generator.
        ids, queue_ids: [B], [K] int; keys of the anchor's id are neither negatives nor mixed.
        labels, queue_labels: [B], [K] int; keys of the anchor's label are not mixed (the oracle).
        tile: side of a tile of the [B, K] similarities.

    Raises:
        InputError: see `check_pair`; T <= 0; fewer than N keys; marks that are not integers of the right shape.
    """
    scale = scale_of(temperature)
    check_pair(first, keys, scale, paired=True)
    found = mochi_losses(
        first, keys, queue, scale, mixing, ids=ids, queue_ids=queue_ids, labels=labels, queue_labels=queue_labels,
        tile=tile,
    )  # fmt: skip
    return found.losses.mean()


def mochi_losses(
    first: Tensor, keys: Tensor, queue: Tensor, scale: Tensor | float, mixing: Mixing | None, *,
    ids: Tensor | None = None, queue_ids: Tensor | None = None, labels: Tensor | None = None,
    queue_labels: Tensor | None = None, tile: int | None = None,
) -> Mixed:  # fmt: skip
    """See `mochi`; without `mixing` it is MoCo's loss."""
    if queue.ndim != 2 or queue.shape[1] != first.shape[1]:
        raise InputError(f"a queue {shape(queue)} for embeddings {shape(first)}", f"keys [K, {first.shape[1]}]")
    q, queue = wide(first), wide(queue.detach()).to(wide(first))
    own_item, own_class = _pairs("ids", ids, queue_ids, q, queue), _pairs("labels", labels, queue_labels, q, queue)
    own = paired_logits(first, keys.detach(), scale)
    real = lse_or_nothing(q, queue, scale, exclude=own_item, tile=tile)
    top = hardest(q, queue, 1, exclude=own_item, tile=tile)[0][:, 0]
    ahead = (q * wide(keys)).sum(1).detach() > top
    base = softplus(real - own)
    if mixing is None or mixing.mixed + mixing.with_anchor == 0:
        return Mixed(base, base.detach(), torch.zeros_like(base.detach()), 0.0, ahead)
    unmixed = own_item if own_class is None else own_class if own_item is None else own_item | own_class
    scores, some = _mixes(q, queue, mixing, unmixed, tile)
    extra = torch.logsumexp(scale * scores, 1)  # finite also where no key may be mixed, and not used there
    every = torch.where(some, torch.logaddexp(torch.where(some, real, 0.0), extra), real)
    with torch.no_grad():
        mass = torch.where(some, (extra - torch.logaddexp(every, own)).exp(), 0.0)
    share = scores.shape[1] / (1 + len(queue) + scores.shape[1])
    return Mixed(softplus(every - own), base.detach(), mass, share, ahead)


def _mixes(q: Tensor, queue: Tensor, mixing: Mixing, exclude: Mask | None, tile: int | None) -> tuple[Tensor, Tensor]:
    """<q, h> of all mixes [B, s + s'], and whether an anchor has any [B]."""
    _, hard, count = hardest(q, queue, mixing.hard, exclude=exclude, tile=tile)
    total = len(q) if mixing.total is None else mixing.total
    part = slice(mixing.start, mixing.start + len(q))

    def places(width: int) -> Tensor:
        index = (drawn(width) * count[:, None]).long()  # those that count come first; a draw below 1 stays below count
        return hard.gather(1, torch.minimum(index, (count[:, None] - 1).clamp(min=0)))

    def drawn(width: int, high: float = 1.0) -> Tensor:
        return draw(mixing.generator, total, width, like=q, high=high)[part]

    i, j, a = places(mixing.mixed), places(mixing.mixed), drawn(mixing.mixed)
    m, b = places(mixing.with_anchor), drawn(mixing.with_anchor, 0.5)
    two = mix_scores(gathered_scores(q, queue, i), gathered_scores(q, queue, j), a, gathered_dots(queue, i, j))
    itself = (q * q.detach()).sum(1, keepdim=True).expand(-1, mixing.with_anchor)  # the q inside h' is a constant
    other = gathered_scores(q, queue, m)
    return torch.cat([two, mix_scores(itself, other, b, other)], 1), count > 0


def _pairs(name: str, marks: Tensor | None, of_queue: Tensor | None, q: Tensor, queue: Tensor) -> Mask | None:
    if marks is None or of_queue is None:
        return None
    return Same(check_marks(name, marks, len(q)), check_marks(f"{name} of the queue", of_queue, len(queue)))


def _loss(batch: Embedded, config: MoCHiConfig) -> tuple[Tensor, dict[str, float]]:
    check_pair(batch.first, batch.second_all, batch.scale)
    labels = check_marks("labels", batch.labels, len(batch.first)) if config.oracle_labels else None
    if batch.step == 0 and config.hard > config.queue_size / 4:
        warnings.warn(
            f"hard={config.hard} of a queue of {config.queue_size}: with few classes most of the hardest keys are of the "
            "anchor's own class; hard should be far below queue_size / classes", UserWarning, stacklevel=2,
        )  # fmt: skip
    if batch.queue is None or len(batch.queue) == 0:
        return 0 * paired_logits(batch.first, batch.second, batch.scale).sum(), {"queue": 0.0}
    ready = batch.epoch >= config.synthesis_epoch and len(batch.queue) >= config.hard
    mixing = Mixing(
        config.hard, config.mixed, config.with_anchor, seeded(config.seed, batch.step), batch.start, batch.total
    )
    found = mochi_losses(
        batch.first, batch.second, batch.queue, batch.scale, mixing if ready else None,
        ids=batch.ids if config.unique_ids else None, queue_ids=batch.queue_ids, labels=labels,
        queue_labels=batch.queue_labels, tile=config.tile,
    )  # fmt: skip
    numbers = {
        "queue": float(len(batch.queue)), "proxy_accuracy": float(found.first.float().mean()),
        "base_loss": float(found.base.mean()), "synthetic_mass": float(found.mass.mean()), "synthetic_share": found.share,
    }  # fmt: skip
    return found.losses.sum() / batch.total, numbers


CONFIG = MoCHiConfig
RECIPE = Recipe(CARD, CONFIG, _loss, takes="views", momentum=True, keeps_labels=lambda config: config.oracle_labels)
