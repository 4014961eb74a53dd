"""The proof of dp2unlearning is found; slowly, all of it."""

from __future__ import annotations

import pytest

from efface.proofs.dp2unlearning import BASE, PROOF
from efface.proofs.proof import find_proof


def test_it_is_found_by_its_system() -> None:
    assert find_proof("dp2unlearning") is PROOF
    assert BASE.delta < 1 / 800


@pytest.mark.slow
def test_every_check_holds() -> None:
    pytest.importorskip("opacus")
    result = PROOF.run()
    assert not [check.model_dump() for check in result.checks if not check.holds]
