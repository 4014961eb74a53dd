"""The proof of contrastive-gap: what can be checked in seconds; the whole of it runs by `efface prove`."""

from __future__ import annotations

import math

from efface.measure.estimate import missing
from efface.proofs import contrastive_gap as proof


def test_a_missing_figure_passes_no_threshold() -> None:
    assert math.isnan(proof.figure(missing("no reason", 3)))


def test_two_encoders_begin_together_and_move_apart() -> None:
    before, after = proof.twin_distance(1, steps=60, pairs=64)
    assert 0 < before < after


def test_the_losses_are_the_papers() -> None:
    assert proof.LOSSES["cua"] == {"w_u": 1.0, "w_a": 1.0, "w_xu": 0.0}
    assert proof.LOSSES["cuaxu"]["w_xu"] == 1.0
    assert sum(proof.LOSSES["clip"].values()) == 0
    assert proof.TRAINING["epochs"] * proof.SCENES / proof.BATCH == proof.STEPS
