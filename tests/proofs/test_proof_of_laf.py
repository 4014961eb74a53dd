"""The proof of LAF judges what its specification judges, by the worst seed; `efface prove laf` runs it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from efface.proofs import laf
from efface.proofs.proof import find_proof


def made(seed: int, **bad: float) -> dict[str, dict[str, float]]:
    """Figures of a seed; the last seed has the bad ones."""
    own = bad if seed == 2 else {}
    one = {"UA": 100.0, "RA": 99.0, "TA": 96.0, "gap": 0.5}
    found = {name: dict(one) for name in [*laf.RUNS, "original", "noisy", "noisy, harder", "noisy original"]}
    found["laf"] |= {"label": own.get("label", 0.0), "UA": own.get("UA", 96.0), "RA": own.get("RA", 98.0)}
    found["unlearning"]["gap"] = own.get("alone", 9.0)
    found["original"] |= {"UA": 0.0, "gap": 50.0}
    return found


@pytest.mark.parametrize(
    ("bad", "holding"),
    [
        ({}, [True] * 4),
        ({"UA": 94.9}, [False, True, True, True]),
        ({"RA": 96.9}, [True, False, True, True]),
        ({"label": 1.0}, [True, True, False, True]),
        ({"alone": 1.4}, [True, True, True, False]),
    ],
)
def test_thresholds_and_the_worst_of_the_seeds(
    bad: dict[str, float], holding: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_proof("laf").checks is laf.checks
    assert laf.SEEDS == (0, 1, 2)
    assert laf.TRAINING == {"epochs": 40, "lr_ue": 5e-4, "lr_ra": 1e-3, "temperature": 5}
    monkeypatch.setattr(laf, "figures", lambda seed: made(seed, **bad))
    checks = laf.checks()
    assert [check.holds for check in checks[:4]] == holding
    assert [(check.relation, check.threshold) for check in checks[:4]] == [
        (">=", 95.0), (">=", 97.0), ("==", 0.0), ("<=", 1 / 3),
    ]  # fmt: skip
    assert {check.relation for check in checks[4:]} == {"reported"}
    told = " ".join(check.name for check in checks[4:])
    for words in ("alignment loss alone", "unlearning loss alone", "LAF+R", "as released", "wrong labels"):
        assert words in told


def test_nonsense_labels_touch_nothing_else() -> None:
    data = Dataset.from_dict({"id": ["a", "b"], "features": [[1.0], [2.0]], "label": [3, 3]})
    found: Any = laf.nonsense(data, 0)
    assert found["id"] == data["id"]
    assert found["features"] == data["features"]
    assert not set(found["label"]) & {3}
    assert np.ptp(found["label"]) > 10
