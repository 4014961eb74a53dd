"""CF-k: what a block is, what is frozen rests whatever the optimiser does, and the same as fine-tuning under a mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from efface.data.request import Request
from efface.errors import ConfigError
from efface.forget.edit import Edit
from efface.forget.method import find_method
from efface.forget.objectives.cf_k import blocks_of, last_blocks
from efface.lab.classified import labelled
from efface.subjects.factory import FactoryForm
from efface.subjects.networks import conv, mlp
from efface.subjects.predictor import Predictor

CLASSES, WIDTH = 3, 5


def request(n: int = 30, forget: int = 7) -> Request:
    rng = np.random.default_rng(0)
    labels = np.arange(n) % CLASSES
    data = labelled(2 * np.eye(WIDTH)[labels] + rng.normal(0, 1, (n, WIDTH)), labels, [str(i) for i in range(n)])
    return Request(forget=data.select(range(forget)), retain=data.select(range(forget, n)))


def model(seed: int = 0, hidden: tuple[int, ...] = (8, 6)) -> Predictor:
    form = FactoryForm(factory="efface.subjects.networks:mlp", labels=tuple("012"),
                       arguments={"inputs": WIDTH, "outputs": CLASSES, "hidden": list(hidden)})  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Predictor(form.build().eval(), form=form)


def fit(name: str, subject: Any, asked: Request, folder: Path, **values: Any) -> Edit:
    method = find_method(name)
    config = method.configure({"batch_size": 4, "learning_rate": 0.05, **values})
    return method.fit(subject, asked, config, work=folder / "work", out=folder / "edit").edit


class Net(nn.Module):
    """Stem, two stages and a head, as a residual network has them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
        self.layer2 = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
        self.fc = nn.Linear(4, 3)


class Deep(nn.Module):
    """Embeddings, a list of layers inside an encoder, a pooler and a head, as BERT has them."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = nn.Module()
        self.bert.embeddings = nn.Embedding(5, 4)
        self.bert.encoder = nn.Module()
        self.bert.encoder.layer = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(3)])
        self.bert.pooler = nn.Linear(4, 4)
        self.classifier = nn.Linear(4, 2)


def test_blocks_of_networks() -> None:
    assert blocks_of(mlp(4, 3, (8, 6))) == ["1", "3", "5"]
    assert blocks_of(conv(1, 8, 3, norm=True)) == ["0", "1", "4", "5", "9", "11"]
    assert last_blocks(Net(), 3) == ["layer1", "layer2", "fc"], "the benchmark's CF-3: stages, not single layers"
    deep = blocks_of(Deep())
    assert deep == ["bert.embeddings", *(f"bert.encoder.layer.{i}" for i in range(3)), "bert.pooler", "classifier"]
    wrapped = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert blocks_of(wrapped) == ["0.0", "0.1"]
    with pytest.raises(ConfigError, match=r"k=3 of a network with 3 blocks \(1, 3, 5\)"):
        last_blocks(mlp(4, 3, (8, 6)), 3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_frozen_blocks_do_not_move_by_decay_or_momentum(optimizer: str, tmp_path: Path) -> None:
    """The benchmark's notebook builds its optimiser before it freezes."""
    subject = model()
    before = {name: t.detach().clone() for name, t in subject.weights().items()}
    edit = fit("cf-k", subject, request(), tmp_path, k=2, weight_decay=0.5, momentum=0.9, optimizer=optimizer, epochs=5)
    edit.apply(subject)
    moved = {name for name, t in subject.weights().items() if not torch.equal(t, before[name])}
    assert moved == {"3.weight", "3.bias", "5.weight", "5.bias"}


def test_cf_k_is_finetuning_on_the_retain_set(tmp_path: Path) -> None:
    """The head alone, against finetune with a mask of the head; other forget rows change nothing."""
    values = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "warmup_ratio": 0.0, "schedule": "constant",
              "max_grad_norm": 1e9, "epochs": 3}  # fmt: skip
    own = fit("cf-k", model(), request(), tmp_path / "a", k=1, epochs=3)
    plain = fit("finetune", model(), request(), tmp_path / "b", **values, scope="mask", mask="random", density=1.0,
                mask_modules="5")  # fmt: skip
    assert own.facts.edited_digest == plain.facts.edited_digest
    other = Request(forget=request(60).forget, retain=request().retain)
    assert fit("cf-k", model(), other, tmp_path / "c", k=1, epochs=3).facts.edited_digest == own.facts.edited_digest


def test_scope_layers_counts_numbered_layers_only(tmp_path: Path) -> None:
    """Why cf-k exists: a network without numbered layers has none to choose."""
    with pytest.raises(ConfigError, match="layers='-1'"):
        fit("finetune", model(), request(), tmp_path, scope="layers", layers="-1")
