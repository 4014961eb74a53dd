"""The proof of SalUn compares what its specification compares; `efface prove salun` runs it."""

from __future__ import annotations

import pytest
import torch

from efface.audit.finding import Estimate
from efface.audit.metrics.classification import Report
from efface.proofs import salun
from efface.proofs.proof import find_proof


def known(ua: float, ra: float = 1.0) -> Report:
    return Report(
        {"UA": Estimate(value=ua), "MIA": Estimate(value=1.0), "RA": Estimate(value=ra), "TA": Estimate(value=1.0)}
    )


def made(
    task: str, seed: int, *, own: float, same: int, ra: float
) -> tuple[dict[str, Report], dict[str, tuple[int, int]]]:
    names = ("retrained", "retrained, another seed", "original", *salun.RUNS)
    table = {name: known(1.0) for name in names}
    table |= {
        "original": known(0.0),
        "fine-tuning": known(0.2),
        "SalUn": known(own, ra),
        "SalUn, random mask": known(0.9),
    }
    return table, {name: (same if name == "SalUn" else 20, 101) for name in salun.MASKED}


def test_thresholds_and_the_worst_of_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not find_proof("salun").quick
    assert (salun.SEEDS, salun.TASK_NAMES, salun.DENSITY) == ((0, 1, 2), ("class", "noisy"), 0.5)
    assert (salun.TRAINING["epochs"], salun.TRAINING["learning_rate"]) == (10, 0.02)

    def good(task: str, seed: int) -> object:
        return made(task, seed, own=0.9, same=51, ra=0.99)

    monkeypatch.setattr(salun, "figures", good)
    ratio, bits, kept, leak, *table = salun.checks()
    assert (ratio.relation, ratio.threshold) == ("<", 0.4)
    assert ratio.figure == pytest.approx((0.1 + 0.01) / 0.8)
    assert ratio.holds
    assert (bits.relation, bits.threshold, bits.figure) == ("==", 0, 0)
    assert (kept.relation, kept.threshold, kept.figure) == (">=", 98, pytest.approx(99))
    assert leak.relation == "reported"
    assert leak.figure == pytest.approx(20 / 101)
    assert {check.relation for check in table} == {"reported"}
    assert len(table) == 2 * (2 + len(salun.RUNS)) * 5, "UA, MIA, RA, TA and the gap of every row"
    assert any("random mask" in check.name for check in table), "the control is always printed"

    def bad(task: str, seed: int) -> object:
        return made(task, seed, own=0.5 if (task, seed) == ("noisy", 2) else 0.9, same=50 if seed == 1 else 51,
                    ra=0.97 if seed == 0 else 1.0)  # fmt: skip

    monkeypatch.setattr(salun, "figures", bad)
    ratio, bits, kept, *_ = salun.checks()
    assert ratio.figure == pytest.approx(0.5 / 0.8)
    assert bits.figure == 1
    assert not ratio.holds
    assert not bits.holds
    assert not kept.holds


def test_bits_are_counted_not_values() -> None:
    before = {"a": torch.tensor([0.0, 1.0, 2.0]), "b": torch.tensor([3.0])}
    after = {"a": torch.tensor([-0.0, 1.0, 2.5]), "b": torch.tensor([3.0])}
    assert salun.resting_entries(before, after) == 2
