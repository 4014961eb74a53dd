"""The proof of DeepCUT judges the worst seed of both kinds of text, by the specification's thresholds."""

from __future__ import annotations

import pytest

from efface.proofs import deepcut as proof
from efface.proofs.deepcut import Figures
from efface.proofs.proof import find_proof


def test_thresholds_and_the_worst_of_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_proof("deepcut") is proof.PROOF
    assert "reconstruction" in proof.PROOF.note
    assert proof.SEEDS == (0, 1, 2)
    assert (proof.GAMMA, proof.PASSES, proof.TRAINING["learning_rate"]) == (10.0, 5, 3e-3)

    def made(seed: int, form: str) -> dict[str, Figures]:
        bad = seed == 2 and form == "sentences"
        return {
            "original": Figures(1.0, 1.0, 0.70, 30.0), "retrained": Figures(0.05 + seed / 100, 1.0, 0.75, 0.0),
            "finetune": Figures(0.9, 1.0, 0.71, 25.0),
            "deepcut": Figures(0.8 if bad else 0.2, 0.98 if bad else 1.0, 0.66 if bad else 0.69, 6.0 + seed),
            "small": Figures(0.85, 1.0, 0.70, 25.0), "ratio": Figures(0.3, 1.0, 0.69, 8.0),
        }  # fmt: skip

    monkeypatch.setattr(proof, "figures", made)
    checks = proof.checks()
    assert len(checks) == 12
    bags, sentences = checks[:6], checks[6:]
    for part, figures in ((bags, (0.7, 0.01, 1.0)), (sentences, (0.1, 0.04, 0.98))):
        fall, drop, retain = part[:3]
        assert (fall.figure, fall.relation, fall.threshold) == (pytest.approx(figures[0]), ">=", 0.2)
        assert fall.baseline == pytest.approx(0.05)
        assert (drop.figure, drop.relation, drop.threshold) == (pytest.approx(figures[1]), "<=", 0.03)
        assert (retain.figure, retain.relation, retain.threshold) == (figures[2], ">=", 0.99)
    assert all(check.holds for check in bags)
    assert not any(check.holds for check in sentences[:3])
    assert [check.relation for check in sentences[3:]] == ["reported"] * 3
    assert sentences[3].figure == 0.8
    assert sentences[3].baseline == pytest.approx(0.07)
    assert sentences[5].figure == 8.0
