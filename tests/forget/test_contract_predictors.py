"""The contract for classifiers and regressors: what holds for every method whose card names them, found by the catalog."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from predictor_worlds import heaps, predictor, request_of

import efface
from efface.catalog import entries
from efface.errors import ConfigError, RunError
from efface.forget.edit import Edit
from efface.forget.method import find_method
from efface.forget.run import forget_into
from efface.learn.recipes.classifier import ClassifierConfig, fit, new_model
from efface.subjects.factory import FactoryForm
from efface.subjects.predictor import Predictor

CARDS = {name: entry.card for name, entry in entries().items() if entry.card.verb == "forget"}
CLASSIFIERS = [name for name, card in CARDS.items() if "classifier" in card.subjects]
REGRESSORS = [name for name, card in CARDS.items() if "regressor" in card.subjects]
QUICK: dict[str, Any] = {"learning_rate": 5e-3, "epochs": 2, "batch_size": 10}
OWN: dict[str, dict[str, Any]] = {
    "cf-k": {"k": 1},
    "concept-poisoning": {"donor": "c", "mode": "none"},
    "ssd": {"alpha": 1.2},
}
"""Settings without which a method refuses so small a world."""
SEEDLESS = {"ssd", "influence"}
"""Methods that draw nothing, or nothing where all rows are looked at."""
CLASS_ONLY = {"concept-poisoning"}
"""Methods that forget a whole class."""

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*of the anchors were left out:UserWarning", "ignore:.*:UserWarning:efface.forget.edits"
)
"""After so few steps in so small a space some features are all zero, and a third of the weights matters for every row."""


def made(subject: Predictor, request: Any, name: str, folder: Path, **more: Any) -> Edit:
    method = find_method(name)
    quick = {k: v for k, v in QUICK.items() if k in method.config_class.model_fields}
    config = method.configure({**quick, **OWN.get(name, {}), **more})
    return method.fit(subject, request, config, work=folder / "work", out=folder / "edit").edit


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_fit_save_load_apply_remove(name: str, tmp_path: Path) -> None:
    subject, request = predictor(), request_of("class")
    before, digest = {k: t.clone() for k, t in subject.weights().items()}, subject.digest
    edit = made(subject, request, name, tmp_path / "a")
    subject.changed()
    assert subject.digest == digest, "fit must leave the subject bit for bit as it was"
    assert not (tmp_path / "a" / "work").exists()
    assert all(p.requires_grad for p in subject.model.parameters())
    assert all(p.grad is None for p in subject.model.parameters())
    assert not subject.model.training
    edit.save(tmp_path / "copy")
    again = Edit.load(tmp_path / "copy")
    again.apply(subject)
    assert subject.digest == edit.facts.edited_digest != digest
    with pytest.raises(RunError, match="applied already"):
        again.apply(subject)
    again.remove(subject)
    assert subject.digest == digest
    assert all(torch.equal(before[k], t) for k, t in subject.weights().items())


@pytest.mark.parametrize("name", REGRESSORS)
def test_regressors_too(name: str, tmp_path: Path) -> None:
    subject = predictor(numbers=True)
    digest = subject.digest
    edit = made(subject, request_of("rows", numbers=True), name, tmp_path)
    subject.changed()
    assert subject.digest == digest
    edit.apply(subject)
    assert subject.digest == edit.facts.edited_digest != digest
    edit.remove(subject)
    assert subject.digest == digest


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_same_seed_same_bits(name: str, tmp_path: Path) -> None:
    request = request_of("class" if name in CLASS_ONLY else "rows")
    digests = [
        made(predictor(), request, name, tmp_path / str(i), seed=s).facts.edited_digest for i, s in enumerate((0, 0, 1))
    ]
    assert digests[0] == digests[1]
    assert (digests[0] != digests[2]) == (name not in SEEDLESS)


@pytest.mark.parametrize("kind", ["class", "rows", "person"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_class_rows_and_person(name: str, kind: str, tmp_path: Path) -> None:
    """Each either works or refuses with a reason that says what is expected or what to do."""
    said = ""
    try:
        assert made(predictor(), request_of(kind), name, tmp_path).facts.tensors > 0
    except efface.errors.InputError as error:
        said = str(error)
    assert not said or "; " in said, said


@pytest.mark.parametrize("name", [name for name in CARDS if name not in CLASSIFIERS])
def test_other_methods_refuse_a_classifier(name: str, tmp_path: Path) -> None:
    method = find_method(name)
    with pytest.raises(ConfigError, match=r"on a classifier.*methods for a classifier: .*finetune"):
        forget_into(predictor(), request_of(), method, method.configure(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_batch_norms_come_back_and_rest_outside_the_scope(tmp_path: Path) -> None:
    """Running statistics are no parameters: neither a mask nor a frozen layer would hold them."""
    form = FactoryForm(
        factory="efface.subjects.networks:conv", arguments={"channels": 1, "side": [2, 2], "outputs": 3, "widths": [4],
        "features": 6, "norm": True}, labels=("a", "b", "c"),
    )  # fmt: skip
    torch.manual_seed(0)
    subject = Predictor(form.build().eval(), form=form)
    reshaped = request_of("rows")
    rows = {
        name: data.map(
            lambda row: {"features": [[row["features"][:2], row["features"][2:]]]}, remove_columns=["features"]
        )
        for name, data in {"forget": reshaped.forget, "retain": reshaped.retain}.items()
    }
    request = efface.Request.from_rows(rows["forget"], rows["retain"])
    statistics = [name for name in subject.weights() if "running" in name]
    assert statistics
    digest = subject.digest
    for scope, moves in (
        ({}, True),
        ({"norm_statistics": "frozen"}, False),
        ({"scope": "mask", "mask": "random", "density": 0.5}, False),
    ):
        before = {name: subject.weights()[name].clone() for name in statistics}
        edit = made(subject, request, "finetune", tmp_path / str(scope), **scope)
        subject.changed()
        assert subject.digest == digest
        edit.apply(subject)
        assert all(torch.equal(before[name], subject.weights()[name]) for name in statistics) == (not moves)
        edit.remove(subject)


def test_what_lora_and_layers_need_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lora_targets"):
        made(predictor(), request_of(), "npo", tmp_path / "a", scope="lora", lora_targets="nowhere")
    edit = made(predictor(), request_of(), "npo", tmp_path / "b", scope="lora", lora_targets="1,4", lora_rank=2)
    assert edit.kind == "adapter"
    with pytest.raises(ConfigError, match="layers between"):
        made(predictor(), request_of(), "npo", tmp_path / "c", scope="layers", layers="0")


def test_training_and_forgetting_end_where_they_should(tmp_path: Path) -> None:
    """The whole way in memory: learn, forget, and the forgotten class is no longer said while the others are."""
    data = heaps(60, 0)
    config = ClassifierConfig(arguments={"hidden": [12, 6]}, epochs=30, batch_size=20, learning_rate=0.1)
    model = new_model(config, data)
    with tempfile.TemporaryDirectory() as folder:
        fit(model, data, config, work=Path(folder))
    request = request_of("class")
    made(model, request, "gradient-difference", tmp_path, learning_rate=0.05, epochs=40).apply(model)

    def right(rows: Any) -> float:
        samples = model.encode_rows(rows)
        return float((model.read(samples)[1].argmax(-1) == torch.tensor([s.target for s in samples])).float().mean())

    assert right(request.forget) < 0.2
    assert right(request.retain) > 0.9
