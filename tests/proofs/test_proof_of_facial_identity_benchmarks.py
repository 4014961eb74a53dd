"""The proof of the identity benchmark compares what its specification compares; `efface prove` runs it."""

from __future__ import annotations

from typing import Any

import pytest

from efface.audit.finding import Estimate
from efface.audit.metrics.identity import Attack, NoMUS
from efface.proofs import facial_identity_benchmarks as proof
from efface.proofs.proof import find_proof


def made(value: float, a: float = 0.5, accuracy: float = 0.7) -> NoMUS:
    attack = Attack(Estimate(value=a), 0.5, (10, 10), (2, 2))
    return NoMUS(Estimate(value=value), Estimate(value=accuracy), attack, attack, 0.1)


def scores(seed: int, **changes: NoMUS) -> dict[str, NoMUS]:
    plain = {"original": made(0.64, 0.7), "retrained": made(0.76, 0.53), "untrained": made(0.5, accuracy=0.1),
             "finetune": made(0.64, 0.7), "cf-k": made(0.64, 0.7), "gradient-difference": made(0.68, 0.6),
             "scrub": made(0.66, 0.66)}  # fmt: skip
    return {**plain, **changes}


def test_thresholds_and_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_proof("facial-identity-benchmarks")
    assert not found.quick
    assert (proof.GAIN, proof.NEAR, proof.COIN, proof.SEEDS) == (0.08, 0.02, 0.06, (0, 1, 2, 3, 4))
    assert proof.METHODS["gradient-difference"] == {"learning_rate": 0.02, "epochs": 6, "anchor": "retain"}
    calls: list[tuple[Any, int]] = []

    def score(world: Any, seed: int, methods: Any = None) -> dict[str, NoMUS]:
        calls.append((world, seed))
        return scores(seed)

    monkeypatch.setattr(proof, "scores", score)
    checks = proof.checks()
    assert [seed for world, seed in calls if world is proof.digit_subjects] == [0, 1, 2, 3, 4]
    assert [(c.relation, c.threshold) for c in checks[:4]] == [(">=", 0.08), ("<=", 0.02), (">", 0.0), ("<=", 0.06)]
    assert all(check.holds for check in checks)
    assert all(check.relation == "reported" for check in checks[4:])
    assert any("untrained" in check.name for check in checks), (
        "a useless model stands beside the others, with its parts"
    )


def test_the_worst_of_the_seeds_but_for_the_mean_that_is_asked_for() -> None:
    gain, tune, negative, coin = proof.judged([
        scores(0), scores(1, retrained=made(0.71, 0.43)), scores(2, finetune=made(0.61)),
        scores(3, **{"gradient-difference": made(0.63)}),
    ])  # fmt: skip
    assert gain.figure == pytest.approx(0.07)
    assert not gain.holds
    assert tune.figure == pytest.approx(0.03)
    assert not tune.holds
    assert negative.figure == pytest.approx((3 * 0.04 - 0.01) / 4)
    assert negative.baseline == pytest.approx(-0.01)
    assert negative.holds
    assert coin.figure == pytest.approx(0.07), "an attack below one half is as far from a coin"
    assert not coin.holds


def test_part_faces_is_left_out_without_the_data(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Any) -> None:
    monkeypatch.setenv("EFFACE_DATA", str(tmp_path))
    monkeypatch.setattr(proof, "scores", lambda world, seed, methods=None: scores(seed))
    assert not any(check.name.startswith("faces") for check in proof.checks())
    assert "part faces is left out" in capsys.readouterr().err
