"""The proof's structure; its figures come from `efface prove in-context-unlearning`."""

from __future__ import annotations

from typing import Any

import pytest

from efface.proofs import in_context_unlearning as proof
from efface.proofs.proof import find_proof

GOOD = {"forget": 0.97, "retain": 0.92, "internal": 0.8, "inside": 0.6, "last": 0.97, "no_tag": 0.97}
WEAK = {"forget": 0.8, "retain": 0.2, "internal": 0.1, "inside": 0.1, "last": 0.8, "no_tag": 0.5}
NOTHING = {"forget": 0.0, "retain": 0.08, "internal": 0.0, "inside": 0.0, "last": 0.0, "no_tag": 1.0}
WORLD = {
    "zero-shot": NOTHING, "few-shot": NOTHING, "icul": NOTHING, "fft": GOOD, "fft, unseen form": NOTHING, "llt": WEAK,
    "llt, unseen form": NOTHING, "46 names": WEAK, "46 names, trained": GOOD,
}  # fmt: skip


def judged(monkeypatch: pytest.MonkeyPatch, **changes: dict[str, float]) -> dict[str, bool]:
    def run(seed: int) -> Any:
        return {name: {**row, **changes.get(name, {})} for name, row in WORLD.items()}

    monkeypatch.setattr(proof, "run_seed", run)
    return {check.name: check.holds for check in proof.checks()}


def test_thresholds_are_the_specifications(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_proof("in-context-unlearning") is proof.PROOF
    monkeypatch.setattr(proof, "run_seed", lambda seed: WORLD)
    found = proof.checks()
    assert sorted({check.threshold for check in found if check.threshold is not None}) == [0.0, 0.1, 0.4, 0.85, 0.9]
    assert all(check.seeds == (0, 1, 2) for check in found)
    assert all(judged(monkeypatch).values())


@pytest.mark.parametrize(
    "broken",
    [
        {"fft": {"forget": 0.84}}, {"fft": {"retain": 0.84}}, {"zero-shot": {"retain": 0.11}}, {"fft": {"inside": 0.39}},
        {"fft": {"last": 0.89}}, {"llt": {"retain": 0.93}}, {"llt": {"internal": 0.9}},
    ],
)  # fmt: skip
def test_each_condition_can_fail(broken: dict[str, dict[str, float]], monkeypatch: pytest.MonkeyPatch) -> None:
    assert not all(judged(monkeypatch, **broken).values())
