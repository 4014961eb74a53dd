"""The proof of ga-alignment compares what its specification names, at its thresholds (run it with `efface prove`)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from efface.forget.method import find_method
from efface.proofs import ga_alignment
from efface.proofs.proof import find_proof


def test_thresholds_are_the_specifications(monkeypatch: pytest.MonkeyPatch) -> None:
    results = {"GA+random+KL": (0.01, 0.99, 30), "GA+KL": (0.0, 0.98, 50), "GA": (0.0, 0.03, 20)}
    names = {str(values): name for name, values in ga_alignment.VARIANTS.items()}

    def run(model: Any, seed: int, values: dict[str, Any]) -> tuple[float, float, int]:
        return results[names[str(values)]]

    news = SimpleNamespace(drop=SimpleNamespace(value=0.9), perplexity=1.05)
    monkeypatch.setattr(ga_alignment, "run", run)
    monkeypatch.setattr(ga_alignment, "fact_model", lambda *_: None)
    monkeypatch.setattr(ga_alignment, "news_figures", lambda seed: news)
    monkeypatch.setattr(ga_alignment, "data_folder", lambda: Path("/nowhere"))
    assert len(find_proof("ga-alignment").checks()) == 4, "without the data only the first part"
    found = [*ga_alignment.capitals_checks()]
    judged = [(check.relation, check.threshold) for check in found if check.threshold is not None]
    assert judged == [(">=", 0.5), ("<", 0.02), (">", 0.0)]
    assert all(check.holds for check in found)
    results["GA+random+KL"] = (0.03, 0.4, 50)
    assert not any(check.holds for check in ga_alignment.capitals_checks() if check.threshold is not None)


def test_the_news_part_is_there_where_the_data_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "ag_news").mkdir()
    (tmp_path / "ag_news" / "test.csv.gz").write_bytes(b"")
    news = SimpleNamespace(drop=SimpleNamespace(value=0.4), perplexity=1.2)
    monkeypatch.setattr(ga_alignment, "data_folder", lambda: tmp_path)
    monkeypatch.setattr(ga_alignment, "news_figures", lambda seed: news)
    found = ga_alignment.news_checks()
    assert [(check.relation, check.threshold, check.holds) for check in found] == [
        (">=", 0.5, False),
        ("<", 1.1, False),
    ]


def test_every_variant_is_a_configuration() -> None:
    weights = []
    for values in ga_alignment.VARIANTS.values():
        config: Any = find_method("ga-alignment").configure({**ga_alignment.STEPS, **values})
        alone = config.retain_term == "none"
        assert (config.learning_rate, config.batch_size) == (3e-4, 6 if alone else 32)
        assert alone or config.kl_on == "all"
        weights.append((config.forget_weight, config.random_weight, config.retain_term))
    assert weights == [(0.5, 1.0, "kl"), (0.5, 0.0, "kl"), (0.5, 0.0, "none")]
