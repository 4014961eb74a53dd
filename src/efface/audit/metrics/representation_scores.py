"""What the figures of a representation add up to: the unified score, the excess over retraining, the trick at the head.

Kim et al., arXiv 2503.06991 (2025). The paper's AGL, AGR and H-LR have no published formula and are not in its code; this is
efface's definition, with u the unlearned and r the retrained model:

    AGL  = mean or product over {forget, retain, forget_test, retain_test} of 1 - |acc_u - acc_r|
    AGR  = the same over 1 - |knn_u - knn_r| of every set that is read out, and max(0, CKA(u, r)) on forget and downstream sets
    H-LR = 2 AGL AGR / (AGL + AGR)

CKA alone cannot tell a model that forgot from one that was ruined, and a probe's value is no leak by itself: so H-LR comes with
its parts, and figures as excess over retrained models of several seeds.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from efface.audit.metrics.representation import DOWNSTREAM, Representation, features_of
from efface.audit.predictions import Predictions
from efface.errors import InputError

SAME_FEATURES = 0.99
"""CKA to the original above which the features of the forget set count as untouched."""

Aggregate = Literal["mean", "product"]


@dataclass(frozen=True)
class Excess:
    """A figure above the retrained models'.

    Attributes:
        value: figure minus the mean of the retrained models.
        band: smallest and largest retrained model's figure; gaps inside it are noise. One model gives no band.
    """

    value: float
    band: tuple[float, float]
    outside: bool


def excess(figure: float, retrained: Sequence[float]) -> Excess:
    """A figure as excess over retrained models of several seeds.

    Raises:
        InputError: no retrained model.
    """
    if not retrained:
        raise InputError("no retrained model", "one or more", "a probe's value is no leak by itself: retrain")
    low, high = min(retrained), max(retrained)
    return Excess(figure - float(np.mean(retrained)), (low, high), not low <= figure <= high)


@dataclass(frozen=True)
class Unified:
    """H-LR with its parts: every term by name, NaN where one could not be measured, and then the reasons."""

    agl: float
    agr: float
    h_lr: float
    parts: Mapping[str, float]
    reasons: tuple[str, ...] = field(default=())


def aggregate(terms: Collection[float], agg: Aggregate = "mean") -> float:
    """Mean or product of terms in [0, 1]; NaN of none."""
    if not terms:
        return math.nan
    return float(np.mean(list(terms)) if agg == "mean" else np.prod(list(terms)))


def unified(own: Representation, retrained: Representation, agg: Aggregate = "mean") -> Unified:
    """AGL, AGR and H-LR of a model against the retrained one; efface's definition, see the module."""
    logits = {f"accuracy/{name}": 1 - abs(own.accuracy[name].value - retrained.accuracy[name].value)
              for name in own.accuracy}  # fmt: skip
    inside = {f"knn/{name}": 1 - abs(own.knn[name].value - retrained.knn[name].value) for name in own.knn}
    near = {name: found for name, found in own.cka_retrained.items() if name == "forget" or name.startswith(DOWNSTREAM)}
    inside |= {f"cka/{name}": _floor(found.value) for name, found in near.items()}
    agl, agr = aggregate(logits.values(), agg), aggregate(inside.values(), agg)
    h_lr = 2 * agl * agr / (agl + agr) if agl + agr > 0 else math.nan if math.isnan(agl + agr) else 0.0
    measured = [*own.knn.items(), *retrained.knn.items(), *near.items()]
    reasons = tuple(dict.fromkeys(f"{name}: {found.reason}" for name, found in measured if found.reason))
    return Unified(agl, agr, h_lr, {**logits, **inside}, reasons)


def _floor(value: float) -> float:
    return value if math.isnan(value) else max(0.0, value)


def suppressed(own: Representation, retrained: Representation, *, tolerance: float = 0.01) -> str:
    """Why the model only looks as if it had forgotten, or nothing.

    At the logits it gets the forget set wrong as often as the retrained model does (up to `tolerance`), and yet its features
    there are the original's: CKA above 0.99, and above what the retrained model itself has. So acts who edits the head alone.
    """
    wrong, aim = (1 - model.accuracy["forget"].value for model in (own, retrained))
    same, fresh = own.cka_original["forget"].value, retrained.cka_original["forget"].value
    if wrong < aim - tolerance or not same > SAME_FEATURES or same <= fresh:
        return ""
    return (
        f"error on the forget set {wrong:.1%} (retrained {aim:.1%}), but its features there are the original's: CKA "
        f"{same:.4f} (retrained {fresh:.4f}); only what follows the features was changed"
    )


def nearest_classes(train: Predictions, downstream: Predictions) -> list[tuple[int, float]]:
    """Classes by their likeness to a downstream set, most alike first: what a hard request forgets.

    The rule: the largest cosine between the class's mean feature and a downstream class's, under the original model.
    """
    means = [
        np.stack([features_of(table)[table.labels == label].mean(0) for label in np.unique(table.labels)])
        for table in (train, downstream)
    ]
    sizes = [np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-30) for mean in means]
    cosine = ((means[0] / sizes[0]) @ (means[1] / sizes[1]).T).max(1)
    classes = np.unique(train.labels)
    return [(int(classes[i]), float(cosine[i])) for i in np.argsort(-cosine, kind="stable")]


__all__ = [
    "SAME_FEATURES", "Excess", "Unified", "aggregate", "excess", "nearest_classes", "suppressed", "unified",
]  # fmt: skip
