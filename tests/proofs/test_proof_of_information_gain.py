"""The proof of information-gain holds: closed forms, Gaussian scores, and the regime of the norm."""

from __future__ import annotations

from efface.proofs.information_gain import SEEDS, numerics_checks, vectors_checks


def test_part_a_holds() -> None:
    checks = numerics_checks()
    assert len(checks) == 6
    assert not [check.model_dump() for check in checks if not check.holds]


def test_part_b_holds() -> None:
    checks = vectors_checks()
    assert not [check.model_dump() for check in checks if not check.holds]
    headline = checks[0]
    assert (headline.threshold, headline.seeds) == (0.98, SEEDS)
    assert sum(check.threshold == 0.98 for check in checks) >= 2
    assert headline.baseline is not None
    assert headline.baseline < 0.9, "the weight by the covariance is what does it"
