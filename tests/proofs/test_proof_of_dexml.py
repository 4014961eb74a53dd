"""The proof of DEXML: its verdicts at once; the whole of it runs by `efface prove`."""

from __future__ import annotations

import pytest

from efface.proofs import dexml as proof


def figures(loss: str, seed: int) -> dict[str, float]:
    best = {"softmax": 0.88, "softmax-mean": 0.885, "decoupled": 0.9, "bce": 0.8, "soft-top-k": 0.87}[loss]
    return {"p@4": best, "r-precision": 0.84 + (loss == "decoupled") * 0.001, "p@1": 0.9}


@pytest.mark.parametrize(
    ("place", "loss", "figure", "value"),
    [(0, "softmax-mean", "p@4", 0.91), (1, "softmax", "r-precision", 0.85), (2, "softmax", "p@4", 0.82)],
)
def test_each_verdict_turns(place: int, loss: str, figure: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "outcome", figures)
    assert [check.holds for check in proof.checks()[:3]] == [True] * 3

    def broken(of: str, seed: int) -> dict[str, float]:
        return figures(of, seed) | ({figure: value} if of == loss else {})

    monkeypatch.setattr(proof, "outcome", broken)
    assert [check.holds for check in proof.checks()[:3]] == [i != place for i in range(3)]
