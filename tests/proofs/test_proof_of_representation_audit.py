"""The proof of the representation audit compares what its specification compares; `efface prove` runs it."""

from __future__ import annotations

from typing import Any

import pytest

from efface.audit.finding import Estimate
from efface.audit.metrics.representation import Measured, Representation
from efface.audit.metrics.representation_scores import Unified
from efface.proofs import representation_audit as proof
from efface.proofs.proof import find_proof

MODELS = (
    "original",
    "retrained",
    "retrained again",
    "head trick",
    "random labels",
    "pseudo-labels",
    "ascent, fine-tuning",
)


def seen(forgotten: bool, original: float, retrained: float, knn: float = 0.9) -> Representation:
    def at(value: float) -> Measured:
        return Measured(Estimate(value=value))

    return Representation(
        accuracy={"forget": Estimate(value=0.0 if forgotten else 1.0)}, cka_original={"forget": at(original)},
        cka_retrained={"forget": at(retrained)}, knn={"forget_test": at(knn)}, probe={"forget_test": at(knn)},
    )  # fmt: skip


def made(trick: float = 1.0, again: float = 0.98, best: float = 0.95) -> proof.Audited:
    models = {name: seen(True, 0.8, 0.8) for name in MODELS}
    models |= {"original": seen(False, 1.0, 0.85), "head trick": seen(True, trick, 0.85, 0.99),
               "retrained": seen(True, 0.85, 1.0)}  # fmt: skip
    scored = {
        name: Unified(1.0, 0.9, {"retrained": 1.0, "retrained again": again}.get(name, best), {}) for name in MODELS
    }
    return proof.Audited(models, scored)


def test_thresholds_and_the_worst_of_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not find_proof("representation-audit").quick
    assert proof.SEEDS == (0, 1, 2)
    monkeypatch.setattr(proof, "audited", lambda seed: made())
    checks = proof.checks()
    assert [(c.relation, c.threshold) for c in checks[:4]] == [(">", 0.99), ("==", 1.0), ("==", 1.0), (">", 0.0)]
    assert all(check.holds for check in checks)
    assert checks[2].baseline == 0, "no other model is flagged"
    assert checks[3].figure == pytest.approx(0.03)
    floor = next(check for check in checks if check.name.startswith("noise floor"))
    assert floor.figure == pytest.approx(0.8)
    excess = next(check for check in checks if "above retraining" in check.name)
    assert excess.figure == pytest.approx(0.09)


def test_one_bad_seed_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        proof, "audited", lambda seed: made(trick=0.98 if seed == 1 else 1.0, again=0.9 if seed == 2 else 0.98)
    )
    same, wrong, flagged, rank = proof.checks()[:4]
    assert not same.holds
    assert wrong.holds
    assert flagged.figure == pytest.approx(2 / 3)
    assert not flagged.holds
    assert rank.figure == pytest.approx(-0.05)
    assert not rank.holds


def test_downstream_rows_are_those_of_mnist_or_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    found = proof.downstream_rows(20)
    if found is not None:
        assert set(found["label"]) <= set(proof.DOWNSTREAM_CLASSES)
        assert len(found) == 20
        assert len(found[0]["features"]) == 64
        assert 0 <= min(found[0]["features"]) <= max(found[0]["features"]) <= 1
    monkeypatch.setenv("EFFACE_DATA", str(tmp_path))
    assert proof.downstream_rows() is None
