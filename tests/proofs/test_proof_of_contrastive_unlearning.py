"""The proof of contrastive unlearning judges the worst seed, by the specification's thresholds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from efface.audit.predictions import Predictions
from efface.lab.classified import digit_request
from efface.proofs import contrastive_unlearning as proof
from efface.proofs.contrastive_unlearning import Figures
from efface.proofs.proof import find_proof


def test_thresholds_and_the_worst_of_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_proof("contrastive-unlearning") is proof.PROOF
    assert proof.SEEDS == (0, 1, 2)
    assert proof.TRAINING == {"learning_rate": 0.01, "epochs": 20, "batch_size": 64, "omega": 4}

    def made(seed: int, task: str = "class") -> dict[str, Figures]:
        bad = seed == 1 and task == "class"
        return {
            "original": Figures(0.0, 100.0, 98.0, 40.0, 0.3), "retrained": Figures(100.0, 100.0, 98.0, 0.0, 0.5),
            "finetune": Figures(1.0 + seed, 100.0, 98.0, 40.0, 0.31),
            "contrastive": Figures(84.0 if bad else 95.0, 97.5 if bad else 99.5, 97.0, 3.0 + seed, 0.2 if bad else 0.6),
        }  # fmt: skip

    monkeypatch.setattr(proof, "figures", made)
    checks = proof.checks()
    ua, ra, rise = checks[:3]
    assert (ua.figure, ua.relation, ua.threshold, ua.baseline) == (84.0, ">=", 85.0, 3.0)
    assert (ra.figure, ra.relation, ra.threshold) == (97.5, ">=", 98.0)
    assert (rise.figure, rise.relation, rise.threshold) == (pytest.approx(-0.1), ">", 0.0)
    assert not any(check.holds for check in checks[:3])
    assert all(check.relation == "reported" for check in checks[3:])
    assert checks[4].figure == 5.0
    assert [check.figure for check in checks[5:9]] == [95.0, 99.5, 97.0, 5.0]
    monkeypatch.setattr(proof, "figures", lambda seed, task="class": made(0, task))
    assert all(check.holds for check in proof.checks())


def table(features: list[list[float]], labels: list[int]) -> Predictions:
    found: Any = np.asarray(features, dtype=np.float64)
    return Predictions([str(i) for i in labels], np.asarray(labels, dtype=np.float64), found, found)


def test_the_cosine_is_over_pairs_of_other_classes() -> None:
    forget = table([[2.0, 0.0], [0.0, 3.0]], [3, 3])
    retain = table([[5.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [3, 0, 1])
    half = 0.5**0.5
    assert proof.cosine(forget, retain) == pytest.approx((0 + half + 1 + half) / 4)


def test_the_stop_reads_no_row_of_the_figures() -> None:
    request, _ = digit_request(0, "random")
    found = proof.split(request, 0)
    assert found.holdout is not None
    assert request.holdout is not None
    read, judged = set(found.evaluate["validation"]["id"]), set(found.holdout["id"])
    assert not read & judged
    assert read | judged == set(request.holdout["id"])
    assert len(read) == round(0.2 * len(request.holdout))
