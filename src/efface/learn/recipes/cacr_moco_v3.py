"""CACR on MoCo v3 (its 'RBF' form): InfoNCE of every query view with a key, weighed by how far the query lies.

Paper: Zheng et al., arXiv 2105.03746, the form behind its ImageNet figures; frame: Chen et al. (MoCo v3), arXiv 2104.02057.
All V views pass through the trained encoder (queries q_v), the first `keys` of them through its moving copy (keys k_c). For
each key view c, over the K = V - 1 other query views v:

    p_v = softmax_v( |q_vi - k_ci|^2 / T ), without gradient
    L_i = 2 T sum_v p_v [ log sum_j exp(<q_vi, k_cj> / T) - <q_vi, k_ci> / T ],  mean over items and key views

p sums to 1, so L is a weighted mean over the positives and does not grow with K. This is weighted InfoNCE, with the
positive in the denominator, and not the decoupled cost of the paper's equations (`cacr`); both go by the name. The code's
'Euclidean' form is `cacr` with t = 1 / (2 T) up to a factor of 2, but summed over the batch: use `cacr`, which averages.

Departures from the official code: views are all of one kind (`views`), no smaller local crops; keys=2 is its 'light' mode,
keys=n_views its 'full' one, at the price of more passes; the moving copy's m is constant; `projector` and `predictor` are
off unless set (MoCo v3: 256 and 4096); repeated items are masked by id.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import normalize

from efface.catalog import Card
from efface.learn.contrastive_model import ContrastiveModel
from efface.learn.memory.ema import EMA
from efface.learn.module import Batch, Lesson
from efface.learn.objective import ContrastiveConfig, Recipe
from efface.learn.objectives.info_nce import info_nce_losses
from efface.learn.views.images import ViewConfig
from efface.numerics.contrast import check_pair, paired_logits
from efface.train.gather import gather_plain, rank
from efface.train.gradient_caching import cached

CARD = Card(
    name="cacr-moco-v3",
    system="cacr",
    title="CACR on MoCo v3",
    summary="InfoNCE with keys of a moving copy in which the farther of an item's views weighs more.",
    paper="Zheng et al., Contrastive attraction and contrastive repulsion, arXiv 2105.03746 (TMLR 2023)",
    verb="learn",
    mechanism="recipes",
    modalities=("any",),
    subjects=("encoder",),
    defaults_source="official ImageNet code: T 1 for ResNet, 0.2 for ViT; light mode (two key views)",
)


class CACRMoCoV3Config(ContrastiveConfig):
    """Views, keys and the temperature, which divides here."""

    n_views: int = Field(5, ge=2, description="V = K + 1 views of each item; paper: K = 4")
    keys: int = Field(2, ge=1, description="views that pass through the moving copy as well; official light mode: 2")
    temperature: float = Field(1.0, gt=0, description="T; official: 1 for ResNet, 0.2 for ViT")
    momentum: float = Field(0.99, ge=0, lt=1, description="m of key <- m key + (1 - m) query; MoCo v3: from 0.99")
    predictor: int = Field(0, ge=0, description="hidden width of a head on the queries only; 0: none; MoCo v3: 4096")

    @model_validator(mode="after")
    def _keys_are_views(self) -> CACRMoCoV3Config:
        if self.keys > self.n_views:
            raise ValueError("keys is at most n_views")
        return self


def draws(config: CACRMoCoV3Config) -> Sequence[ViewConfig]:
    """`n_views` views of one kind."""
    return [config.views] * config.n_views


def rbf_losses(
    queries: Sequence[Tensor], keys: Tensor, keys_all: Tensor, temperature: float, *, start: int = 0,
    ids: Tensor | None = None, ids_all: Tensor | None = None, tile: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(L_i [b], p [K, b]) of one key view.

    Args:
        queries: K times [b, D] unit rows.
        keys: [b, D] unit rows of the same items, start to start + b of `keys_all` [B, D]; no gradient flows into them.
        temperature: T.
        ids, ids_all: [b], [B] int; keys of other items with the query's id are left out.
    """
    keys, keys_all = keys.detach(), keys_all.detach()
    with torch.no_grad():
        far = torch.stack([2 - 2 * paired_logits(query, keys, 1.0) for query in queries])  # [K, b]
        shares = (far / temperature).softmax(0)
    each = [
        info_nce_losses(query, keys_all, 1 / temperature, start=start, ids=ids, ids_all=ids_all, tile=tile)
        for query in queries
    ]
    return 2 * temperature * (shares * torch.stack(each)).sum(0), shares


class QueriesAndKeys(ContrastiveModel):
    """Encoder and head, their moving copy, and where it is set a predictor on the queries.

    Args:
        subject: an encoder; its module is trained in place.
        config: see `CACRMoCoV3Config`.
    """

    def __init__(self, subject: Any, config: CACRMoCoV3Config, lesson: Lesson) -> None:
        super().__init__(subject, RECIPE, config)
        self.ema = EMA(self.online, momentum=config.momentum)
        shadow = copy.copy(subject)
        shadow.model = self.ema.module[0]  # type: ignore[index]
        object.__setattr__(self, "shadow", shadow)
        width, hidden = config.projector or subject.width, config.predictor
        self.predictor = (
            nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width)) if hidden else nn.Identity()
        )

    def _query(self, inputs: dict[str, Tensor]) -> Tensor:
        features = self.towers[0].features(inputs)
        head = self.projector
        return normalize(self.predictor(features if head is None else head(features)).float(), dim=-1)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Every view as a query, the first of them as keys, each key against the other queries."""
        config = self.settings
        queries = [cached(self._query, inputs, self.chunk) for inputs in batch["views"]]
        ids = batch.get("ids") if config.unique_ids else None
        ids_all = None if ids is None else gather_plain(ids)
        start, total, losses, least = rank() * len(queries[0]), 0, [], []
        for place in range(config.keys):
            keys = self._keys(batch["views"][place])
            keys_all = gather_plain(keys)
            total = len(keys_all)
            others = queries[:place] + queries[place + 1 :]
            for query in others:
                check_pair(query, keys_all, 1 / config.temperature)
            found, shares = rbf_losses(
                others, keys, keys_all, config.temperature, start=start, ids=ids, ids_all=ids_all, tile=config.tile
            )
            losses.append(found)
            least.append(float(shares.amax(0).mean()))
        value = torch.stack(losses).mean(0).sum() / total
        return value, {"largest_share": sum(least) / len(least)}


CONFIG = CACRMoCoV3Config
RECIPE = Recipe(CARD, CONFIG, None, takes="views", draws=draws, build=QueriesAndKeys)
