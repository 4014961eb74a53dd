"""The proof of SSD compares what its specification compares; `efface prove ssd` runs it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from efface.audit.finding import Estimate
from efface.audit.metrics.classification import Report
from efface.proofs import ssd
from efface.proofs.proof import find_proof


def a_report(ua: float, ra: float, ta: float = 0.9) -> Report:
    return Report({name: Estimate(value=value, n=100) for name, value in (("UA", ua), ("RA", ra), ("TA", ta))})


def runs(pairs: Sequence[tuple[float, float, float]]) -> list[ssd.Found]:
    return [ssd.Found(alpha, a_report(ua, ra)) for alpha, ua, ra in pairs]


def test_alpha_is_chosen_on_training_rows_and_never_on_test_rows() -> None:
    test_is_better = ssd.Found(2.0, a_report(0.9, 0.9, ta=1.0))
    training_is_better = ssd.Found(3.0, a_report(0.95, 0.9, ta=0.1))
    assert ssd.chosen([test_is_better, training_is_better]) is training_is_better
    first, equal = runs([(2, 0.9, 0.95), (5, 0.95, 0.9)])
    assert ssd.chosen([equal, first]) is first


def test_thresholds_and_the_worst_of_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    proof = find_proof("ssd")
    assert not proof.quick
    assert (ssd.SEEDS, ssd.ALPHAS) == ((0, 1, 2), (2.0, 3.0, 5.0))

    def made(seed: int) -> ssd.Figures:
        kept = 0.97 if seed == 1 else 0.99
        good = runs([(2, 1.0, 0.9), (3, 0.96 if seed == 2 else 1.0, kept), (5, 0.3, 1.0)])
        wrong = runs([(1.5, 0.8, 0.3), (8, 0.6 if seed == 0 else 0.2, 0.7)])
        every = {"rows": good, "finer": good, "batches": runs([(20, 0.5, 0.5)]), "outputs": good}
        return ssd.Figures(a_report(0, 1), a_report(1, 1), every, wrong, a_report(0.98, 1))

    monkeypatch.setattr(ssd, "figures", made)
    found = ssd.checks()
    error, retain = found[:2]
    assert (error.figure, error.relation, error.threshold, error.baseline) == (0.96, ">=", 0.95, 0)
    assert error.holds
    assert (retain.figure, retain.relation, retain.threshold) == (0.97, ">=", 0.98)
    assert not retain.holds
    assert all(check.relation == "reported" for check in found[2:])
    by_name = {check.name: check.figure for check in found}
    assert by_name["wrong labels: the smaller of forget error and retain accuracy, best of all alphas and seeds (baseline: "
                   "retrained)"] == 0.6  # fmt: skip
    assert by_name["class 3, published estimator (batches of 64), alpha of 5, 10, 20, 50: retain accuracy"] == 0.5
    gap = next(check for check in found if check.name.startswith("class 3: average gap"))
    assert gap.figure == pytest.approx(100 * (0.04 + 0.01) / 3), "seed 2 is further away than seed 1"
    assert gap.baseline == pytest.approx(100 / 3)
