"""Ending a run by agreement with the original predictions: no label is read, and the look before comes back."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from efface.errors import CheckFailed
from efface.subjects.factory import FactoryForm
from efface.subjects.predictor import Predictor
from efface.subjects.samples import Sample
from efface.train.agreement import Agreement

X = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))


def world(folder: Path, bound: float) -> tuple[Any, nn.Sequential, dict[str, nn.Parameter]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    form = FactoryForm(factory="efface.subjects.networks:mlp", labels=("a", "b"))
    subject = Predictor(model, form=form)
    rows = [Sample(lambda i=i: {"x": X[i]}, target=-1, key=str(i)) for i in range(10)]
    said = subject.read(rows)[1].argmax(-1)
    live = {"0.weight": model[0].weight, "2.weight": model[2].weight, "2.bias": model[2].bias}
    return Agreement(subject, rows, said, every=3, bound=bound, live=live, folder=folder), model, live


def turn_over(model: nn.Sequential) -> None:
    """Every prediction is the other class."""
    with torch.no_grad():
        model[2].weight.neg_()
        model[2].bias.neg_()


def test_it_looks_every_so_often_and_goes_back_to_the_look_before(tmp_path: Path) -> None:
    watch, model, _ = world(tmp_path, 0.9)
    assert not watch(1)
    assert watch.last is None
    assert not watch(3)
    assert watch.last == 1.0
    with torch.no_grad():
        model[0].weight.add_(1e-6)
    assert not watch(6)
    kept = model[0].weight.detach().clone()
    assert [path.name for path in tmp_path.iterdir()] == ["kept-6.safetensors"]
    turn_over(model)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    assert not watch(8)
    assert watch(9)
    assert watch.stopped_at == 9
    with pytest.warns(UserWarning, match=r"method: after 9 steps only .* went back to step 6"):
        watch.go_back("method")
    assert torch.equal(model[0].weight, kept)
    assert not watch(3), "and predicts as before"


def test_another_process_goes_back_too(tmp_path: Path) -> None:
    first, _, _ = world(tmp_path, 0.9)
    first(3)
    second, model, live = world(tmp_path, 0.9)
    before = {name: value.detach().clone() for name, value in live.items()}
    turn_over(model)
    assert second(6)
    with pytest.warns(UserWarning, match="went back to step 3"):
        second.go_back("method")
    assert all(torch.equal(before[name], value) for name, value in live.items())


def test_a_first_look_that_fails_is_an_error(tmp_path: Path) -> None:
    watch, model, _ = world(tmp_path, 0.9)
    turn_over(model)
    assert watch(3)
    with pytest.raises(CheckFailed, match=r"below 90\.0% at the first look; lower the learning rates"):
        watch.go_back("method")


def test_nothing_happens_without_a_stop_or_a_bound(tmp_path: Path) -> None:
    watch, model, _ = world(tmp_path, 0.0)
    turn_over(model)
    assert not watch(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.go_back("method")
    assert not list(tmp_path.iterdir())
