"""The gate is what makes unlike pairs usable: with it arbitrary pairs teach what SupCon teaches, without it nothing.

Digits in four rotations are 40 classes; training sees the 20 of digits 0 to 4, the encoder is read on those and on the 20 of
digits 5 to 9 by a probe of 200 labels (mean of five draws) and by k-NN. Small convolutional encoder, D = 64, batch 256, T 0.1, 25
epochs, two views. Judged figures are means over three seeds, as the specification's are; the margin of 1.5 points is its own,
and the same margin above the untrained encoder is what 'falls to its level' means here, fixed before the first run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from efface.lab.digit_learning import learned_at, untrained
from efface.lab.turned_digits import quarters
from efface.learn.recipes.simlap_gate import load_gate
from efface.learn.watch import knn_score, probe_score
from efface.proofs.proof import Check, Proof

SEEDS = (0, 1, 2)
LABELS, DRAWS = 200, 5
MARGIN = 1.5
TRAINING: dict[str, Any] = {"batch_size": 256, "epochs": 25, "temperature": 0.1}
SIMLAP: dict[str, Any] = {"width": 64, "hidden": 128, "label_width": 64, "gate_hidden": 128, "form": "two-view"}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "SupCon": ("sup-con", {"projector": 64}),
    "arbitrary": ("simlap", {**SIMLAP, "pairs": "arbitrary"}),
    "distinct": ("simlap", {**SIMLAP, "pairs": "distinct"}),
    "arbitrary, gate open": ("simlap", {**SIMLAP, "pairs": "arbitrary", "gate": "open"}),
    "distinct, gate open": ("simlap", {**SIMLAP, "pairs": "distinct", "gate": "open"}),
}
GATED, OPEN = ("arbitrary", "distinct"), ("arbitrary, gate open", "distinct, gate open")
UNTRAINED = "untrained"


@dataclass(frozen=True)
class Seen:
    """Of one encoder, in per cent.

    Attributes:
        seen, new: probe of 200 labels on the classes of training and on new ones, unseen digits.
        knn: on the new ones from all training digits.
        opening, spread: of the gates over all pairs: mean, and mean deviation between pairs.
    """

    seen: float
    new: float
    knn: float
    opening: float = 0.0
    spread: float = 0.0


def probe(x: Tensor, labels: Tensor, z: Tensor, truth: Tensor, seed: int) -> float:
    """Per cent, mean over draws of 200 labels."""
    found = []
    for i in range(DRAWS):
        few, _ = train_test_split(np.arange(len(x)), train_size=LABELS, random_state=DRAWS * seed + i, stratify=labels)
        found.append(probe_score(x[few], labels[few], z, truth))
    return 100 * fmean(found)


@cache
def measured(name: str, seed: int) -> Seen:
    """Train and measure one model."""
    data = quarters(seed)
    opening = spread = 0.0
    if name == UNTRAINED:
        encoder = untrained(seed)
    else:
        recipe, settings = METHODS[name]
        encoder, folder = learned_at(recipe, seed, data["seen"], **TRAINING, **settings)
        if name in GATED:
            gates = load_gate(folder).gate.every()[1]
            opening, spread = float(gates.mean()), float(gates.std(0).mean())
    probes, knn = [], 0.0
    for half in ("seen", "new"):
        known, unseen = data[half], data[f"{half} unseen"]
        x, z = (encoder.embed(list(part["image"]), 512) for part in (known, unseen))
        labels, truth = torch.tensor(known["label"]), torch.tensor(unseen["label"])
        probes.append(probe(x, labels, z, truth, seed))
        knn = 100 * knn_score(x, labels, z, truth)
    return Seen(probes[0], probes[1], knn, opening, spread)


def mean(name: str, what: str) -> float:
    """Over the seeds."""
    return fmean(getattr(measured(name, seed), what) for seed in SEEDS)


def checks() -> list[Check]:
    """Means over the seeds; of two kinds of pairs the worse one."""

    def gap(names: tuple[str, ...], what: str, base: str, best: Any) -> float:
        return float(best(mean(name, what) - mean(base, what) for name in names))

    where = {"seen": "classes of training", "new": "new classes"}
    judged = [
        *(
            Check(name=f"probe on {said}: gated minus SupCon in points, lower of arbitrary and distinct pairs",
                  figure=gap(GATED, what, "SupCon", min), relation=">=", threshold=-MARGIN, baseline=mean("SupCon", what),
                  seeds=SEEDS)
            for what, said in where.items()
        ),
        *(
            Check(name=f"probe on {said}: gate open minus untrained in points, higher of arbitrary and distinct pairs",
                  figure=gap(OPEN, what, UNTRAINED, max), relation="<=", threshold=MARGIN, baseline=mean(UNTRAINED, what),
                  seeds=SEEDS)
            for what, said in where.items()
        ),
        Check(name="mean opening of the gates, smallest", figure=min(measured(n, s).opening for n in GATED for s in SEEDS),
              relation=">=", threshold=0.05, seeds=SEEDS),
        Check(name="mean opening of the gates, largest", figure=max(measured(n, s).opening for n in GATED for s in SEEDS),
              relation="<=", threshold=0.95, seeds=SEEDS),
        Check(name="mean deviation of a gate between pairs, smallest",
              figure=min(measured(n, s).spread for n in GATED for s in SEEDS), relation=">", threshold=0.01, seeds=SEEDS),
    ]  # fmt: skip
    words = {"seen": "probe on classes of training", "new": "probe on new classes", "knn": "k-NN on new classes"}
    return judged + [
        Check(name=f"{said}, {name}, mean", figure=mean(name, what), relation="reported", seeds=SEEDS)
        for name in (UNTRAINED, *METHODS)
        for what, said in words.items()
    ]


PROOF = Proof(
    system="hydra-pairs",
    claim="gated contrast of arbitrary and of always distinct classes teaches an encoder as much as SupCon does, and without the "
    "gate such pairs teach nothing",
    checks=checks,
    quick=False,
    note="40 classes of 8 x 8 digits. Better transfer than SupCon's, the paper's claim, does not show at this scale and is not "
    "claimed; new classes are rotations of other digits, which is near.",
)
