"""Weighing near negatives and far positives pays: full CACR beats equal weights, three positives beat one.

Scikit-learn's digits, small convolutional encoder, two-layer head of 128, gentle views, batch 128, AdamW at 1e-3; three seeds
of split, start and order. Trained on (a) all 1078 digits for 15 epochs, (b) a long tail in which class c keeps
108 * 0.75^c of them (8 at least), for as many steps. Methods: NT-Xent at 0.5; CACR with K = 1 (t_neg = 2); the same with equal
weights (t = 0); CACR with K = 3. Accuracies on balanced unseen digits, the labels from the balanced digits to train on.

Chosen before any run: the judged accuracy is k-NN from 50 labels, where the specification's figures differ; each comparison
is within a seed and judged at its worst seed. Settings are the specification's where it names them; none was tuned.
"""

from __future__ import annotations

from functools import cache
from statistics import fmean
from typing import Any

import numpy as np
from datasets import Dataset

from efface.lab.digit_learning import digit_split, learned, scores
from efface.proofs.proof import Check, Proof

SEEDS = (0, 1, 2)
EPOCHS, KEPT, DECAY, LEAST = 15, 108, 0.75, 8
TRAINING: dict[str, Any] = {"batch_size": 128, "projector": 128}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "nt-xent": ("nt-xent", {"temperature": 0.5}),
    "one positive": ("cacr", {"n_views": 2, "t_neg": 2.0}),
    "equal weights": ("cacr", {"n_views": 2, "t_pos": 0.0, "t_neg": 0.0}),
    "three positives": ("cacr", {"n_views": 4, "t_neg": 2.0}),
}
JUDGED = "knn50"


@cache
def long_tail(seed: int) -> Dataset:
    """The digits to train on with class c cut to max(8, 108 * 0.75^c)."""
    known = digit_split(seed)[0]
    labels = np.array(known["label"])
    order = np.random.default_rng(seed).permutation(len(labels))
    kept = [order[labels[order] == c][: max(LEAST, round(KEPT * DECAY**c))] for c in range(10)]
    return known.select(sorted(np.concatenate(kept).tolist()))


@cache
def outcome(method: str, tailed: bool, seed: int) -> dict[str, float]:
    """Accuracies of one trained encoder."""
    recipe, settings = METHODS[method]
    rows = len(digit_split(seed)[0])
    if not tailed:
        return scores(learned(recipe, seed, epochs=EPOCHS, **settings, **TRAINING), seed)
    data = long_tail(seed)
    epochs = EPOCHS * rows / len(data)
    return scores(learned(recipe, seed, data, epochs=epochs, **settings, **TRAINING), seed)


def table() -> list[dict[str, Any]]:
    """Means over the seeds, for the docs."""
    names = ("knn", "probe", "knn50", "probe50")
    return [
        {"method": m, "tailed": t, **{name: fmean(outcome(m, t, s)[name] for s in SEEDS) for name in names}}
        for t in (False, True)
        for m in METHODS
    ]


def gain(better: str, other: str, tailed: bool) -> float:
    """The judged accuracy of one method minus another's, at the worst seed."""
    return min(outcome(better, tailed, s)[JUDGED] - outcome(other, tailed, s)[JUDGED] for s in SEEDS)


def drop(method: str, seed: int) -> float:
    """What the long tail costs."""
    return outcome(method, False, seed)[JUDGED] - outcome(method, True, seed)[JUDGED]


def checks() -> list[Check]:
    """Weights, positives, and the long tail."""
    found = []
    for better, other, words in (
        ("one positive", "equal weights", "CACR (K = 1) minus equal weights"),
        ("three positives", "one positive", "CACR with K = 3 minus K = 1"),
    ):
        for tailed in (False, True):
            place = "long-tailed" if tailed else "balanced"
            found.append(
                Check(name=f"50-label k-NN of {words}, {place} training, worst seed", figure=gain(better, other, tailed),
                      relation=">", threshold=0.0, seeds=SEEDS,
                      baseline=fmean(outcome(other, tailed, s)[JUDGED] for s in SEEDS))
            )  # fmt: skip
    more = max(drop("three positives", s) - drop("nt-xent", s) for s in SEEDS)
    found.append(
        Check(name="drop by the long tail of CACR (K = 3) minus NT-Xent's, worst seed", figure=more, relation="<=",
              threshold=0.0, baseline=fmean(drop("nt-xent", s) for s in SEEDS), seeds=SEEDS)
    )  # fmt: skip
    return [*found, *reported()]


def reported() -> list[Check]:
    """All figures, as means over the seeds."""
    return [
        Check(name=f"{name} of {method}, {'long-tailed' if tailed else 'balanced'} training, mean of the seeds",
              figure=fmean(outcome(method, tailed, s)[name] for s in SEEDS), relation="reported", seeds=SEEDS)
        for tailed in (False, True) for method in METHODS for name in ("knn50", "probe")
    ]  # fmt: skip


PROOF = Proof(
    system="cacr",
    claim="re-weighting beats equal weights, three positives beat one, and the long tail costs no more than NT-Xent's",
    checks=checks,
    quick=False,
    note="The weights hold at every seed by ten points or more. Three positives against one does not hold: they win at one seed "
    "of three on balanced, two on long-tailed training, with differences (-2.5 to +3.2 points) of the size of the "
    "spread of 50-label k-NN between seeds; the specification saw +1.2 and +5.3 at its one seed. The drop by the long tail is "
    "smaller than NT-Xent's at two seeds (by 3.8 and 3.9 points) and larger by 0.15 points, one digit of 719, at the third. "
    "Superiority over a tuned NT-Xent is not claimed.",
)
