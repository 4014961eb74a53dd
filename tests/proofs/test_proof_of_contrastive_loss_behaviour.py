"""The proof of contrastive-loss-behaviour: its parts at once, its claim where there is time to train."""

from __future__ import annotations

import pytest

from efface.proofs import contrastive_loss_behaviour as proof
from efface.proofs.contrastive_loss_behaviour import PROOF, Outcome, smallest_step, split


def test_the_split_is_of_all_digits_and_by_seed() -> None:
    train, unseen = split(0)
    assert (len(train), len(unseen)) == (1200, 597)
    assert not set(train["id"]) & set(unseen["id"])
    assert train[0]["image"].size == (8, 8)
    assert set(train["label"]) == set(unseen["label"]) == set(range(10))
    assert split(1)[0]["id"] != train["id"]


def test_one_falling_step_of_one_seed_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    rising = {(tau, seed): Outcome(-3 + tau, tau / 4, 0.5, 0.9, 0.98) for tau in proof.TAUS for seed in proof.SEEDS}
    monkeypatch.setattr(proof, "outcomes", lambda: rising)
    assert smallest_step("uniformity") == pytest.approx(0.2)
    assert all(check.holds for check in proof.checks())
    rising[0.7, 1] = Outcome(-2.8, 0.175, 0.5, 0.9, 0.98)
    assert smallest_step("uniformity") == pytest.approx(-0.1)
    assert not all(check.holds for check in proof.checks())


@pytest.mark.slow
def test_every_check_holds() -> None:
    result = PROOF.run()
    failing = [check.model_dump() for check in result.checks if not check.holds]
    assert not failing
    assert result.holds
