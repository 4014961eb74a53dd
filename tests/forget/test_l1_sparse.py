"""l1-sparse: steps against a plain loop, the fading weight, accumulation, resume, and the recorded share of small weights."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efface.data.request import Request
from efface.errors import ConfigError, RequestError
from efface.forget.method import Fitted, find_method
from efface.forget.objectives.l1_sparse import METHOD, l1_norm, l1_weight, share_below
from efface.lab.classified import labelled
from efface.learn.recipes.classifier import ClassifierConfig, new_model
from efface.run.files import read_json
from efface.subjects.predictor import Predictor

NAMES = [str(i) for i in range(3)]
PLAIN = {"learning_rate": 0.1, "batch_size": 8, "epochs": 4, "l1_gamma": 0.01}


def rows(labels: list[int], seed: int) -> Any:
    features = np.random.default_rng(seed).normal(size=(len(labels), 6)) + np.asarray(labels)[:, None]
    return labelled(features, labels, [f"{seed}-{i}" for i in range(len(labels))], NAMES)


@pytest.fixture
def request3() -> Request:
    return Request(forget=rows([2] * 8, 0), retain=rows([0, 1] * 8, 1))


@pytest.fixture
def mlp(request3: Request) -> Predictor:
    return new_model(ClassifierConfig(arguments={"hidden": [8]}), request3.forget)


def fit(subject: Predictor, request: Request, folder: Path, name: str = "l1-sparse", **values: Any) -> Fitted:
    method = find_method(name)
    config = method.configure({**PLAIN, **values} if name == "l1-sparse" else values)
    return method.fit(subject, request, config, work=folder / "work", out=folder / "edit")


def weights(subject: Predictor, fitted: Fitted) -> dict[str, torch.Tensor]:
    fitted.edit.apply(subject)
    found = {name: tensor.detach().clone() for name, tensor in subject.weights().items()}
    fitted.edit.remove(subject)
    return found


def test_the_weight_falls_to_a_tenth_in_the_last_of_ten_epochs() -> None:
    found = [l1_weight(5e-4, t, 10) for t in range(11)]
    assert found[0] == 5e-4
    assert found[9] == pytest.approx(5e-5)
    assert found[10] == 0
    assert [a - b for a, b in pairwise(found)] == pytest.approx([5e-5] * 10)
    assert l1_weight(1.0, 3, 2) == 0, "never below zero"


def test_the_norm_and_the_share_by_a_loop() -> None:
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, -0.0009, 0.0], [-2.0, 0.001, 3.0]]))
        model.bias.copy_(torch.tensor([-0.0005, 1.0]))
    everything = [x for p in model.parameters() for x in p.flatten().tolist()]
    assert float(l1_norm(p.detach() for p in model.parameters())) == pytest.approx(sum(abs(x) for x in everything))
    assert share_below(model, 1e-3) == sum(abs(x) < 1e-3 for x in everything) / 8 == 3 / 8


def test_the_steps_against_a_plain_loop(mlp: Predictor, request3: Request, tmp_path: Path) -> None:
    fitted = fit(mlp, request3, tmp_path, momentum=0.0, weight_decay=0.0)
    run = METHOD.prepare(mlp, request3, METHOD.configure({**PLAIN}))  # type: ignore[arg-type]
    slow = new_model(ClassifierConfig(arguments={"hidden": [8]}), request3.forget).model
    for step, start in enumerate(range(0, len(run.schedule), 8)):
        batch = [run.schedule.row("train", i) for i in range(start, start + 8)]
        loss = torch.zeros(())
        for row in batch:
            loss = loss - slow(row.make()["x"].unsqueeze(0)).log_softmax(-1)[0, row.target] / 8
        slow.zero_grad()
        loss.backward()
        gamma = 0.01 * (1 - (step // 2) / 4)  # two steps an epoch, four epochs
        with torch.no_grad():
            for parameter in slow.parameters():
                parameter -= 0.1 * (parameter.grad + gamma * parameter.sign())
    for ours, theirs in zip(weights(mlp, fitted).values(), slow.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert [row["gamma"] for row in fitted.log[:-1]] == pytest.approx(
        [0.01, 0.01, 0.0075, 0.0075, 0.005, 0.005, 0.0025, 0.0025]
    )


def test_the_penalty_counts_once_a_step_also_under_accumulation(
    mlp: Predictor, request3: Request, tmp_path: Path
) -> None:
    whole = weights(mlp, fit(mlp, request3, tmp_path / "a", l1_gamma=0.05))
    parts = weights(mlp, fit(mlp, request3, tmp_path / "b", l1_gamma=0.05, micro_batch_size=2))
    assert all(torch.allclose(whole[name], parts[name], atol=1e-5) for name in whole)


def test_without_a_penalty_it_is_fine_tuning(mlp: Predictor, request3: Request, tmp_path: Path) -> None:
    config = METHOD.configure({**PLAIN, "l1_gamma": 0.0})
    shared = config.model_dump(include={"learning_rate", "batch_size", "epochs", "optimizer", "weight_decay", "schedule",
                                        "warmup_ratio", "max_grad_norm"})  # fmt: skip
    plain = fit(mlp, request3, tmp_path / "a", "finetune", **shared)
    assert fit(mlp, request3, tmp_path / "b", l1_gamma=0.0).edit.facts.edited_digest == plain.edit.facts.edited_digest
    assert fit(mlp, request3, tmp_path / "c").edit.facts.edited_digest != plain.edit.facts.edited_digest
    constant = fit(mlp, request3, tmp_path / "d", l1_schedule="constant")
    assert {row["gamma"] for row in constant.log[:-1]} == {0.01}


def test_the_share_of_small_weights_is_recorded_and_no_weight_is_zero(
    mlp: Predictor, request3: Request, tmp_path: Path
) -> None:
    fitted = fit(mlp, request3, tmp_path, epochs=40, threshold=0.02)
    after = torch.cat([tensor.flatten() for tensor in weights(mlp, fitted).values()])
    found = read_json(fitted.edit.folder / "edit.json")["config"]["weights"]
    assert found["share_below"] == float((after.abs() < 0.02).sum()) / len(after)
    assert found["share_below_before"] == share_below(mlp.model, 0.02)
    assert found["share_below"] > 2 * found["share_below_before"]
    assert not bool((after == 0).any()), "the published count of exact zeros says nothing under SGD"


def test_a_killed_run_knows_its_epoch(mlp: Predictor, request3: Request, tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    from efface.train import engine

    kept = fit(mlp, request3, tmp_path / "a", checkpoint_seconds=1e-9).edit.facts.edited_digest
    plain, calls = engine._Engine.compute_loss, {"n": 0}

    def dying(self: Any, *args: Any, **more: Any) -> Any:
        calls["n"] += 1
        if calls["n"] == 6:
            raise KeyboardInterrupt
        return plain(self, *args, **more)

    monkeypatch.setattr(engine._Engine, "compute_loss", dying)
    with pytest.raises(KeyboardInterrupt):
        fit(mlp, request3, tmp_path / "b", checkpoint_seconds=1e-9)
    monkeypatch.setattr(engine._Engine, "compute_loss", plain)
    mlp.changed()
    assert fit(mlp, request3, tmp_path / "b", checkpoint_seconds=1e-9).edit.facts.edited_digest == kept


def test_refusals(mlp: Predictor, request3: Request, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="without a retain set"):
        fit(mlp, Request(forget=request3.forget), tmp_path)
    for values in ({"l1_gamma": -1.0}, {"scope": "lora"}, {"threshold": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(values))):
            METHOD.configure(values)
