"""Concept poisoning on the digits: eight concepts explain the classifier, and relabelling as the most similar class forgets 3.

Concepts are binary and hand-made from the 8 x 8 pixels: a quantity is above its median over the training rows. Everything is
scored on clean test images. What the paper's figures do not show stands beside: a linear probe on the features still finds the
class, some patches leave clean images as they were, and F_r (the share of the class's members that an attack fitted on the
original calls non-members) says nothing where the attack does not tell members from others on the original.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from efface.audit.metrics.roc import auc
from efface.audit.predictions import Predictions, predictions_of
from efface.lab.classified import DIGIT, Classified, digits
from efface.lab.facts import fact_model, of_form, split
from efface.lab.unlearn import forgotten
from efface.measure.concept_bank import ConceptBank, fit_bottleneck, learn_bank
from efface.measure.token_attribution import integrated_gradients
from efface.proofs.proof import Check, Proof

Floats = npt.NDArray[np.float64]
SEEDS = (0, 1, 2)
STEPS = 256
LEAST_AUC = 0.6
"""Of F_r's attack on the original model; below it, F_r is refused."""
FOLDS = 5
GRID = "8x8"

NAMES = (
    "top-heavy", "left-heavy", "dark centre", "low ink", "ink lower left", "ink upper left", "ink upper right", "broad foot",
)  # fmt: skip

RUNS: dict[str, dict[str, Any]] = {
    "head": {},
    "full": {"train": "all"},
    "random": {"labels": "random"},
    "random, class included": {"labels": "random", "with_own": True},
    "localized": {"mode": "localized", "patch": 4, "grid": GRID},
    "center": {"mode": "center", "patch": 4, "grid": GRID},
    "random place": {"mode": "random", "patch": 4, "grid": GRID},
    "full patch": {"mode": "full", "grid": GRID},
}
"""Settings of every run besides the method's defaults; targeted labels and the head alone where nothing else is said."""
JUDGED = ("head", "full")
INFERRING = ("head", "localized")
"""Runs that are given the concepts and find the donor; the others are given the donor, which is the same."""
PATCHED = ("localized", "center", "random place", "full patch")


def quantities(images: npt.ArrayLike) -> Floats:
    """[N, 8] of images [N, 8, 8] from 0 to 1: more of it, more of the concept."""
    ink = np.asarray(images, dtype=np.float64)
    columns = [
        ink[:, :4].sum((1, 2)) - ink[:, 4:].sum((1, 2)),
        ink[:, :, :4].sum((1, 2)) - ink[:, :, 4:].sum((1, 2)),
        -ink[:, 3:5, 3:5].sum((1, 2)),
        -ink.sum((1, 2)),
        ink[:, 4:7, 1:4].sum((1, 2)),
        ink[:, 1:4, 1:4].sum((1, 2)),
        ink[:, 1:4, 4:7].sum((1, 2)),
        ink[:, 6:].sum((1, 2)),
    ]
    return np.stack(columns, 1)


def digit_concepts(sets: list[Dataset]) -> npt.NDArray[np.int8]:
    """[N, 8] of 0 and 1 for the rows of training sets: above the median of all of them."""
    images = np.concatenate([np.asarray(part.with_format("numpy")["features"]).reshape(-1, 8, 8) for part in sets])
    found = quantities(images)
    return (found > np.median(found, axis=0)).astype(np.int8)


def explained(train: list[Predictions], test: list[Predictions], concepts: Any, seed: int) -> tuple[float, int]:
    """Test accuracy of the bottleneck on the concepts of the original model's features, and the donor of the digit."""
    features, labels = _joined(train)
    bank: ConceptBank = learn_bank(features, concepts, NAMES, seed=seed)
    model = fit_bottleneck(bank.project(features), labels, 10, seed=seed)
    others, truth = _joined(test)
    return model.accuracy(bank.project(others), truth), model.most_similar(DIGIT)


def _joined(tables: list[Predictions]) -> tuple[Floats, Any]:
    return np.concatenate([t.features for t in tables]), np.concatenate([t.labels for t in tables])


def probe_accuracy(train: list[Predictions], test: Predictions) -> float:
    """Share of test rows whose class a logistic regression on a model's features finds; it is fitted on true labels."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels = _joined(train)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(features, labels)
    return float(probe.score(test.features, test.labels))


@dataclass(frozen=True)
class FR:
    """F_r, or None with the attack's own AUC on the original below 0.6: then it says nothing."""

    value: float | None
    own_auc: float


def f_r(members: Predictions, others: Predictions, unlearned: Predictions, *, seed: int = 0) -> FR:
    """Share of the class's training rows that a linear support vector machine on probabilities calls non-members.

    Args:
        members, others: the original model on training and on test rows of the class; they fit the machine.
        unlearned: another model on the training rows.
    """
    from sklearn.model_selection import StratifiedKFold
    from sklearn.svm import SVC

    sides = [np.exp(members.logp), np.exp(others.logp)]
    values, inside = np.concatenate(sides), np.repeat([1, 0], [len(members), len(others)])
    areas = []
    for fit, held in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(values, inside):
        scores = SVC(kernel="linear").fit(values[fit], inside[fit]).decision_function(values[held])
        areas.append(auc(scores[inside[held] == 1], scores[inside[held] == 0]))
    own = float(np.mean(areas))
    if own < LEAST_AUC:
        return FR(None, own)
    called = SVC(kernel="linear").fit(values, inside).predict(np.exp(unlearned.logp))
    return FR(float(np.mean(called == 0)), own)


@dataclass
class Figures:
    """Of one seed, as shares.

    Attributes:
        target: clean test accuracy on the class to forget, by run.
        drop: of the test accuracy on the other classes, by run.
        probe: accuracy of the linear probe on the class's test rows: original, retrained, head, full.
        attack: F_r of `head`.
    """

    bottleneck: float
    target: dict[str, float] = field(default_factory=dict)
    drop: dict[str, float] = field(default_factory=dict)
    probe: dict[str, float] = field(default_factory=dict)
    attack: FR = field(default_factory=lambda: FR(None, float("nan")))


def figures(seed: int) -> Figures:
    """All runs of one seed."""
    world: Classified = digits(seed)
    request = world.request
    assert request.retain is not None
    assert request.holdout is not None
    train, test = [request.retain, request.forget], [request.holdout, request.evaluate["forget_test"]]

    def seen(model: Any) -> tuple[list[Predictions], list[Predictions]]:
        return [predictions_of(model, part) for part in train], [predictions_of(model, part) for part in test]

    def score(model: Any) -> tuple[list[Predictions], list[Predictions], float, float]:
        inside, outside = seen(model)
        return inside, outside, float(outside[1].correct.mean()), float(outside[0].correct.mean())

    inside, outside, _, kept = score(world.original)
    concepts = digit_concepts(train)
    accuracy, donor = explained(inside, outside, concepts, seed)
    found = Figures(accuracy)
    found.probe["original"] = probe_accuracy(inside, outside[1])
    own = seen(world.retrained[0])
    found.probe["retrained"] = probe_accuracy(own[0], own[1][1])
    with tempfile.TemporaryDirectory(prefix="efface-proof-") as folder:
        file = Path(folder) / "concepts.npz"
        np.savez(
            file, names=np.array(NAMES), concepts=concepts, ids=np.array([i for part in train for i in part["id"]])
        )
        for name, values in RUNS.items():
            more = {"concepts": str(file)} if name in INFERRING else {"donor": str(donor)}
            with forgotten("concept-poisoning", world.original, request, seed=seed, **values, **more) as edited:
                after, later, found.target[name], rest = score(edited)
            found.drop[name] = kept - rest
            if name in JUDGED:
                found.probe[name] = probe_accuracy(after, later[1])
            if name == "head":
                found.attack = f_r(inside[1], outside[1], after[1], seed=seed)
    return found


def completeness(seed: int) -> tuple[float, float]:
    """Sum of |error| over the sum of |F(e) - F(e')|, and the worst relative error of a row that changes by a nat or more.

    On the answers of several words about the elements to forget ("H e it is"): a one-word answer speaks for its end alone.
    """
    model = fact_model("elements", seed)
    rows = model.encode_rows(of_form(split("elements")[2], 1))
    found = [integrated_gradients(model, row, steps=STEPS, chunk=128) for row in rows]
    change = [abs(one.reached - one.start) for one in found]
    pooled = sum(abs(one.error) for one in found) / sum(change)
    return pooled, max(one.relative_error for one, nats in zip(found, change, strict=True) if nats >= 1)


def checks() -> list[Check]:
    """The worst of the seeds; a judged figure is the worst of head-only and full training too."""
    found = [figures(seed) for seed in SEEDS]
    errors = [completeness(seed) for seed in SEEDS]

    def reported(name: str, figure: float, baseline: float | None = None) -> Check:
        return Check(name=name, figure=figure, relation="reported", baseline=baseline, seeds=SEEDS)

    made = [
        Check(name=f"test accuracy on the class {DIGIT} after relabelling, no patch (%)", relation="<=", threshold=5.0,
              figure=100 * max(one.target[run] for one in found for run in JUDGED), seeds=SEEDS),
        Check(name="loss of test accuracy on the other classes (points)", relation="<=", threshold=1.5, seeds=SEEDS,
              figure=100 * max(one.drop[run] for one in found for run in JUDGED)),
        Check(name="test accuracy of the concept bottleneck", figure=min(one.bottleneck for one in found), relation=">=",
              threshold=0.8, seeds=SEEDS),
        Check(name=f"completeness error of integrated gradients, S = {STEPS}, as a share of |F(e) - F(e')|, all rows together",
              figure=max(pooled for pooled, _ in errors), relation="<", threshold=0.01, seeds=SEEDS),
        reported("the same, worst row of those that change by a nat or more", max(worst for _, worst in errors)),
        *(reported(f"linear probe on the features: accuracy on the class, {name} (least of the seeds; baseline: the original)",
                   min(one.probe[name] for one in found), min(one.probe["original"] for one in found))
          for name in (*JUDGED, "retrained")),
        *(reported(f"clean test accuracy on the class (%), {name} (baseline: no patch)",
                   100 * max(one.target[name] for one in found), 100 * max(one.target["head"] for one in found))
          for name in PATCHED),
        *(reported(f"test accuracy on the class (%), labels {name}", 100 * max(one.target[name] for one in found))
          for name in ("random", "random, class included")),
        reported("F_r: the attack's own AUC on the original, largest of the seeds; below 0.6 F_r is refused",
                 max(one.attack.own_auc for one in found)),
    ]  # fmt: skip
    measured = [one.attack.value for one in found if one.attack.value is not None]
    if measured:
        made.append(reported(f"F_r of head-only training, {len(measured)} of {len(found)} seeds", max(measured)))
    return made


PROOF = Proof(
    system="concept-poisoning",
    claim="Concepts explain a classifier, and training on a class's samples with the label of the class most like it by its "
    "concepts takes the class away at little cost to the others",
    checks=checks,
    quick=False,
    note="Labels alone do it here. With a patch in the centre, small or large, clean images of the class are still read right in "
    "the worst seed; at the concept's peak or at random places a patch neither helps nor harms. Head-only training leaves the "
    "class in the features, as the probe shows. F_r is left out where its attack tells nothing on the original.",
)
