"""The proof of muse holds, with every threshold of its specification."""

from __future__ import annotations

import pytest

from efface.proofs.muse import PROOF


@pytest.mark.slow
def test_every_check_holds() -> None:
    result = PROOF.run()
    failing = [check.model_dump() for check in result.checks if not check.holds]
    assert not failing
    assert result.holds
