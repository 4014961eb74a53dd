"""The proof of rwku: its thresholds and sanity checks; all of it in the slow run."""

from __future__ import annotations

import numpy as np
import pytest

from efface.audit.metrics.membership import min_k_plus_plus
from efface.lab.probed_facts import ATTACKS, FORMS
from efface.proofs.rwku import ABOVE, FALL, JUDGED, KEPT, METHODS, PROOF, uniform_scores


def test_thresholds_are_those_of_the_specification() -> None:
    assert (FALL, ABOVE, KEPT) == (0.5, 0.15, 0.1)
    assert JUDGED in METHODS
    assert set(ATTACKS) == set(FORMS) - {"blank", "question"}
    assert PROOF.system == "rwku"


def test_the_uniform_distribution_has_no_deviation() -> None:
    assert np.isfinite(min_k_plus_plus(uniform_scores()).scores).all()


@pytest.mark.slow
def test_every_check_is_computed() -> None:
    assert len(PROOF.run().checks) == 9
