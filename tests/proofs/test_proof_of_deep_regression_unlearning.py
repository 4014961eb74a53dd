"""The proof of deep regression unlearning compares what its specification compares, over the worst of the seeds."""

from __future__ import annotations

import math
from typing import Any

import pytest

from efface.proofs import deep_regression_unlearning as proof
from efface.proofs.deep_regression_unlearning import Seen
from efface.proofs.proof import find_proof


def made(**changes: Any) -> Any:
    def figures(seed: int) -> dict[str, Seen]:
        found = {
            "original": Seen(60, 62, 50, 0.9, 0), "retrained": Seen(0, 0, 45, 0.3, 4), "finetune": Seen(50, 52, 51, 0.8, 1),
            "gaussian-amnesiac": Seen(20, 40, 52, 0.4, 2), "blindspot": Seen(18, 25, 53, 0.2, 3),
            proof.RETAIN_STATS: Seen(9, 39, 90),
        }  # fmt: skip
        return found | (changes if seed == 2 else {})

    return figures


def test_thresholds_and_the_worst_of_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_proof("deep-regression-unlearning")
    assert found.checks is proof.checks
    assert not found.quick
    assert len(proof.SEEDS) == 3
    assert (proof.EPOCHS, proof.PROXY_EPOCHS) == (20, 10)
    monkeypatch.setattr(proof, "figures", made())
    checks = proof.checks()
    ours, gaussian, paired, error = checks[:4]
    assert (ours.figure, ours.relation, ours.threshold, ours.baseline) == (pytest.approx(18 / 50), "<=", 0.5, 60 / 50)
    assert (gaussian.figure, gaussian.relation, gaussian.threshold) == (pytest.approx(20 / 50), "<=", 0.5)
    assert (paired.figure, paired.relation, paired.threshold) == (-15, "<", 0.0)
    assert (error.figure, error.relation, error.threshold) == (pytest.approx(53 / 50), "<=", 1.15)
    assert all(check.holds for check in checks)
    assert {check.relation for check in checks[4:]} == {"reported"}
    told = {check.name: check.figure for check in checks}
    assert told[
        "share of the forget rows called members, distance to the retrained model's, original"
    ] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("place", "name", "bad"),
    [
        (0, "blindspot", Seen(26, 30, 53)), (1, "gaussian-amnesiac", Seen(26, 40, 52)), (2, "blindspot", Seen(18, 41, 53)),
        (3, "blindspot", Seen(18, 25, 58)), (3, "gaussian-amnesiac", Seen(20, 40, 58)),
    ],
)  # fmt: skip
def test_one_bad_seed_is_enough(place: int, name: str, bad: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "figures", made(**{name: bad}))
    assert [i for i, check in enumerate(proof.checks()) if not check.holds] == [place]


def test_what_was_not_reached_is_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "figures", made(blindspot=Seen(18, 25, 53, 0.2, math.inf)))
    told = {check.name: check.figure for check in proof.checks()}
    assert told["anamnesis index, blindspot, furthest from 1 of 2 seeds (others: not reached)"] == pytest.approx(0.75)
    assert all(math.isfinite(figure) for figure in told.values())
    monkeypatch.setattr(proof, "figures", made(retrained=Seen(0, 0, 45, 0.3, 0)))
    assert all(math.isfinite(check.figure) for check in proof.checks())
