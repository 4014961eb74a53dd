"""Prune, then unlearn: which weights become zero, that they stay zero, and that every unlearner runs under the mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from efface.data.request import Request
from efface.errors import ConfigError
from efface.forget.edit import Edit
from efface.forget.method import find_method
from efface.forget.objectives.prune_finetune import METHOD, prunable
from efface.lab.classified import labelled
from efface.learn.recipes.classifier import ClassifierConfig, new_model
from efface.subjects.predictor import Predictor

NAMES = [str(i) for i in range(4)]
HARD = {"learning_rate": 0.05, "batch_size": 8, "epochs": 2, "momentum": 0.9, "weight_decay": 0.5}
CONV = ClassifierConfig(
    factory="efface.subjects.networks:conv",
    arguments={"channels": 1, "side": 8, "outputs": 4, "widths": [4, 6], "features": 8, "norm": True},
)


def rows(labels: list[int], seed: int, *shape: int) -> Any:
    features = np.random.default_rng(seed).normal(size=(len(labels), *(shape or (6,))))
    features += np.asarray(labels).reshape(-1, *[1] * (features.ndim - 1))
    return labelled(features, labels, [f"{seed}-{i}" for i in range(len(labels))], NAMES)


@pytest.fixture
def request4() -> Request:
    return Request(forget=rows([3] * 8, 0), retain=rows([0, 1, 2] * 8, 1))


@pytest.fixture
def mlp(request4: Request) -> Predictor:
    return new_model(ClassifierConfig(arguments={"hidden": [16, 8]}), request4.forget)


def fit(subject: Predictor, request: Request, folder: Path, name: str = "prune-finetune", **values: Any) -> Edit:
    method = find_method(name)
    config = method.configure({**HARD, **values})
    return method.fit(subject, request, config, work=folder / "work", out=folder / "edit").edit


def weights(subject: Predictor, edit: Edit) -> dict[str, torch.Tensor]:
    edit.apply(subject)
    found = {name: tensor.detach().clone() for name, tensor in subject.weights().items()}
    edit.remove(subject)
    return found


def smallest(subject: Predictor, names: list[str], count: int) -> set[tuple[str, int]]:
    """The count smallest entries by sorting."""
    every = [(abs(x), name, i) for name in names for i, x in enumerate(subject.weights()[name].flatten().tolist())]
    return {(name, i) for _, name, i in sorted(every)[:count]}


@pytest.mark.parametrize(
    "values",
    [{}, {"unlearner": "random-labels"}, {"unlearner": "l1-sparse", "settings": {"l1_gamma": 0.01}},
     {"unlearner": "gradient-ascent", "learning_rate": 1e-3}, {"refit_epochs": 2}, {"optimizer": "adamw"}],
)  # fmt: skip
def test_the_smallest_are_zero_and_stay_zero_under_decay_and_momentum(
    values: dict[str, Any], mlp: Predictor, request4: Request, tmp_path: Path
) -> None:
    names = ["1.weight", "3.weight", "5.weight"]
    assert prunable(mlp.model) == names
    total = sum(mlp.weights()[name].numel() for name in names)
    digest = mlp.digest
    edit = fit(mlp, request4, tmp_path, sparsity=0.9, **values)
    mlp.changed()
    assert mlp.digest == digest
    after = weights(mlp, edit)
    zero = {(name, int(i)) for name in names for i in (after[name].flatten() == 0).nonzero()}
    assert zero == smallest(mlp, names, total - round(0.1 * total))
    assert not any(bool((after[name] == 0).any()) for name in after if name.endswith("bias"))


def test_norms_biases_and_with_prune_linear_off_linear_layers_are_left_alone(tmp_path: Path) -> None:
    request = Request(forget=rows([3] * 8, 0, 1, 8, 8), retain=rows([0, 1, 2] * 8, 1, 1, 8, 8))
    subject = new_model(CONV, request.forget)
    convolutions = ["0.weight", "4.weight"]
    assert prunable(subject.model, linear=False) == convolutions
    after = weights(subject, fit(subject, request, tmp_path, sparsity=0.8, prune_linear=False))
    for name, tensor in after.items():
        assert bool((tensor == 0).any()) == (name in convolutions), name
    total = sum(after[name].numel() for name in convolutions)
    assert sum(int((after[name] == 0).sum()) for name in convolutions) == total - round(0.2 * total)


def test_a_table_of_embeddings_is_no_linear_layer(tiny: Any) -> None:
    tied = torch.nn.ModuleDict({"table": torch.nn.Embedding(5, 3), "head": torch.nn.Linear(3, 5, bias=False)})
    tied["head"].weight = tied["table"].weight
    assert prunable(tied) == []
    found = prunable(tiny.model)
    assert found
    assert not any("embed" in name or "norm" in name for name in found)


def test_no_sparsity_is_fine_tuning(mlp: Predictor, request4: Request, tmp_path: Path) -> None:
    config = METHOD.configure({**HARD})
    same = config.model_dump(include={"optimizer", "schedule", "warmup_ratio", "max_grad_norm"})
    plain = fit(mlp, request4, tmp_path / "a", "finetune", **same)
    assert fit(mlp, request4, tmp_path / "b", sparsity=0.0).facts.edited_digest == plain.facts.edited_digest


def test_pruning_a_pruned_model_again_keeps_its_mask(mlp: Predictor, request4: Request, tmp_path: Path) -> None:
    first = fit(mlp, request4, tmp_path / "a", sparsity=0.9)
    first.apply(mlp)
    zeros = {name: tensor == 0 for name, tensor in mlp.weights().items()}
    again = weights(mlp, fit(mlp, request4, tmp_path / "b", sparsity=0.9))
    assert all(torch.equal(again[name] == 0, zeros[name]) for name in zeros)
    first.remove(mlp)


@pytest.mark.parametrize("dies_at", [3, 10])
def test_a_killed_run_goes_on_to_the_same_bits(
    dies_at: int, mlp: Predictor, request4: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efface.train import engine

    values = {"refit_epochs": 2, "sparsity": 0.8, "checkpoint_seconds": 1e-9, "epochs": 3}  # 8 steps, then 9
    kept = fit(mlp, request4, tmp_path / "a", **values).facts.edited_digest
    plain, calls = engine._Engine.compute_loss, {"n": 0}

    def dying(self: Any, *args: Any, **more: Any) -> Any:
        calls["n"] += 1
        if calls["n"] == dies_at:
            raise KeyboardInterrupt
        return plain(self, *args, **more)

    monkeypatch.setattr(engine._Engine, "compute_loss", dying)
    with pytest.raises(KeyboardInterrupt):
        fit(mlp, request4, tmp_path / "b", **values)
    monkeypatch.setattr(engine._Engine, "compute_loss", plain)
    mlp.changed()
    assert fit(mlp, request4, tmp_path / "b", **values).facts.edited_digest == kept


def test_a_regressor_too_and_what_is_refused(mlp: Predictor, request4: Request, tmp_path: Path) -> None:
    numbers = Dataset.from_dict({
        "id": [str(i) for i in range(8)], "features": [[float(i), 1.0] for i in range(8)], "target": [i / 8 for i in range(8)],
    })  # fmt: skip
    regressor = new_model(ClassifierConfig(arguments={"hidden": [8]}), numbers)
    parts = Request(forget=numbers.select(range(2)), retain=numbers.select(range(2, 8)))
    after = weights(regressor, fit(regressor, parts, tmp_path / "numbers", sparsity=0.5))
    assert sum(int((tensor == 0).sum()) for tensor in after.values()) == 12
    with pytest.raises(ConfigError, match="no other one to draw"):
        fit(regressor, parts, tmp_path / "a", unlearner="random-labels")
    with pytest.raises(ConfigError, match=r"unknown key 'gama' for l1-sparse"):
        fit(mlp, request4, tmp_path / "b", unlearner="l1-sparse", settings={"gama": 1})
    with pytest.raises(ConfigError, match="no layer to prune"):
        fit(mlp, request4, tmp_path / "c", prune_linear=False)
    with pytest.raises(ConfigError, match="leaves none"):
        fit(mlp, request4, tmp_path / "d", sparsity=0.9999)
    for values in ({"sparsity": 1.0}, {"sparsity": -0.1}, {"scope": "mask"}, {"unlearner": "magic"}):
        with pytest.raises(ConfigError, match=next(iter(values))):
            METHOD.configure(values)
    assert METHOD.configure({"unlearner": "gradient-ascent"}).learning_rate == 1e-4
    assert not list(tmp_path.glob("[abcd]/edit"))
