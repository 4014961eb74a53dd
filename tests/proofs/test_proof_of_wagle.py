"""The proof of WAGLE compares what its specification compares; `efface prove wagle` runs it."""

from __future__ import annotations

import pytest

from efface.proofs import wagle
from efface.proofs.proof import find_proof


def test_thresholds_and_the_worst_of_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    proof = find_proof("wagle")
    assert not proof.quick
    assert len(wagle.SEEDS) == 3
    assert (wagle.STEPS, wagle.DENSITY, wagle.TRAINING["learning_rate"], wagle.TRAINING["beta"]) == (
        150,
        0.05,
        1e-3,
        0.5,
    )

    def made(seed: int) -> tuple[dict[str, list[float]], dict[str, float]]:
        bad = 0.4 if seed == 2 else 0.0
        forget = {
            "wagle": [0.1, 0.1, 0.1 + bad],
            "random": [0.3] * 3,
            "reverse": [0.9] * 3,
            "snip": [0.2] * 3,
            "dense": [0.0] * 3,
        }
        return forget, {"wagle": 1.0, "random": 0.99, "reverse": 0.97, "snip": 1.0, "dense": 1.0}

    monkeypatch.setattr(wagle, "figures", made)
    order, reverse, retain = wagle.checks()
    assert order.figure == pytest.approx(-0.2)
    assert not order.holds
    assert reverse.holds
    assert (retain.relation, retain.threshold, retain.figure) == (">=", 0.98, 0.97)
    assert not retain.holds
