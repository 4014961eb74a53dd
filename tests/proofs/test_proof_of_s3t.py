"""The proof of s3t: its quick parts, and, slowly, all of it."""

from __future__ import annotations

import pytest

from efface.proofs.proof import find_proof
from efface.proofs.s3t import PROOF, matching_checks


def test_it_is_found_by_its_system() -> None:
    assert find_proof("s3t") is PROOF


def test_orders_by_matching_hold() -> None:
    assert all(check.holds for check in matching_checks())


@pytest.mark.slow
def test_every_check_holds() -> None:
    result = PROOF.run()
    assert not [check.model_dump() for check in result.checks if not check.holds]
