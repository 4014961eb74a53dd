"""Relearn time: steps against a plain loop, bits that come back, no cap passed off as steps, and the same control each time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efface.audit.attacks import predictor_relearning
from efface.audit.attacks.predictor_relearning import (
    RelearnTimeConfig,
    aim,
    anamnesis,
    bound_of,
    figure,
    look_at,
    relearn_time,
    watched_rows,
)
from efface.data.request import Request
from efface.errors import InputError, RequestError
from efface.subjects.predictor import Predictor

sys.path.insert(0, str(Path(__file__).parents[1] / "forget"))
from predictor_worlds import request_of
from row_models import model_of, split

CONFIG = RelearnTimeConfig(learning_rate=1e-2, batch_size=20, epochs=4)


def plain(subject: Predictor) -> Predictor:
    """Without dropout, so that a plain loop can follow."""
    for module in subject.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return subject


@pytest.mark.parametrize("kind", ["mlp", "regressor"])
def test_the_curve_is_that_of_a_plain_loop(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, request = plain(model_of(kind)), request_of("rows", numbers=kind == "regressor")
    schedules: list[Any] = []
    real = predictor_relearning.train

    def spy(model: Any, schedule: Any, *args: Any, **kwargs: Any) -> Any:
        schedules.append(schedule)
        return real(model, schedule, *args, **kwargs)

    monkeypatch.setattr(predictor_relearning, "train", spy)
    found = relearn_time(subject, request, -1.0, CONFIG, cache=tmp_path)
    assert not found["reached"]
    (schedule,) = schedules
    watched = subject.encode_rows(request.forget)

    def error() -> float:
        with torch.no_grad():
            said = subject.model(torch.stack([row.make()["x"] for row in watched]))
        if kind == "mlp":
            return sum(int(said[i].argmax()) != row.target for i, row in enumerate(watched)) / len(watched)
        return sum(abs(float(said[i, 0]) - row.target) for i, row in enumerate(watched)) / len(watched)

    optimizer = torch.optim.Adam(subject.model.parameters(), lr=1e-2)
    values = [error()]
    for step in range(found["budget"]):
        rows = [schedule.row("train", step * 20 + i) for i in range(20)]
        said = subject.model(torch.stack([row.make()["x"] for row in rows]))
        targets = torch.tensor([row.target for row in rows])
        loss = (
            torch.nn.functional.cross_entropy(said, targets)
            if kind == "mlp"
            else 0.5 * (said[:, 0] - targets).square().mean()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(error())
    assert found["budget"] == 12
    assert found["curve"]["steps"] == list(range(13))
    assert found["curve"]["values"] == pytest.approx(values, rel=1e-3, abs=1e-4)


def test_steps_are_those_of_the_first_look_within_the_bound(tmp_path: Path) -> None:
    subject, request = model_of("regressor"), request_of("rows", numbers=True)
    whole = relearn_time(subject, request, -1.0, CONFIG, cache=tmp_path)
    values = whole["curve"]["values"]
    place = 1 + int(np.argmin(values[1:]))
    found = relearn_time(subject, request, values[place], CONFIG, cache=tmp_path)
    first = next(i for i, value in enumerate(values) if value <= values[place])
    assert found["reached"]
    assert found["steps"] == first
    assert found["curve"]["values"] == pytest.approx(values[: first + 1])
    at_once = relearn_time(subject, request, values[0] + 1, CONFIG, cache=tmp_path)
    assert (at_once["steps"], at_once["reached"]) == (0, True)


def test_not_reached_is_no_number_of_steps(tmp_path: Path) -> None:
    subject, request = model_of("regressor"), request_of("rows", numbers=True)
    lost = relearn_time(subject, request, -1.0, CONFIG, cache=tmp_path)
    assert (lost["reached"], lost["steps"], lost["budget"]) == (False, None, 12)
    got = {**lost, "reached": True, "steps": 4}
    assert anamnesis(got, lost) == {"ain": None, "words": "unlearned in 4 steps; retrained not reached in 12 steps"}
    assert anamnesis(lost, got)["ain"] is None
    assert anamnesis(got, {**got, "steps": 8}) == {"ain": 0.5, "words": "unlearned in 4 steps; retrained in 8 steps"}
    at_once = anamnesis(got, {**got, "steps": 0})
    assert at_once["ain"] is None
    assert "no ratio: the retrained model is within the margin without training" in at_once["words"]
    json.dumps(lost, allow_nan=False)


def test_the_control_has_not_relearnt_when_it_is_asked_again(tmp_path: Path) -> None:
    """The official code trains the retrained model in place: its ratios rise from call to call."""
    subject, request = model_of("conv"), split("conv")
    before = {name: tensor.detach().clone() for name, tensor in subject.weights().items()}
    frozen = next(iter(subject.model.parameters()))
    frozen.requires_grad_(False)
    digest, state = subject.digest, torch.random.get_rng_state()
    config = CONFIG.model_copy(update={"watch": "loss"})
    first = relearn_time(subject, request, -1.0, config, cache=tmp_path / "a")
    assert len(set(first["curve"]["values"])) > 1, "it was trained"
    assert subject.digest == digest
    assert all(torch.equal(before[name], tensor) for name, tensor in subject.weights().items()), "norm statistics too"
    assert not frozen.requires_grad
    assert all(p.grad is None for p in subject.model.parameters())
    assert not subject.model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert relearn_time(subject, request, -1.0, config, cache=tmp_path / "b") == first


def test_a_failed_attack_gives_the_model_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, request = model_of("regressor"), request_of("rows", numbers=True)
    digest = subject.digest

    def breaks(model: Any, *_: Any, **__: Any) -> None:
        model.train()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        raise RuntimeError("in the middle")

    monkeypatch.setattr(predictor_relearning, "train", breaks)
    with pytest.raises(RuntimeError, match="in the middle"):
        relearn_time(subject, request, -1.0, CONFIG, cache=tmp_path)
    subject.changed()
    assert subject.digest == digest
    assert not subject.model.training
    assert not list(tmp_path.iterdir()), "nothing is cached"


def test_the_cache_serves_the_same_attack_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, request = model_of("regressor"), request_of("rows", numbers=True)
    first = relearn_time(subject, request, -1.0, CONFIG, cache=tmp_path)

    def no_training(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(predictor_relearning, "train", no_training)
    assert relearn_time(subject, request, -1.0, CONFIG, cache=tmp_path) == first
    for other in (CONFIG.model_copy(update={"seed": 1}), CONFIG.model_copy(update={"train_on": "forget"})):
        with pytest.raises(AssertionError, match="trained again"):
            relearn_time(subject, request, -1.0, other, cache=tmp_path)
    with pytest.raises(AssertionError, match="trained again"):
        relearn_time(subject, request, -1.0, CONFIG, watched=request.holdout, cache=tmp_path)
    with pytest.raises(AssertionError, match="trained again"):
        relearn_time(model_of("regressor", seed=1), request, -1.0, CONFIG, cache=tmp_path)


def test_who_trains_on_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, request = model_of("regressor"), request_of("rows", numbers=True)
    seen: list[set[str]] = []

    def spy(model: Any, schedule: Any, *_: Any, **__: Any) -> None:
        seen.append({schedule.row("train", i).key for i in range(len(schedule))})

    monkeypatch.setattr(predictor_relearning, "train", spy)
    for who in ("all", "forget"):
        relearn_time(subject, request, -1.0, CONFIG.model_copy(update={"train_on": who}), cache=tmp_path)
    assert request.retain is not None
    forget, retain = ({row.key for row in subject.encode_rows(part)} for part in (request.forget, request.retain))
    assert seen == [forget | retain, forget]
    with pytest.raises(RequestError, match="without a retain set"):
        relearn_time(subject, Request(forget=request.forget), -1.0, CONFIG, cache=tmp_path)


def test_the_aim_is_the_originals_figure_with_a_margin() -> None:
    assert bound_of(2.0, 0.05, share=False) == pytest.approx(2.1)
    assert bound_of(0.0, 0.05, share=True) == pytest.approx(0.05), "95 % of a perfect accuracy"
    assert bound_of(0.2, 0.05, share=True) == pytest.approx(1 - 0.95 * 0.8)
    subject, request = model_of("regressor"), request_of("rows", numbers=True)
    rows = subject.encode_rows(request.forget)
    assert aim(subject, request, CONFIG) == pytest.approx(1.05 * look_at(subject, rows, "error"))
    assert request.holdout is not None
    wider = Request(forget=request.forget, retain=request.retain, evaluate={"forget_test": request.holdout})
    assert watched_rows(wider) is request.holdout
    assert watched_rows(request) is request.forget
    classes, classified = model_of("mlp"), request_of("rows")
    wrong = look_at(classes, classes.encode_rows(classified.forget), "error")
    assert aim(classes, classified, CONFIG) == pytest.approx(1 - 0.95 * (1 - wrong))
    loss = CONFIG.model_copy(update={"watch": "loss"})
    nll = look_at(classes, classes.encode_rows(classified.forget), "loss")
    assert aim(classes, classified, loss) == pytest.approx(1.05 * nll)


def test_figures_by_hand() -> None:
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]]), torch.tensor([0, 1, 1])
    assert figure(logits, labels, "error") == pytest.approx(1 / 3)
    nll = -sum(float(logits[i].log_softmax(0)[labels[i]]) for i in range(3)) / 3
    assert figure(logits, labels, "loss") == pytest.approx(nll, rel=1e-6)
    numbers, targets = torch.tensor([[1.0], [3.0]]), torch.tensor([0.5, 5.0])
    assert figure(numbers, targets, "error") == pytest.approx(1.25)
    assert figure(numbers, targets, "loss") == pytest.approx((0.125 + 2.0) / 2)


def test_another_aim_or_budget_is_no_ratio() -> None:
    run = {"reached": True, "steps": 3, "bound": 1.0, "budget": 12}
    for other in ({"bound": 2.0}, {"budget": 24}):
        with pytest.raises(InputError, match="expected one aim and one budget"):
            anamnesis(run, {**run, **other})
