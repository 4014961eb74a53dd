"""Balanced codes keep the prototypes in use; plain softmax codes collapse.

Scikit-learn's digits, small convolutional encoder, 64 wide projection, 50 prototypes, batch 256, 60 epochs, two gentle views
and no queue, three seeds of split, start and order. The ablation differs in its codes only. Clusters are the nearest
prototypes of the digits to train on; accuracies are on unseen digits. The untrained baseline is the same encoder with the
same untrained head and prototypes; k-means with 50 clusters on its features stands beside it, a baseline that the
specification does not ask for. Chosen before any run: "clearly" is 0.05 of accuracy and 0.1 of NMI, "far fewer" prototypes
are at most 40 %. Settings are the specification's and the hidden layer's 128; none was tuned.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from efface.lab.digit_learning import digit_split, learned, scores, untrained
from efface.learn.recipes.swav import SwavHead, load_head
from efface.proofs.proof import Check, Proof
from efface.subjects.encoder import Encoder
from efface.train.engine import isolated_rng

SEEDS = (0, 1, 2)
K, HIDDEN, OUT = 50, 128, 64
TRAINING: dict[str, Any] = {
    "batch_size": 256, "epochs": 60, "prototypes": K, "hidden": HIDDEN, "projector": OUT, "small_crops": 0,
    "queue_size": 0,
}  # fmt: skip
PROBE_GAIN, NMI_GAIN, USED, FEW_USED = 0.05, 0.1, 0.8, 0.4


@dataclass(frozen=True)
class Outcome:
    """One model.

    Attributes:
        knn, probe, knn50, probe50: see `lab.digit_learning.scores`.
        nmi: between nearest prototype and class.
        used: share of the prototypes that are nearest to any digit.
    """

    knn: float
    probe: float
    knn50: float
    probe50: float
    nmi: float
    used: float


def features(encoder: Encoder, seed: int) -> tuple[Tensor, np.ndarray]:
    """[1078, D] of the digits to train on, as the head sees them, and their classes."""
    known = digit_split(seed)[0]
    pictures = list(known["image"])
    from efface.data.items import open_picture

    encoder.model.eval()
    with torch.no_grad():
        rows = encoder.features(encoder.prepare([open_picture(picture) for picture in pictures]))
    return rows, np.array(known["label"])


def outcome(encoder: Encoder, head: SwavHead, seed: int) -> Outcome:
    """Measure a model."""
    rows, classes = features(encoder, seed)
    with torch.no_grad():
        nearest = head.eval()(rows).argmax(1).numpy()
    nmi = float(normalized_mutual_info_score(classes, nearest))
    return Outcome(**scores(encoder, seed), nmi=nmi, used=len(np.unique(nearest)) / K)


@cache
def outcomes(seed: int) -> dict[str, Outcome]:
    """Balanced codes, softmax codes, and nothing trained."""
    found = {}
    for codes in ("balanced", "softmax"):
        encoder = learned("swav", seed, codes=codes, **TRAINING)
        found[codes] = outcome(encoder, load_head(Path(encoder.source)), seed)
    start = untrained(seed)
    with isolated_rng(seed):
        head = SwavHead(start.width, HIDDEN, OUT, K)
    return found | {"untrained": outcome(start, head, seed)}


def clustered(seed: int) -> float:
    """NMI of k-means on the untrained encoder's unit features."""
    rows, classes = features(untrained(seed), seed)
    unit = torch.nn.functional.normalize(rows, dim=1).numpy()
    labels = KMeans(K, n_init=10, random_state=seed).fit_predict(unit)
    return float(normalized_mutual_info_score(classes, labels))


def checks() -> list[Check]:
    """Each judged figure is that of the worst seed."""
    found = [outcomes(seed) for seed in SEEDS]

    def gain(name: str, other: str) -> float:
        return float(min(getattr(one["balanced"], name) - getattr(one[other], name) for one in found))

    def reported(codes: str, name: str) -> list[Check]:
        return [
            Check(name=f"{name} of {codes}, seed {seed}", figure=getattr(one[codes], name), relation="reported",
                  seeds=(seed,))
            for seed, one in zip(SEEDS, found, strict=True)
        ]  # fmt: skip

    judged = [
        Check(name="smallest share of prototypes used with balanced codes", figure=min(one["balanced"].used for one in found),
              relation=">=", threshold=USED, baseline=max(one["softmax"].used for one in found), seeds=SEEDS),
        Check(name="largest share of prototypes used with softmax codes", figure=max(one["softmax"].used for one in found),
              relation="<=", threshold=FEW_USED, seeds=SEEDS),
        Check(name="smallest gain of NMI over softmax codes", figure=gain("nmi", "softmax"), relation=">", threshold=0.0,
              seeds=SEEDS),
        Check(name="smallest gain of the 50-label probe over the untrained encoder", figure=gain("probe50", "untrained"),
              relation=">=", threshold=PROBE_GAIN, seeds=SEEDS),
        Check(name="smallest gain of NMI over the untrained encoder and prototypes", figure=gain("nmi", "untrained"),
              relation=">=", threshold=NMI_GAIN, seeds=SEEDS),
    ]  # fmt: skip
    means = Outcome.__dataclass_fields__
    for codes in ("balanced", "softmax", "untrained"):
        for name in means:
            judged += reported(codes, name)
    return judged + [
        Check(name=f"NMI of k-means on the untrained encoder, seed {seed}", figure=clustered(seed), relation="reported",
              seeds=(seed,))
        for seed in SEEDS
    ]  # fmt: skip


PROOF = Proof(
    system="swav",
    claim="balanced codes learn clusters that follow the classes and use the prototypes; softmax codes collapse",
    checks=checks,
    quick=False,
    note="The untrained baseline of NMI is weak: 1 to 3 of its 50 random prototypes are nearest to any digit. k-means on the "
    "untrained features reaches about the NMI of SwAV's prototypes (reported), so that NMI shows no better clusters than that. "
    "Pictures of 8 x 8 leave nothing to crop: multi-crop and queue, which carry most of the published gain, are not shown "
    "here. The first run trains six small encoders; later ones take them from the cache.",
)
