"""The proof of who-is-harry-potter compares what its specification names, at its thresholds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from efface.forget.method import find_method
from efface.proofs import who_is_harry_potter as whp
from efface.proofs.proof import find_proof


def test_thresholds_are_the_specifications(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"who-is-harry-potter": [(0.001, 0.95)] * 3, "gradient-ascent": [(0.0, 0.2)] * 3}
    monkeypatch.setattr(whp, "capitals_figures", lambda: found)
    monkeypatch.setattr(whp, "data_folder", lambda: Path("/nowhere"))
    checks = find_proof("who-is-harry-potter").checks()
    assert [(check.relation, check.threshold) for check in checks if check.threshold is not None] == [
        (">=", 0.9),
        ("<", 0.02),
        (">", 0.0),
    ]
    assert all(check.holds for check in checks)
    found["who-is-harry-potter"] = [(0.001, 0.95), (0.03, 0.95), (0.001, 0.1)]
    judged = [check for check in whp.capitals_checks() if check.threshold is not None]
    assert not any(check.holds for check in judged), "the worst seed counts"


def test_the_books_part_has_the_ablation_as_its_baseline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "shakespeare").mkdir()
    (tmp_path / "shakespeare" / "input.txt.gz").write_bytes(b"")
    parts = {"both": (0.85, 0.03), "reinforced alone": (0.6, 0.02), "anchors alone": (0.5, 0.01)}
    monkeypatch.setattr(whp, "data_folder", lambda: tmp_path)
    monkeypatch.setattr(whp, "books_figures", lambda seed: parts)
    checks = whp.books_checks()
    assert [(check.relation, check.threshold, check.holds) for check in checks] == [
        (">=", 0.8, True),
        ("<", 0.05, True),
    ]
    assert checks[0].baseline == 0.6


def test_the_capitals_are_forgotten_in_all_three_forms_by_forty_steps() -> None:
    request = whp.capitals_request()
    assert len(request.forget) == 18
    assert request.retain is not None
    assert not set(request.forget["id"]) & set(request.retain["id"])
    config: Any = find_method("who-is-harry-potter").configure({**whp.STEPS, **whp.WHP})
    assert (config.learning_rate, config.epochs, config.batch_size, config.alpha) == (3e-4, 40, 18, 5.0)
    assert (config.reinforce_learning_rate, config.reinforce_epochs) == (1e-3, 40)
    find_method("who-is-harry-potter").configure(whp.BOOKS)
