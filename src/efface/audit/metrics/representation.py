"""Did the representation forget too? Features compared with the original and the retrained model, and read out again.

Kim et al., Are we truly forgetting? A critical re-examination of machine unlearning evaluation protocols, arXiv 2503.06991
(2025). Tables of one model on the sets `forget`, `retain`, `forget_test`, `retain_test` and downstream sets with labels of their
own give: accuracies at the logits; linear CKA of the features to both models; k-NN (k = 5, cosine) and a linear probe. The
retrained model is the zero point of all of them: on a class that it never saw, probes still reach 0.9. What follows from the
figures, from the unified score to the verdict, is in `representation_scores`.

Departures from the official code, and why. CKA is the unbiased estimator over all rows (there: the mean of biased values of
batches, near 1 for unrelated wide features). Rows of both models are matched by id. Features must not be the outputs (there the
k-NN of a whole classifier runs on its logits). Dead features give no figure and a reason. A class to forget needs neighbours of
other classes: a gallery of forget rows alone says nothing of one class, so retain rows stand in it too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from efface.audit.finding import Estimate
from efface.audit.metrics.intervals import wilson
from efface.audit.predictions import Predictions
from efface.errors import InputError
from efface.numerics.cka import FEWEST, cka

Floats = npt.NDArray[np.float64]
Tables = Mapping[str, Predictions]
"""By set, of one model."""

SETS = ("forget", "retain", "forget_test", "retain_test")
DOWNSTREAM = "downstream"
NEIGHBOURS = 5
SPLIT_SEED, GALLERY = 2, 0.8
"""Of sets that are split into gallery and queries; the official code's."""


@dataclass(frozen=True)
class Measured:
    """A figure, or the reason why there is none (its value is then NaN)."""

    estimate: Estimate | None
    reason: str = ""

    @property
    def value(self) -> float:
        """The figure."""
        return math.nan if self.estimate is None else self.estimate.value


# -- tables --------------------------------------------------------------------------------------------------------


def features_of(table: Predictions) -> Floats:
    """[N, D] features.

    Raises:
        InputError: they are the outputs.
    """
    if table.features.shape == table.outputs.shape and np.allclose(table.features, table.outputs):
        raise InputError(
            "features that are the model's outputs", "what goes into the head", "name the last linear layer with head=NAME"
        )  # fmt: skip
    return table.features


def joined(*tables: Predictions) -> Predictions:
    """Rows of several tables of one model."""
    first = tables[0]
    return Predictions(
        [i for table in tables for i in table.ids], np.concatenate([table.targets for table in tables]),
        np.concatenate([table.outputs for table in tables]), np.concatenate([table.features for table in tables]),
        task=first.task, key=first.key,
    )  # fmt: skip


def split(table: Predictions, *, seed: int = SPLIT_SEED, share: float = GALLERY) -> tuple[Predictions, Predictions]:
    """Gallery and queries: `share` of the rows, drawn by the seed, and the others."""
    order = np.random.default_rng(seed).permutation(len(table))
    cut = round(share * len(table))
    if not 0 < cut < len(table):
        raise InputError(f"{len(table)} rows to split at {share:g}", "a gallery and queries", "give more rows")
    return table.part(np.sort(order[:cut])), table.part(np.sort(order[cut:]))


def check_retrained(
    own: Tables, retrained: Tables, *, labels: tuple[Sequence[str], Sequence[str]] | None = None,
    trained_on: Collection[str] | None = None,
) -> None:  # fmt: skip
    """Refuse a retrained model that is no zero point.

    Args:
        own: tables of the model that it is compared with.
        labels: the classes of both models in the order of their outputs.
        trained_on: ids of the rows that the retrained model was trained on.

    Raises:
        InputError: a table is missing or of other rows, the classes differ, or the model was trained on what is to be forgotten.
    """
    _aligned(own, retrained, "retrained")
    if labels is not None and list(labels[0]) != list(labels[1]):
        raise InputError("two models with other classes", "one label map", "retrain with the same classes in one order")
    seen = sorted(set(trained_on or ()) & set(own["forget"].ids))
    if seen:
        raise InputError(
            f"the retrained model was trained on the forget row '{seen[0]}'", "a model that never saw one", "retrain"
        )


def _aligned(own: Tables, other: Tables, who: str) -> None:
    """Another model's tables on the same sets, rows and classes."""
    for name, table in own.items():
        if name not in other:
            raise InputError(f"no table of the {who} model on '{name}'", "one of every set", "score it on every set")
        _matched(table, other[name])
        if table.outputs.shape[1] != other[name].outputs.shape[1]:
            raise InputError(
                f"{table.outputs.shape[1]} classes, and {other[name].outputs.shape[1]} of the {who} model", "one label map",
                "compare models of the same classes",
            )  # fmt: skip


def _matched(first: Predictions, second: Predictions) -> None:
    if first.ids != second.ids:
        at = next((i for i, (a, b) in enumerate(zip(first.ids, second.ids, strict=False)) if a != b), "the end")
        raise InputError(
            f"tables of other rows ({len(first)} and {len(second)}, first difference at {at})", "the same ids in one order",
            "score both models on the same set",
        )  # fmt: skip


# -- figures -------------------------------------------------------------------------------------------------------


def similarity(own: Predictions, other: Predictions) -> Measured:
    """Unbiased linear CKA of two models' features on one set: 1 for equal up to rotation and scale, about 0 for unrelated.

    Raises:
        InputError: other rows, or features that are outputs.
    """
    _matched(own, other)
    x, y = (torch.from_numpy(features_of(table)) for table in (own, other))
    if len(own) < FEWEST:
        return Measured(None, f"{len(own)} rows: CKA needs {FEWEST}")
    found = cka(x, y)
    if math.isnan(found):
        which = "the model's" if _dead(own) else "the other model's" if _dead(other) else "one model's"
        return Measured(None, f"{which} features do not vary over the set: they are dead")
    return Measured(Estimate(value=found, n=len(own)))


def _dead(table: Predictions) -> bool:
    return bool(np.ptp(table.features, axis=0).max() <= 1e-6 * max(1e-30, float(np.abs(table.features).max())))


def neighbours(gallery: Predictions, queries: Predictions, *, k: int = NEIGHBOURS) -> Measured:
    """Share of the queries whose label most of their k nearest gallery rows have, by the cosine of the features.

    Of equally frequent labels the smallest is taken.
    """
    return _read_out(KNeighborsClassifier(min(k, len(gallery)), metric="cosine", algorithm="brute"), gallery, queries)


def probe(gallery: Predictions, queries: Predictions) -> Measured:
    """Share of the queries that a logistic regression on the gallery's standardised features reads right."""
    return _read_out(make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)), gallery, queries)


def _read_out(reader: Any, gallery: Predictions, queries: Predictions) -> Measured:
    if not len(gallery) or not len(queries):
        return Measured(None, "no gallery or no queries")
    x, z = features_of(gallery), features_of(queries)
    if _dead(gallery):
        return Measured(None, "the features do not vary over the gallery: they are dead")
    if len(np.unique(gallery.labels)) < 2:
        return Measured(None, f"every row of the gallery has the label {int(gallery.labels[0])}: nothing to tell apart")
    said = reader.fit(x, gallery.labels).predict(z)
    return Measured(wilson(int((said == queries.labels).sum()), len(queries)))


def readings(tables: Tables, *, seed: int = SPLIT_SEED) -> dict[str, tuple[Predictions, Predictions]]:
    """Gallery and queries of every set that is read out.

    Training rows (forget and retain, all in one gallery) for the test sets; where there is no `forget_test`, a fifth of the
    forget rows is held out of it as queries of `forget`. Downstream sets are split.
    """
    found: dict[str, tuple[Predictions, Predictions]] = {}
    forget = tables["forget"]
    if "forget_test" not in tables:
        forget, held = split(forget, seed=seed)
        found["forget"] = (joined(forget, tables["retain"]), held)
    gallery = joined(forget, tables["retain"])
    found |= {name: (gallery, tables[name]) for name in ("forget_test", "retain_test") if name in tables}
    found |= {name: split(table, seed=seed) for name, table in tables.items() if name.startswith(DOWNSTREAM)}
    return found


@dataclass(frozen=True)
class Representation:
    """What the audit says of one model, each figure by set.

    Attributes:
        accuracy: share of right labels at the logits, of the model's own sets.
        cka_original, cka_retrained: CKA to these models.
        knn, probe: of the sets that are read out.
    """

    accuracy: Mapping[str, Estimate]
    cka_original: Mapping[str, Measured]
    cka_retrained: Mapping[str, Measured]
    knn: Mapping[str, Measured]
    probe: Mapping[str, Measured]


def represent(own: Tables, original: Tables, retrained: Tables, *, seed: int = SPLIT_SEED) -> Representation:
    """All figures of one model.

    Args:
        own, original, retrained: tables on the same sets: `forget` and `retain`, optionally `forget_test`, `retain_test` and sets
            whose names begin with `downstream`.
        seed: of the splits.

    Raises:
        InputError: a set is missing, or tables of other rows.
    """
    for name in ("forget", "retain"):
        if name not in own:
            raise InputError(f"no table of the {name} set", "forget and retain set", "score the model on both")
    _aligned(own, original, "original")
    check_retrained(own, retrained)
    parts = readings(own, seed=seed)
    return Representation(
        accuracy={name: wilson(int(own[name].correct.sum()), len(own[name])) for name in SETS if name in own},
        cka_original={name: similarity(table, original[name]) for name, table in own.items()},
        cka_retrained={name: similarity(table, retrained[name]) for name, table in own.items()},
        knn={name: neighbours(*pair) for name, pair in parts.items()},
        probe={name: probe(*pair) for name, pair in parts.items()},
    )  # fmt: skip


__all__ = [
    "DOWNSTREAM", "SETS", "Measured", "Representation", "Tables", "check_retrained", "features_of", "joined", "neighbours",
    "probe", "readings", "represent", "similarity", "split",
]  # fmt: skip
