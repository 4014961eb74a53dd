"""The proof of skill unlearning: what it asks; all of it in the slow run."""

from __future__ import annotations

import pytest

from efface.lab.skills import skills
from efface.proofs.skill_unlearning import ADJUSTED, FALSE_ALARMS, PROOF, SEEDS, behind_junk


def test_settings_are_the_specifications() -> None:
    assert SEEDS == (0, 1, 2)
    assert {values["share"] for _, values in ADJUSTED.values()} == {0.3, 0.03}
    assert FALSE_ALARMS < 0.02
    sums = skills().sums
    assert behind_junk(sums)[0]["question"] == f"q z {sums[0]['question']}"
    assert behind_junk(sums)["answer"] == sums["answer"]


@pytest.mark.slow
def test_the_proof_runs() -> None:
    result = PROOF.run()
    assert {check.seeds for check in result.checks} == {SEEDS}
