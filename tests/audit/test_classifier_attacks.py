"""Membership findings of classifiers: the right sides, the baseline, gaps to retraining, and shadow models that are kept."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "forget"))
from predictor_worlds import heaps, predictor, request_of

from efface.audit.benchmarks.classifier_attacks import sides
from efface.audit.evidence import AuditConfig, Evidence
from efface.audit.folder import audit
from efface.audit.metrics.roc import auc
from efface.audit.predictions import predictions_of
from efface.audit.predictor_run import recipe_of
from efface.data.request import Request

TRAINING = {"learning_rate": 0.1, "epochs": 20, "batch_size": 20, "optimizer": "sgd", "schedule": "constant"}


def evidence_of(request: Request) -> Evidence:
    found = Evidence(AuditConfig(suite=("membership",)))
    found.predictions["unlearned"] = {
        name: predictions_of(predictor(), data) for name, data in request.evaluation_sets().items()
    }
    return found


def test_a_forgotten_class_is_compared_with_its_own_unseen_rows() -> None:
    inside, outside = sides(evidence_of(request_of("class")), "unlearned") or (None, None)
    assert inside is not None
    assert outside is not None
    assert set(outside.labels) == {1}
    _, everyone = sides(evidence_of(request_of("rows")), "unlearned") or (None, None)
    assert everyone is not None
    assert set(everyone.labels) == {0, 1, 2}


def test_figures_are_those_of_the_scores() -> None:
    request = request_of("rows")
    found = {
        f.metric: f for f in audit(predictor(), request, against=predictor(seed=3), suite=("membership",)).findings
    }
    inside, outside = (predictions_of(predictor(), data) for data in (request.forget, request.holdout))
    own = found["membership/loss/auc"].unlearned
    assert own is not None
    assert np.isclose(own.value, auc(inside.own_logp, outside.own_logp), atol=1e-6)
    assert found["membership/loss/auc"].threshold is not None
    assert found["membership/loss/tpr_at_1_fpr"].verdict == "not measured"
    assert "there are 45" in found["membership/loss/tpr_at_1_fpr"].reason
    assert found["membership/blind"].unlearned is not None


def test_sets_that_differ_in_kind_are_shown_and_not_judged() -> None:
    data, far = heaps(60, 0), heaps(45, 1)
    moved = far.map(lambda row: {"features": [value + 9 for value in row["features"]]})
    gone, kept = data.select(range(0, 60, 5)), data.select([i for i in range(60) if i % 5])
    found = {f.metric: f for f in audit(predictor(), Request(gone, kept, moved), suite=("membership",)).findings}
    assert "differ in kind" in found["membership/blind"].reason
    assert found["membership/loss/auc"].threshold is None


def test_without_unseen_rows_the_reason_is_said() -> None:
    request = request_of("rows")
    (finding,) = audit(predictor(), Request(request.forget, request.retain), suite=("membership",)).findings
    assert "--holdout" in finding.reason


def test_shadow_models_are_trained_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path))
    settings = {"suite": ("shadows",), "shadows": {"models": 4, "training": TRAINING}}
    first = {f.metric: f for f in audit(predictor(), request_of("rows"), **settings).findings}
    assert first["membership/lira_online/auc"].unlearned is not None
    assert first["membership/rmia_offline/auc"].unlearned is not None
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "attacks" / "shadows").rglob("*.safetensors")}
    assert len(times) == 4
    second = {
        f.metric: f for f in audit(predictor(), request_of("class"), **settings).findings
    }  # other rows, same data
    assert second["membership/lira_online/auc"].unlearned is not None
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "attacks" / "shadows").rglob("*.safetensors")}
    assert after == times


def test_a_model_that_does_not_say_how_it_was_trained(tmp_path: Path) -> None:
    (finding,) = audit(predictor(), request_of("rows"), suite=("shadows",)).findings
    assert finding.verdict == "not measured"
    assert "shadows.training" in finding.reason
    (tmp_path / "learn.json").write_text(
        '{"config": {"learning_rate": 0.5, "epochs": 3, "head": null}}', encoding="utf-8"
    )
    subject = predictor()
    subject.source = str(tmp_path)
    recipe = recipe_of(subject, {"epochs": 4})
    assert recipe is not None
    assert (recipe.learning_rate, recipe.epochs) == (0.5, 4)
