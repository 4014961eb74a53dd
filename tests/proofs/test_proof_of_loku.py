"""The proof of LoKU compares what its specification compares; `efface prove loku` runs it."""

from __future__ import annotations

from typing import Any

import pytest

from efface.proofs import loku
from efface.proofs.loku import Course
from efface.proofs.proof import find_proof


def test_thresholds_and_the_worst_of_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not find_proof("loku").quick
    assert len(loku.SEEDS) == 3
    assert (loku.TRAINING["lora_rank"], loku.TRAINING["learning_rate"], loku.TRAINING["batch_size"]) == (4, 1e-3, 32)
    steps = list(range(10, 130, 10))

    def made(seed: int, **values: Any) -> Course:
        quick = values["init"] != "random"
        gone = (20 if quick else 60) + (20 if quick and seed == 1 else 0)
        low = 0.8 if values.get("forget_loss") == "ascent" else 0.95
        return Course(steps, [0.5 if s < gone else 0.01 for s in steps], [low, *[1.0] * 11], 5e-6)

    monkeypatch.setattr(loku, "course", made)
    margin, speed, start, *ranks = loku.checks()
    assert margin.figure == pytest.approx(0.15)
    assert (margin.relation, margin.threshold) == (">=", 0.1)
    assert speed.figure == pytest.approx(40 / 60)
    assert (speed.relation, speed.threshold) == ("<=", 0.5)
    assert not speed.holds
    assert (start.relation, start.threshold, start.figure) == ("<", 1e-4, 5e-6)
    assert len(ranks) == 2


def test_never_forgotten_is_no_first_step() -> None:
    assert Course([10, 20], [0.5, 0.03], [1.0, 1.0]).first == float("inf")
