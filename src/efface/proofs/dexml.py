"""Decoupled softmax among its peers: mosaics with one to six right labels of sixty, a query tower and a label tower.

Losses: softmax, softmax averaged over the positives, decoupled softmax, one-vs-all BCE, soft top-k (k = 5, or the number of
labels where it is 6); all positives of a picture take part, temperature 0.1, 25 epochs at a batch of 64. On unseen mosaics:
P@1, P@4 of pictures with four labels or more, R-precision, recall@10, and recall@10 of rare digits (reported).

Thresholds are the specification's and were set before any seed was run. It measures means and spreads, so that figures are
means over the three seeds. "Far above BCE" is 0.03 of P@4. No setting was tuned.
"""

from __future__ import annotations

from functools import cache
from statistics import fmean
from typing import Any

from efface.lab.mosaics import scores, trained
from efface.proofs.proof import Check, Proof

SEEDS = (0, 1, 2)
TRAINING: dict[str, Any] = {
    "epochs": 25, "batch_size": 64, "temperature": 0.1, "learning_rate": 1e-3, "sample": False, "label_chunk": None,
}  # fmt: skip
SOFTMAXES = ("softmax", "softmax-mean", "decoupled")
LOSSES = (*SOFTMAXES, "bce", "soft-top-k")
FAR = 0.03


@cache
def outcome(loss: str, seed: int) -> dict[str, float]:
    """Figures of one loss on unseen mosaics."""
    return scores(trained(seed, loss=loss, **TRAINING), seed)


def mean(loss: str, figure: str) -> float:
    """Over the seeds."""
    return fmean(outcome(loss, seed)[figure] for seed in SEEDS)


def gain(figure: str) -> float:
    """Decoupled softmax over the better of the two softmax forms, means."""
    return mean("decoupled", figure) - max(mean("softmax", figure), mean("softmax-mean", figure))


def checks() -> list[Check]:
    """P@4 of many-label pictures, R-precision, and BCE far below; everything else is reported."""
    reported = [
        Check(name=f"{loss}: {figure}, mean of the seeds", relation="reported", seeds=SEEDS, figure=mean(loss, figure))
        for loss in LOSSES for figure in outcome(loss, SEEDS[0])
    ]  # fmt: skip
    return [
        Check(name="gain of decoupled softmax over the better softmax, P@4 of pictures with four labels or more",
              figure=gain("p@4"), relation=">", threshold=0.0, seeds=SEEDS,
              baseline=max(mean("softmax", "p@4"), mean("softmax-mean", "p@4"))),
        Check(name="gain of decoupled softmax over the better softmax, R-precision", figure=gain("r-precision"),
              relation=">=", threshold=0.0, seeds=SEEDS,
              baseline=max(mean("softmax", "r-precision"), mean("softmax-mean", "r-precision"))),
        Check(name="least gain of a softmax-type loss over BCE, P@4", relation=">", threshold=FAR, seeds=SEEDS,
              figure=min(mean(loss, "p@4") for loss in SOFTMAXES) - mean("bce", "p@4"), baseline=mean("bce", "p@4")),
        *reported,
    ]  # fmt: skip


PROOF = Proof(
    system="dexml",
    claim="with several right labels, taking the other positives out of each positive's denominator finds more of them than "
    "a softmax over all labels, and one-vs-all BCE is far behind",
    checks=checks,
    quick=False,
    note="Rare-label recall is reported and not judged: in the specification's own measurement decoupling costs 7 to 9 points "
    "of it. Labels are 'digit in slot' through embeddings, in place of texts. The first run trains fifteen small models.",
)
