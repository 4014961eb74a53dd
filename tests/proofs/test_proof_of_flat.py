"""The proof of flat compares what its specification names, at its thresholds (run it with `efface prove flat`)."""

from __future__ import annotations

from typing import Any

import pytest

from efface.forget.method import find_method
from efface.proofs import flat
from efface.proofs.proof import find_proof


def given(values: dict[str, tuple[float, float]]) -> Any:
    """Three seeds with the same statement accuracy and forget probability for each method."""
    return lambda: {
        name: {"statement": [a] * 3, "question": [0.0] * 3, "forget": [p] * 3} for name, (a, p) in values.items()
    }


def test_thresholds_are_the_specifications(monkeypatch: pytest.MonkeyPatch) -> None:
    names = list(flat.METHODS)
    good = dict(zip(names, [(0.44, 0.0), (0.48, 0.0), (0.17, 0.0), (0.16, 0.0)], strict=True))
    monkeypatch.setattr(flat, "figures", given(good))
    found = find_proof("flat").checks()
    assert [check.threshold for check in found] == [0.2, 0.2, 0.01, 0.01]
    assert all(check.holds and check.seeds == (0, 1, 2) for check in found)
    assert found[0].figure == pytest.approx(0.28)
    for name, index in ((names[0], 0), (names[1], 1)):
        monkeypatch.setattr(flat, "figures", given({**good, name: (0.35, 0.02)}))
        assert [i for i, check in enumerate(flat.checks()) if not check.holds] == [index, index + 2]


def test_every_run_is_a_configuration_without_retain_data() -> None:
    for method, values in flat.METHODS.values():
        config = find_method(method).configure({**flat.STEPS, **values})
        assert getattr(config, "retain_term", None) == "none"
        assert (config.learning_rate, config.epochs, config.batch_size) == (3e-4, 120, 6)
