"""CACR: among an item's other views the farther one is pulled harder, among other items the nearer one is pushed harder.

Paper: Zheng et al., Contrastive attraction and contrastive repulsion, arXiv 2105.03746. With V = K + 1 views z_v [B, D] and
d(a, b) = |a - b|^2 = 2 - 2 <a, b>, in [0, 4]:

    attraction of (v, i)  A = sum_{u != v} p_u d(z_vi, z_ui),   p = softmax_u(t_pos d)
    repulsion  of (v, i)  R = -sum_{j != i} q_j d(z_vi, z_uj),  q = softmax_j(-t_neg d)
    L_i = alpha mean_v A + beta mean_{v < u} R,  mean over the B items

The two costs share no normaliser. With K = 1 only the repulsion is weighed; t = 0 gives equal weights. Written with unit
rows, q_j is the share of a negative in InfoNCE's gradient at a temperature of 1 / (2 t_neg). The loss is negative in
general and has no optimum at 0.

Departures from the official code: weights are conditional probabilities without gradient (`detach_weights`; the small-data
code lets gradient through, and then pulls in negatives that lie more than 1 / t_neg beyond the weighted mean); distances
come from inner products, whose gradient at equal rows is no NaN and which need no [B, B, D] differences; `tau_plus` has the
sign that follows from taking the hidden positives' share out of the expectation, (R + tau_plus d_pos) / (1 - tau_plus):
the released code has minus there, which pushes the pair apart. As there, view v asks and u > v answers.

Rows are computed in blocks of `tile` anchors, again in the backward pass: [tile, B] numbers are held and no [B, B].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from efface.catalog import Card
from efface.errors import InputError
from efface.learn.objective import ContrastiveConfig, Embedded, Recipe
from efface.learn.objectives.multi_view import draws
from efface.numerics.contrast import check_marks, wide
from efface.numerics.masks import TILE, Mask, Same, Shifted, slices
from efface.numerics.multi_view import as_views, check_views, pair_logits

CARD = Card(
    name="cacr",
    system="cacr",
    title="CACR",
    summary="Far positives are pulled harder and near negatives pushed harder, in two costs that do not compete.",
    paper="Zheng et al., Contrastive attraction and contrastive repulsion, arXiv 2105.03746 (TMLR 2023)",
    verb="learn",
    mechanism="objectives",
    modalities=("any",),
    subjects=("encoder",),
    defaults_source="official small-data code: 5 views, t_pos 1, t_neg 2 (CIFAR-100, STL-10; CIFAR-10: 0.9)",
)


class CACRConfig(ContrastiveConfig):
    """Views, weights and costs."""

    n_views: int = Field(5, ge=2, description="V = K + 1 views of each item, K positives; paper: K = 4")
    alpha: float = Field(1.0, ge=0, description="weight of the attraction; paper: 1")
    beta: float = Field(1.0, ge=0, description="weight of the repulsion; paper: 1")
    t_pos: float = Field(
        1.0, ge=0, description="sharpness of the positives' weights, times d; paper: 1; 0: equal weights"
    )
    t_neg: float = Field(
        2.0,
        ge=0,
        description="sharpness of the negatives' weights, times d; paper: 0.9 CIFAR-10, else 2; 0: equal weights",
    )
    detach_weights: bool = Field(
        True, description="no gradient through the weights, as in the paper's equations; small-data code: false"
    )
    tau_plus: float | None = Field(
        None, gt=0, lt=1, description="debias: share of hidden positives among negatives; paper: off, else 0.1"
    )


def cacr(
    views: Tensor | Sequence[Tensor], *, t_pos: float = 1.0, t_neg: float = 2.0, alpha: float = 1.0, beta: float = 1.0,
    detach_weights: bool = True, tau_plus: float | None = None, ids: Tensor | None = None, tile: int | None = None,
) -> Tensor:  # fmt: skip
    """The mean over the items, [].

    Args:
        views: [V, B, D], or V times [B, D]; unit rows, row i of all views is item i.
        t_pos, t_neg, alpha, beta, detach_weights, tau_plus: see `CACRConfig`.
        ids: [B] int; rows of the anchor's id are no negatives.
        tile: anchors at a time.

    Raises:
        InputError: see `as_views` and `check_pair`; a t that is negative; ids that are not [B] integers; an anchor without
            any negative.
    """
    z = as_views(views)
    check_views(z, z, 1.0)
    ids = None if ids is None else check_marks("ids", ids, len(z[0]))
    pull = attraction(distances(z), t_pos, detach_weights).mean(1)
    push = repulsion(z, z, t_neg, detach_weights, tau_plus=tau_plus, ids=ids, ids_all=ids, tile=tile)
    return (alpha * pull + beta * push).mean()


def distances(views: Sequence[Tensor]) -> Tensor:
    """Squared distances of each item's own views -> [b, V, V]."""
    return 2 - 2 * pair_logits(views, 1.0)


def attraction(d: Tensor, t_pos: float, detach: bool = True) -> Tensor:
    """A of each view against the other views of its item -> [b, V].

    Args:
        d: [b, V, V] squared distances; the diagonal counts for nothing.
    """
    own = torch.eye(d.shape[1], dtype=torch.bool, device=d.device)
    return weighed(d, own, _sharpness("t_pos", t_pos), detach)


def repulsion(
    views: Sequence[Tensor], views_all: Sequence[Tensor], t_neg: float, detach: bool = True, *,
    tau_plus: float | None = None, start: int = 0, ids: Tensor | None = None, ids_all: Tensor | None = None,
    tile: int | None = None,
) -> Tensor:  # fmt: skip
    """Mean R over the pairs of views v < u -> [b].

    Args:
        views: V times [b, D], rows start to start + b of `views_all`, V times [B, D].
    """
    exclude: Mask = Shifted(start)
    if ids is not None and ids_all is not None:
        exclude = Same(ids, ids_all)
    found = []
    for v in range(len(views)):
        for u in range(v + 1, len(views)):
            pushed = repulsion_rows(views[v], views_all[u], exclude, t_neg, detach, tile=tile)
            found.append(debiased(pushed, 2 - 2 * (wide(views[v]) * wide(views[u])).sum(1), tau_plus))
    return torch.stack(found).mean(0)


def repulsion_rows(
    anchors: Tensor, candidates: Tensor, exclude: Mask, t_neg: float, detach: bool = True, *, tile: int | None = None
) -> Tensor:
    """R of each anchor among the candidates that are not excluded -> [b].

    Args:
        anchors: [b, D]; candidates: [M, D]; unit rows.
        exclude: [b, M] pairs that are no negatives.

    Raises:
        InputError: an anchor without any negative; a negative t_neg.
    """
    sharpness, keys = _sharpness("t_neg", t_neg), wide(candidates)

    def block(rows: Tensor, keys: Tensor, excluded: Tensor) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):
            return -weighed(2 - 2 * rows @ keys.T, excluded, -sharpness, detach)

    parts = []
    for rows in slices(len(anchors), tile or TILE):
        excluded = exclude.tile(rows, slice(0, len(keys)), anchors.device)
        if bool(excluded.all(1).any()):
            row = rows.start + int(excluded.all(1).nonzero()[0])
            raise InputError(
                f"anchor {row} has no negative: every candidate carries its id", "one or more",
                "raise batch_size, or set unique_batches",
            )  # fmt: skip
        part = checkpoint(block, wide(anchors[rows]), keys, excluded, use_reentrant=False, preserve_rng_state=False)
        parts.append(part)
    return torch.cat(parts)


def weighed(d: Tensor, excluded: Tensor, t: float, detach: bool) -> Tensor:
    """sum_j w_j d_j over the last dimension with w = softmax(t d) of what is not excluded."""
    weights = (t * d).masked_fill(excluded, -math.inf).softmax(-1)
    return ((weights.detach() if detach else weights) * d).sum(-1)


def debiased(pushed: Tensor, positive: Tensor, tau_plus: float | None) -> Tensor:
    """R without the share of hidden positives, from R [b] and the positives' squared distance [b]."""
    return pushed if tau_plus is None else (pushed + tau_plus * positive) / (1 - tau_plus)


def _sharpness(name: str, t: float) -> float:
    if not (t >= 0 and math.isfinite(t)):
        raise InputError(f"{name} {t}", "a number from 0", "the paper's are near 1")
    return t


def share_of_loss(pull: Tensor, push: Tensor, total: int, config: CACRConfig) -> tuple[Tensor, dict[str, float]]:
    """The loss of the local items and what is logged, from A [b] and R [b]."""
    numbers = {"attraction": float(pull.detach().mean()), "repulsion": float(push.detach().mean())}
    return (config.alpha * pull + config.beta * push).sum() / total, numbers


def _loss(batch: Embedded, config: CACRConfig) -> tuple[Tensor, dict[str, float]]:
    check_views(batch.views, batch.views_all, batch.scale)
    pull = attraction(distances(batch.views), config.t_pos, config.detach_weights).mean(1)
    push = repulsion(
        batch.views, batch.views_all, config.t_neg, config.detach_weights, tau_plus=config.tau_plus, start=batch.start,
        ids=batch.ids if config.unique_ids else None, ids_all=batch.ids_all, tile=config.tile,
    )  # fmt: skip
    return share_of_loss(pull, push, batch.total, config)


CONFIG = CACRConfig
RECIPE = Recipe(CARD, CONFIG, _loss, takes="views", draws=draws)
