"""Predictions: one pass, kept and read back as they were; score tables from them; figures and maps of features."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "forget"))
from predictor_worlds import heaps, predictor, request_of

from efface.audit.attacks.predictor_relearning import RelearnTimeConfig, aim, relearn_time
from efface.audit.attacks.relearning import RelearningConfig, relearn
from efface.audit.embedding import embedding_maps, plane
from efface.audit.evidence import AuditConfig, Evidence
from efface.audit.folder import audit
from efface.audit.metrics.regression import loss_attack
from efface.audit.predictions import Predictions, observe_predictions, predictions_of
from efface.audit.predictor_run import check_predictor_suites
from efface.audit.verdict import conclude
from efface.data.request import Request
from efface.errors import ConfigError, ModelError, RequestError, StorageError
from efface.lab.unlearn import forgotten
from efface.run.cost import Cost
from efface.train.reference import answer_probabilities


def table(numbers: bool = False) -> Predictions:
    return predictions_of(predictor(numbers=numbers), heaps(30, 1, numbers=numbers))


def test_figures_against_plain_loops() -> None:
    found = table()
    for i in range(len(found)):
        p = np.exp(found.outputs[i]) / np.exp(found.outputs[i]).sum()
        assert np.isclose(np.exp(found.own_logp[i]), p[found.labels[i]])
        assert found.correct[i] == (p.argmax() == found.labels[i])
    numbers = table(numbers=True)
    assert np.allclose(numbers.own_logp, -0.5 * (numbers.outputs[:, 0] - numbers.targets) ** 2)


def test_a_table_comes_back_as_it_was(tmp_path: Path) -> None:
    found = table()
    found.save(tmp_path, "x")
    again = Predictions.load(tmp_path, "x")
    assert again.ids == found.ids
    assert again.identities == found.identities
    assert np.array_equal(again.outputs, found.outputs.astype(np.float32).astype(np.float64))
    assert again.part([0, 2]).ids == [found.ids[0], found.ids[2]]
    whole = (tmp_path / "x.predictions.arrow").read_bytes()
    (tmp_path / "x.predictions.arrow").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StorageError, match="predictions"):
        Predictions.load(tmp_path, "x")


def test_the_cache_serves_the_same_model_and_data_only(tmp_path: Path) -> None:
    model, cost = predictor(), Cost(phase="x")
    first = observe_predictions(model, heaps(30, 1), cost=cost, cache=tmp_path)
    second = observe_predictions(model, heaps(30, 1), cost=cost, cache=tmp_path)
    assert cost.items == 30
    assert np.array_equal(first.outputs, second.outputs)
    with torch.no_grad():
        model.head.bias[0] += 1
    model.changed()
    third = observe_predictions(model, heaps(30, 1), cost=cost, cache=tmp_path)
    assert cost.items == 60
    assert not np.array_equal(first.outputs, third.outputs)
    observe_predictions(model, heaps(30, 2), cost=cost, cache=tmp_path)
    assert cost.items == 90


def test_foreign_labels_give_features_only() -> None:
    model, rows = predictor(), heaps(30, 1)
    shifted = rows.remove_columns("label").add_column("label", [label + 7 for label in rows["label"]])
    with pytest.raises(RequestError, match="0 to 2"):
        predictions_of(model, shifted)
    found = predictions_of(model, shifted, foreign=True)
    assert np.array_equal(found.features, predictions_of(model, rows).features)
    assert set(found.labels) == {7, 8, 9}


def test_a_damaged_model_is_no_result() -> None:
    model = predictor()
    with torch.no_grad():
        model.head.weight.fill_(float("inf"))
    with pytest.raises(ModelError, match="damaged"):
        predictions_of(model, heaps(30, 1))


def test_scores_are_those_of_an_answer_of_one_token() -> None:
    found = table()
    scores = found.scores().select("answer")
    assert np.allclose(scores.mean_logp, found.own_logp, atol=1e-6)
    ranks = [(row > row[label]).sum() for row, label in zip(found.outputs, found.labels, strict=True)]
    assert [int(r[0]) for r in scores.rank] == ranks
    probabilities = answer_probabilities(predictor(), predictor().encode_rows(heaps(30, 1)))
    assert np.allclose(np.exp(found.own_logp), probabilities, atol=1e-6)


def test_relearning_brings_a_classifier_back(tmp_path: Path) -> None:
    model, request = predictor(), request_of("class")
    with forgotten("gradient-ascent", model, request, learning_rate=0.1, epochs=10) as changed:
        found = relearn(changed, request.forget, RelearningConfig(learning_rate=0.02, max_steps=20), cache=tmp_path)
    means = [float(np.mean(row)) for row in found["speed"]["rows"]]
    assert means[0] < 0.5 < means[-1]


def test_an_audit_in_memory_and_its_evidence(tmp_path: Path) -> None:
    request = request_of("class")
    original, other, retrained = predictor(), predictor(), predictor(seed=3)
    conclusion = audit(other, request, original=original, against=retrained, suite=("accuracy",))
    by_name = {finding.metric: finding for finding in conclusion.findings}
    assert conclusion.outcome.word in {"not forgotten", "not judged"}
    own = by_name["classifier/ta"].unlearned
    assert own is not None
    assert own.value == by_name["classifier/ta"].original.value  # type: ignore[union-attr]
    assert by_name["classifier/average_gap"].retrained.value == 0.0  # type: ignore[union-attr]
    evidence = Evidence(AuditConfig(suite=("accuracy",)))
    for role, model in (("unlearned", other), ("original", original)):
        evidence.predictions[role] = {
            name: predictions_of(model, data) for name, data in request.evaluation_sets().items()
        }
    evidence.save(tmp_path)
    assert conclude(Evidence.load(tmp_path)).findings == conclude(Evidence.load(tmp_path)).findings
    loaded = Evidence.load(tmp_path)
    assert loaded.sets() == ["forget", "holdout", "retain"]
    assert loaded.predictor == "classification"
    missing = {f.metric: f for f in conclude(loaded).findings}["classifier/average_gap"]
    assert missing.verdict == "not measured"
    assert "--against" in missing.reason
    with pytest.raises(ConfigError, match="suite 'tofu'"):
        check_predictor_suites(AuditConfig(suite=("tofu",)))


def test_a_regressor_is_audited_by_its_errors() -> None:
    request = request_of("rows", numbers=True)
    models = [predictor(numbers=True, seed=seed) for seed in (0, 0, 4)]
    conclusion = audit(models[0], request, original=models[1], against=models[2], suite=("accuracy",))
    by_name = {finding.metric: finding for finding in conclusion.findings}
    plain = np.abs(table_of(models[0], request.forget) - np.array(request.forget["target"])).mean()
    assert np.isclose(by_name["regressor/error/forget"].unlearned.value, plain, atol=1e-6)  # type: ignore[union-attr]
    paired = np.abs(table_of(models[0], request.forget) - table_of(models[2], request.forget)).mean()
    assert np.isclose(by_name["regressor/paired"].unlearned.value, paired, atol=1e-6)  # type: ignore[union-attr]
    assert by_name["regressor/w1"].unlearned.value <= paired + 1e-9  # type: ignore[union-attr]
    sides = [predictions_of(models[0], data) for data in (request.retain, request.holdout, request.forget)]
    own = loss_attack(*sides)
    member, auc = by_name["regressor/mia"], by_name["regressor/mia_own_auc"]
    assert member.unlearned == member.original == own.member, "the two models are one"
    assert auc.unlearned == own.own_auc
    assert member.retrained == loss_attack(*(predictions_of(models[2], data) for data in
                                             (request.retain, request.holdout, request.forget))).member  # fmt: skip
    assert member.verdict in ("holds", "does not hold")
    few = Request(forget=request.forget, retain=request.retain, holdout=request.holdout.select(range(9)))  # type: ignore[union-attr]
    by_name = {finding.metric: finding for finding in audit(models[0], few, suite=("accuracy",)).findings}
    assert by_name["regressor/mia"].verdict == "not measured"
    assert "10 or more" in by_name["regressor/mia"].reason


def test_the_relearning_suite_counts_steps_to_the_originals_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every model by the same aim; a model whose class is hidden by one bias is back at once, a retrained one is not."""
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path))
    request, original, hidden, retrained = request_of("class"), predictor(), predictor(), predictor()
    with torch.no_grad():
        hidden.head.bias[1] -= 20
        retrained.head.bias[1] -= 20
        retrained.head.weight[1] = 0  # and nothing speaks for the class
    for model in (hidden, retrained):
        model.changed()
    fast = {"learning_rate": 1.0, "optimizer": "sgd", "batch_size": 20, "epochs": 10}
    digests = [model.digest for model in (original, hidden, retrained)]
    conclusion = audit(
        hidden, request, original=original, against=retrained, suite=("relearning",), relearn_time=fast,
        relearning={"max_steps": 5},
    )  # fmt: skip
    assert digests == [model.digest for model in (original, hidden, retrained)]
    by_name = {finding.metric: finding for finding in conclusion.findings}
    steps, ain = by_name["robustness/relearn_steps"], by_name["robustness/anamnesis"]
    config = RelearnTimeConfig(**fast)
    bound = aim(original, request, config)
    own, other = (relearn_time(model, request, bound, config, cache=tmp_path / "x") for model in (hidden, retrained))
    assert steps.original is not None
    assert steps.original.value == 0, "the original is where it is to be"
    assert own["reached"]
    assert other["reached"]
    assert steps.unlearned.value == own["steps"] > 0  # type: ignore[union-attr]
    assert steps.retrained.value == other["steps"]  # type: ignore[union-attr]
    assert ain.unlearned.value == own["steps"] / other["steps"]  # type: ignore[union-attr]
    assert ain.verdict in ("holds", "does not hold")
    alone = audit(hidden, request, original=original, suite=("relearning",), relearning={"max_steps": 5})
    missing = {finding.metric: finding for finding in alone.findings}["robustness/anamnesis"]
    assert missing.verdict == "not measured"
    assert "--against" in missing.reason


def table_of(model: object, data: object) -> np.ndarray:
    return predictions_of(model, data).outputs[:, 0]  # type: ignore[arg-type]


def test_maps_are_turned_onto_the_original() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((40, 6)) * np.array([5, 3, 0.1, 0.1, 0.1, 0.1])
    points, explained = plane(features)
    assert explained > 0.99
    assert np.allclose(np.linalg.norm(points, axis=0), np.linalg.svd(features - features.mean(0))[1][:2])
    request = request_of("class")
    evidence = Evidence(AuditConfig(suite=("accuracy",)))
    turn, _ = np.linalg.qr(rng.standard_normal((6, 6)))
    for role, spin in (("original", np.eye(6)), ("unlearned", turn)):
        evidence.predictions[role] = {}
        for name, data in (("forget", request.forget), ("retain", request.retain)):
            assert data is not None
            own = predictions_of(predictor(), data)
            evidence.predictions[role][name] = Predictions(
                own.ids, own.targets, own.outputs, own.features @ spin, own.identities, own.task
            )
    maps = embedding_maps(evidence)
    first, second = (np.array(maps[role].points) for role in ("original", "unlearned"))
    assert np.allclose(first, second, atol=2e-3)  # a rotation of the features changes nothing that one sees
    assert sum(maps["original"].forget) == len(request.forget)
