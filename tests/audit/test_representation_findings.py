"""The audit of features: an edit of the head alone must fail it; a retrained model must pass; persons are scored in halves."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "forget"))
from predictor_worlds import heaps, predictor, request_of

from efface.audit.finding import Finding
from efface.audit.folder import audit
from efface.audit.verdict import Conclusion
from efface.data.request import Request
from efface.lab.head_trick import head_trick
from efface.learn.recipes.classifier import ClassifierConfig, fit, new_model
from efface.subjects.predictor import Predictor

SUITE = ("accuracy", "representation")


def retrained(request: Request, seed: int = 5) -> Predictor:
    """A model of the same form that never saw the forget set."""
    config = ClassifierConfig(
        arguments={"hidden": [12, 6], "dropout": 0.1}, epochs=30, batch_size=20, learning_rate=0.1, seed=seed, weight_decay=0.0,
    )  # fmt: skip
    assert request.retain is not None
    model = new_model(config, request.retain)
    with tempfile.TemporaryDirectory() as folder:
        fit(model, request.retain, config, work=Path(folder) / "work")
    return model


def judged(model: Any, request: Request, **more: Any) -> tuple[Conclusion, dict[str, Finding]]:
    found = audit(
        model, request, original=predictor(), against=more.pop("against", retrained(request)), suite=SUITE, **more
    )
    return found, {finding.metric: finding for finding in found.findings}


def test_an_edit_of_the_head_alone_fails() -> None:
    request, model = request_of("class"), predictor()
    with head_trick(model, 1):
        conclusion, by_name = judged(model, request)
    assert by_name["classifier/ua"].unlearned.value == 1.0  # type: ignore[union-attr]
    assert by_name["classifier/ua"].verdict == "holds"  # accuracy alone is content
    assert by_name["representation/untouched"].verdict == "does not hold"
    assert "only what follows the features was changed" in by_name["representation/untouched"].reason
    assert conclusion.outcome.word == "suppressed"
    assert "representation/untouched" in conclusion.outcome.fired


def test_a_retrained_model_passes() -> None:
    request = request_of("class")
    conclusion, by_name = judged(retrained(request, seed=7), request)
    assert by_name["representation/untouched"].verdict != "does not hold"
    assert "representation/untouched" not in conclusion.outcome.fired
    assert by_name["representation/h_lr"].unlearned.value > by_name["representation/h_lr"].original.value  # type: ignore[union-attr]


def test_nothing_is_judged_before_the_logits_have_forgotten() -> None:
    _, by_name = judged(predictor(), request_of("class"))
    assert by_name["representation/untouched"].verdict == "informative"
    assert "not forgotten at the logits" in by_name["representation/untouched"].reason


def test_without_a_retrained_model_the_reason_is_said() -> None:
    found = audit(predictor(), request_of("class"), original=predictor(), suite=("representation",))
    (finding,) = found.findings
    assert finding.verdict == "not measured"
    assert "--against" in finding.reason


def test_dead_features_give_a_reason_and_no_figure() -> None:
    request, model = request_of("class"), predictor()
    with torch.no_grad():
        model.model[4].weight.zero_()
        model.model[4].bias.zero_()
    model.changed()
    _, by_name = judged(model, request)
    assert by_name["representation/untouched"].verdict == "not measured"
    assert "dead" in by_name["representation/untouched"].reason


def test_a_downstream_set_has_labels_of_its_own() -> None:
    request = request_of("class")
    far = heaps(40, 5).remove_columns("label").add_column("label", [i % 2 + 7 for i in range(40)])
    own = Request(request.forget, request.retain, request.holdout, evaluate={"downstream_x": far})
    _, by_name = judged(predictor(), own, against=retrained(request))
    assert by_name["representation/probe/downstream_x"].unlearned is not None
    assert "classifier/accuracy/downstream_x" not in by_name


def test_persons_are_scored_by_halves() -> None:
    request = request_of("person")
    names = [f"q{i % 8}" for i in range(len(request.holdout or ()))]
    assert request.holdout is not None
    unseen = request.holdout.remove_columns("identity").add_column("identity", names)
    rows = [i for i, who in enumerate(heaps(60, 0)["identity"]) if who in {"p3", "p4", "p5"}]
    data = heaps(60, 0)
    gone, kept = data.select(rows), data.select([i for i in range(60) if i not in rows])
    found = audit(predictor(), Request(gone, kept, unseen), original=predictor(), suite=("identity",))
    by_name = {finding.metric: finding for finding in found.findings}
    assert "halves: task" in by_name["identity/nomus"].reason
    assert by_name["identity/attack_by_person"].unlearned is not None
    nameless = Request(*(part.remove_columns("identity") for part in (gone, kept, unseen)))
    (finding,) = audit(predictor(), nameless, suite=("identity",)).findings
    assert "identity" in finding.reason
    assert finding.verdict == "not measured"


@pytest.mark.parametrize("suite", [("accuracy",), ("accuracy", "representation", "identity", "quantisation")])
def test_the_same_evidence_gives_the_same_findings(suite: tuple[str, ...]) -> None:
    request = request_of("class")
    first, second = (audit(predictor(), request, original=predictor(), suite=suite) for _ in range(2))
    assert first.findings == second.findings
