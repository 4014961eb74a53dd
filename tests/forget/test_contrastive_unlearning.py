"""Contrastive unlearning: a step against loops, the published loader's and stop's defects, and what is refused."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn

from efface.data.request import Request
from efface.errors import ConfigError, InputError, ModelError, RequestError
from efface.forget.edit import Edit
from efface.forget.method import Fitted
from efface.forget.objectives.contrastive_unlearning import (
    METHOD,
    ContrastiveUnlearningConfig,
    accuracy,
    contrast,
    directions,
)
from efface.lab.classified import labelled, of_class
from efface.learn.recipes.classifier import ClassifierConfig, fit, new_model
from efface.subjects.factory import FactoryForm
from efface.subjects.predictor import Predictor
from efface.train.reference import reference_top_k

K, SIZE = 4, 10
SETTINGS = {"learning_rate": 0.02, "batch_size": 40, "epochs": 6, "seed": 0}


def blobs(rows: int, seed: int, name: str) -> Dataset:
    """Four clusters in ten dimensions, with some overlap."""
    rng = np.random.default_rng([seed, 3])
    labels = np.arange(rows) % K
    centres = np.random.default_rng(1).normal(size=(K, SIZE)) * 1.1
    values = centres[labels] + rng.normal(size=(rows, SIZE))
    return labelled(values, labels, [f"{name}{i}" for i in range(rows)])


TRAIN, TEST = blobs(160, 0, "train"), blobs(80, 1, "test")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """An MLP 10-32-16-4 that is right on all of its training rows."""
    config = ClassifierConfig(epochs=40, batch_size=40, weight_decay=0.0, arguments={"hidden": [48, 24]})
    model = new_model(config, TRAIN)
    fit(model, TRAIN, config, work=tmp_path_factory.mktemp("blobs"))
    return model


def class_request(**more: Any) -> Request:
    holdout = of_class(TEST, 2, False)
    return Request(forget=of_class(TRAIN, 2), retain=of_class(TRAIN, 2, False), holdout=holdout, **more)


def row_request(**more: Any) -> Request:
    return Request(forget=TRAIN.select(range(16)), retain=TRAIN.select(range(16, 160)), **{"holdout": TEST, **more})


def fitted(model: Any, request: Request, folder: Path, **values: Any) -> Fitted:
    config = METHOD.configure({**SETTINGS, **values})
    return METHOD.fit(model, request, config, work=folder / "work", out=folder / "edit")


def edited(model: Any, request: Request, folder: Path, **values: Any) -> Edit:
    return fitted(model, request, folder, **values).edit


def classes(data: Dataset, model: Predictor) -> float:
    return accuracy(model, model.encode_rows(data))


# -- the loss ------------------------------------------------------------------------------------------------------


def one_step(
    model: Predictor, config: ContrastiveUnlearningConfig, kept: list[int], known: dict[str, Tensor] | None = None
) -> tuple[Tensor, dict[str, float]]:
    rows = model.encode_rows(TRAIN)
    forget, retain = rows[:6], [row for row in rows[20:32] if row.target in kept][:9]
    parts: dict[str, Any] = {"forget": model.batch(forget), "retain": model.batch(retain)}
    parts["forget"] |= {
        "gone": torch.tensor([row.target not in kept for row in forget]),
        "row_share": torch.full((6,), 1 / 6),
    }
    parts["retain"] |= {"token_share": torch.full((9,), 1 / 9), **(known or {})}
    return METHOD.step(model, model.model, parts, config)


@pytest.mark.parametrize("gone", [None, 2])
def test_a_step_by_the_equations(trained: Predictor, gone: int | None) -> None:
    """L = lam_UL L_UL + lam_CE CE; where nothing of a class is kept its denominator is 1."""
    config = METHOD.config_class(tau=0.4, forget_weight=2.0, retain_weight=0.5)
    assert isinstance(config, ContrastiveUnlearningConfig)
    total, numbers = one_step(trained, config, [y for y in range(K) if y != gone])
    rows = trained.encode_rows(TRAIN)
    h_u, _ = trained.read(rows[:6])
    near = [row for row in rows[20:32] if row.target != gone][:9]
    h_s, said = trained.read(near)
    y_u, y_s = [row.target for row in rows[:6]], [row.target for row in near]
    losses = []
    for i in range(6):
        s = [float(h_u[i] @ h_s[a] / h_u[i].norm() / h_s[a].norm()) / 0.4 for a in range(9)]
        below = sum(np.exp(s[p]) for p in range(9) if y_s[p] == y_u[i]) if y_u[i] != gone else 1.0
        losses.append(-np.mean([np.log(np.exp(s[a]) / below) for a in range(9) if y_s[a] != y_u[i]]))
    ce = -np.mean([float(said[a].log_softmax(-1)[int(y_s[a])]) for a in range(9)])
    assert numbers["forget"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert numbers["retain"] == pytest.approx(ce, rel=1e-4)
    assert float(total.detach()) == pytest.approx(2.0 * np.mean(losses) + 0.5 * ce, rel=1e-4)
    assert numbers["skipped"] == 0


def test_kept_and_gone_classes_in_one_batch_and_rows_left_out() -> None:
    z = nn.functional.normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    ctx = nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    y, y_ctx = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 0, 1, 1, 0])
    gone = torch.tensor([False, False, True, False])
    value, out = contrast(z, y, gone, ctx, y_ctx, 0.5, "same_class")
    s = z @ ctx.T / 0.5
    first = s[0, [0, 1, 4]].logsumexp(0) - s[0, [2, 3]].mean()
    second = s[1, [2, 3]].logsumexp(0) - s[1, [0, 1, 4]].mean()
    assert float(value) == pytest.approx(float((first + second - s[2].mean()) / 3), rel=1e-5)
    assert out == 0.25, "class 3 is kept, but not in this batch"
    assert contrast(z[:0], y[:0], gone[:0], ctx, y_ctx, 0.5, "same_class") == (0.0, 1.0)
    assert contrast(z, y, gone, ctx[:1], y_ctx[:1], 0.5, "same_class") == (0.0, 1.0)


def test_features_without_a_direction_are_left_out_and_nan_is_not_hidden() -> None:
    z, there = directions(torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 2.0]]))
    assert there.tolist() == [True, False, True]
    assert torch.equal(z, torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    z, there = directions(torch.tensor([[float("nan"), 1.0], [1.0, 0.0]]))
    assert there.tolist() == [True, True]
    with pytest.raises(InputError, match="not finite"):
        contrast(z, torch.tensor([0, 1]), torch.tensor([False, False]), z, torch.tensor([0, 1]), 0.5, "same_class")


class Rectified(nn.Module):
    """A head that rectifies its input, in place or not, as the released model's does."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.body, self.relu, self.head = nn.Linear(SIZE, 6), nn.ReLU(inplace=inplace), nn.Linear(6, K)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.relu(self.body(x)))
        return found


def test_an_in_place_rectifier_changes_nothing() -> None:
    """Published: the tensor that was normalised is rectified afterwards, and no longer unit."""
    numbers = []
    for inplace in (False, True):
        torch.manual_seed(0)
        form = FactoryForm(factory="efface.subjects.networks:mlp", labels=tuple("0123"), head="head")
        model = Predictor(Rectified(inplace), form=form)
        total, found = one_step(model, METHOD.config_class(), list(range(K)))  # type: ignore[arg-type]
        total.backward()
        gradient = model.model.body.weight.grad
        assert gradient is not None
        numbers.append((found["forget"], float(gradient.norm())))
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-6)
    assert numbers[0][1] > 0


# -- forgetting ----------------------------------------------------------------------------------------------------


def test_forgets_a_class_keeps_the_others_and_leaves_the_model_alone(trained: Predictor, tmp_path: Path) -> None:
    request = class_request()
    digest = trained.digest
    assert request.retain is not None
    assert classes(request.forget, trained) == classes(request.retain, trained) == 1.0
    edit = edited(trained, request, tmp_path)
    trained.changed()
    assert trained.digest == digest
    edit.apply(trained)
    assert classes(request.forget, trained) <= 0.25
    assert classes(request.retain, trained) >= 0.95
    edit.remove(trained)
    assert trained.digest == digest


def test_same_seed_same_bits_other_seed_other_bits(trained: Predictor, tmp_path: Path) -> None:
    digests = [
        edited(trained, row_request(), tmp_path / str(i), seed=seed, epochs=1).facts.edited_digest
        for i, seed in enumerate((0, 0, 1))
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("values", [{"scope": "lora"}, {"scope": "mask", "mask": "gradient", "density": 0.3}])
def test_other_scopes(trained: Predictor, tmp_path: Path, values: dict[str, Any]) -> None:
    digest = trained.digest
    edit = edited(trained, class_request(), tmp_path, epochs=1, stop="none", **values)
    trained.changed()
    assert trained.digest == digest
    before = {name: tensor.detach().clone() for name, tensor in trained.weights().items()}
    edit.apply(trained)
    if values["scope"] == "mask":
        moved = sum(int((trained.weights()[name] != tensor).sum()) for name, tensor in before.items())
        assert 0 < moved <= 0.3 * sum(tensor.numel() for tensor in before.values()) + 1
    assert trained.digest != digest
    edit.remove(trained)
    assert trained.digest == digest


def test_the_other_retain_terms(trained: Predictor) -> None:
    rows = trained.encode_rows(TRAIN)
    ids, logp = reference_top_k(trained, rows[20:29], K)
    known = {"ref_ids": torch.stack(ids), "ref_logp": torch.stack(logp)}
    numbers = {}
    for term in ("none", "nll", "kl"):
        config = METHOD.config_class(retain_term=term, forget_weight=0.0)  # type: ignore[call-arg]
        total, numbers[term] = one_step(trained, config, list(range(K)), known)  # type: ignore[arg-type]
        assert float(total.detach()) == pytest.approx(numbers[term].get("retain", 0.0))
    assert "retain" not in numbers["none"]
    assert numbers["nll"]["retain"] > 1e-4
    assert numbers["kl"]["retain"] == pytest.approx(0.0, abs=1e-6), "the model is its own reference"
    other = {**known, "ref_logp": torch.full((9, 1, K), 1 / K).log()}
    _, moved = one_step(trained, METHOD.config_class(retain_term="kl"), list(range(K)), other)  # type: ignore[arg-type, call-arg]
    assert moved["retain"] > 0.1


def test_running_statistics_come_back(tmp_path: Path) -> None:
    data = TRAIN.map(lambda row: {"features": np.resize(row["features"], (1, 8, 8)).tolist()})
    data = data.cast_column("label", TRAIN.features["label"])
    config = ClassifierConfig(
        factory="efface.subjects.networks:conv",
        arguments={"channels": 1, "side": 8, "outputs": K, "widths": [4], "features": 8, "norm": True},
    )
    model = new_model(config, data)
    digest = model.digest
    request = Request(forget=data.select(range(16)), retain=data.select(range(16, 160)))
    edit = edited(model, request, tmp_path, epochs=1)
    model.changed()
    assert model.digest == digest != edit.facts.edited_digest


# -- when to stop --------------------------------------------------------------------------------------------------


def test_a_class_stops_at_chance_after_a_whole_pass(trained: Predictor, tmp_path: Path) -> None:
    request = class_request()
    whole = fitted(trained, request, tmp_path / "whole")
    passes, rest = divmod(len(whole.log), 4)
    assert rest == 0
    assert not whole.edit.facts.config["validation_ids"], (
        "the holdout set has no row of the class: the forget rows decide"
    )
    assert 1 < passes < 6
    shorter = edited(trained, request, tmp_path / "shorter", epochs=passes - 1, stop="none")
    right = []
    for edit in (shorter, whole.edit):
        edit.apply(trained)
        right.append(classes(request.forget, trained))
        edit.remove(trained)
    assert right[0] > 1 / K >= right[1]


def test_validation_rows_of_the_class_decide_where_there_are_some(trained: Predictor, tmp_path: Path) -> None:
    """These are of other classes in truth, so none is right and the first pass is the last."""
    false = of_class(TEST, 1)
    false = false.remove_columns("label").add_column("label", [2] * len(false), feature=TEST.features["label"])
    request = dataclasses.replace(class_request(), holdout=None, evaluate={"validation": false}, sources={})
    made = fitted(trained, request, tmp_path)
    assert list(made.edit.facts.config["validation_ids"]) == list(false["id"])
    assert len(made.log) == 4


def test_rows_stop_at_the_level_of_unseen_rows_and_the_test_set_is_not_read(trained: Predictor, tmp_path: Path) -> None:
    """Published: the stop reads test accuracy."""
    first = fitted(trained, row_request(), tmp_path / "a", validation_share=0.25, epochs=3)
    assert len(first.log) < 12
    read = set(first.edit.facts.config["validation_ids"])
    assert len(read) == 20
    assert read < set(TEST["id"])

    def relabelled(chosen: Any) -> Dataset:
        wrong = [(y + 1) % K if chosen(i) else y for i, y in zip(TEST["id"], TEST["label"], strict=True)]
        return TEST.remove_columns("label").add_column("label", wrong, feature=TEST.features["label"])

    again = row_request(holdout=relabelled(lambda i: i not in read))
    again_made = fitted(trained, again, tmp_path / "b", validation_share=0.25, epochs=3)
    assert again_made.edit.facts.edited_digest == first.edit.facts.edited_digest
    never = row_request(holdout=relabelled(lambda i: i in read))
    assert len(fitted(trained, never, tmp_path / "c", validation_share=0.25, epochs=3).log) == 12


def test_without_unseen_rows(trained: Predictor, tmp_path: Path) -> None:
    request = dataclasses.replace(row_request(), holdout=None, sources={})
    assert edited(trained, request, tmp_path / "a", epochs=1).facts.tensors > 0
    with pytest.raises(RequestError, match="unseen rows"):
        edited(trained, request, tmp_path / "b", stop="rows")


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("values", "said"), [
    ({"tau": 0.0}, "tau"), ({"omega": 0}, "omega"), ({"micro_batch_size": 4}, "one forward pass"),
    ({"gamma": 2.0}, "forget_weight"), ({"anchor": "retain"}, "anchor"), ({"stop": "epoch"}, "stop"),
])  # fmt: skip
def test_settings_that_mean_nothing(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        METHOD.configure(values)


def untrained(hidden: list[int], outputs: int = K) -> Predictor:
    form = FactoryForm(
        factory="efface.subjects.networks:mlp", arguments={"inputs": SIZE, "outputs": outputs, "hidden": hidden},
        labels=tuple(str(i) for i in range(outputs)),
    )  # fmt: skip
    return Predictor(form.build(), form=form)


def test_one_class_one_feature_one_retained_class(trained: Predictor, tmp_path: Path) -> None:
    lone = labelled(np.random.default_rng(0).normal(size=(8, SIZE)), [0] * 8, [f"x{i}" for i in range(8)])
    with pytest.raises(ModelError, match="two or more"):
        edited(untrained([8], 1), Request(forget=lone.select([0]), retain=lone.select(range(1, 8))), tmp_path / "a")
    with pytest.raises(ModelError, match="two or more"):
        edited(untrained([8, 1]), row_request(), tmp_path / "b")
    request = Request(forget=of_class(TRAIN, 2), retain=of_class(TRAIN, 1))
    with pytest.raises(RequestError, match="retain set of one class"):
        edited(trained, request, tmp_path / "c")
    with pytest.raises(RequestError, match="retain"):
        edited(trained, Request(forget=TRAIN), tmp_path / "d")


def test_features_that_cannot_move(tmp_path: Path) -> None:
    """A linear model, or a frozen encoder: the head would be trained on a constant."""
    model = Predictor(nn.Sequential(nn.Flatten(), nn.Linear(SIZE, K)), form=untrained([8]).form)
    digest = model.digest
    with pytest.raises(ConfigError, match="cannot move"):
        edited(model, row_request(), tmp_path)
    model.changed()
    assert model.digest == digest


def test_a_warning_where_many_anchors_are_left_out(trained: Predictor, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="anchors were left out"):
        edited(trained, row_request(), tmp_path / "a", batch_size=2, epochs=1, omega=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edited(trained, row_request(), tmp_path / "b", batch_size=4, epochs=1, omega=1, balanced=True)
