"""The proof of guard compares what its specification names, at its thresholds."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from efface.forget.method import find_method
from efface.proofs import guard


def figures(**own: float) -> guard.Figures:
    values: dict[str, float] = dict.fromkeys((field.name for field in fields(guard.Figures)), 0.0)
    values |= {"caught": 0.9, "leak_before": 1.0, "agreement": 1.0, "bare_recall": 1.0, "false_alarms": 0.01}
    return guard.Figures(**{**values, **own})


def judged(monkeypatch: pytest.MonkeyPatch, *rows: guard.Figures) -> list[Any]:
    found = iter(rows)
    monkeypatch.setattr(guard, "elements_figures", lambda _: next(found))
    return [check for check in guard.elements_checks() if check.threshold is not None]


def test_the_thresholds_and_the_worst_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    good = judged(monkeypatch, figures(), figures(), figures())
    assert [(check.relation, check.threshold) for check in good] == [
        ("==", 0.0), (">", 0.0), ("<=", 1e-9), (">=", 0.98), (">=", 0.98), (">=", -1e-9), (">=", 0.99),
    ]  # fmt: skip
    assert all(check.holds for check in good)
    bad = figures(
        leak_caught=0.03,
        caught=0.0,
        leak_beyond=0.1,
        agreement=0.9,
        false_alarms=0.1,
        agreement_beyond=-0.1,
        bare_recall=0.5,
    )
    assert not any(check.holds for check in judged(monkeypatch, figures(), bad, figures()))


def test_the_part_of_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {None: (0.0, 0.9), "embed": (0.0, 0.1)}
    monkeypatch.setattr(guard, "encoder", lambda: "embed")
    monkeypatch.setattr(guard, "speaker", lambda seed: seed)
    monkeypatch.setattr(guard, "said_instead", lambda _, embed: said[embed])
    monkeypatch.setattr(guard, "meaning_auc", lambda _: 0.95)
    checks = guard.meaning_checks()
    assert all(check.holds for check in checks)
    assert checks[0].threshold == 0.9
    assert checks[1].figure == pytest.approx(0.8)
    said["embed"] = (0.0, 0.9)
    assert not guard.meaning_checks()[1].holds


def test_rows_and_settings() -> None:
    request, gone, kept = guard.elements_request()
    assert request.retain is not None
    assert [len(part) for part in (request.forget, request.retain, gone, kept)] == [64, 448, 32, 224]
    assert not set(gone["id"]) & set(request.forget["id"])
    for config in (guard.SETTINGS, guard.LONGER, guard.WORDS):
        find_method("guard").configure(config)
    assert guard.values(gone)[0] == "H e"
