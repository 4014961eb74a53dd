"""A stack of models against the same models one after another, against the engine, and against rows that it must not see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTForImageClassification

from efface.errors import InputError
from efface.subjects.factory import FactoryForm
from efface.subjects.predictor import Predictor
from efface.subjects.samples import Sample
from efface.train import model_stack
from efface.train.config import TrainConfig
from efface.train.engine import Diverged, isolated_rng, train
from efface.train.model_stack import batch_plan, outputs_of, train_stack
from efface.train.streams import collator_of
from efface.train.supervised import answer_loss, supervised_schedule

SGD = TrainConfig(
    learning_rate=0.1, epochs=3, batch_size=8, optimizer="sgd", momentum=0.9, weight_decay=0.01, schedule="constant",
    max_grad_norm=0.5,
)  # fmt: skip


def data(n: int = 40, seed: int = 0, classes: int = 3, numbers: bool = False) -> Dataset:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    columns: dict[str, Any] = {"id": [str(i) for i in range(n)], "features": list(x)}
    if numbers:
        return Dataset.from_dict({**columns, "target": (x[:, 0] + 0.1 * rng.normal(size=n)).tolist()})
    kinds = Features({
        "id": Value("string"), "features": List(Value("float32")), "label": ClassLabel(names=[str(i) for i in range(classes)]),
    })  # fmt: skip
    return Dataset.from_dict({**columns, "label": rng.integers(0, classes, n).tolist()}, features=kinds)


def predictor(
    seed: int = 0, factory: str = "efface.subjects.networks:mlp", numbers: bool = False, **more: Any
) -> Predictor:
    arguments = {"inputs": 6, "outputs": 1 if numbers else 3, "hidden": [8], **more}
    form = FactoryForm(
        factory=factory, arguments=arguments, task="regression" if numbers else "classification",
        labels=() if numbers else ("0", "1", "2"),
    )  # fmt: skip
    with isolated_rng(seed):
        return Predictor(form.build().eval(), form=form)


def batch_normed(**_: Any) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
    )  # fmt: skip


class Branching(torch.nn.Module):
    """Its way depends on the numbers that come in: vmap cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        return self.last(hidden.relu() if float(hidden.detach().mean()) > 0 else hidden.tanh())


def branching(**_: Any) -> torch.nn.Module:
    return Branching()


def modules(subject: Predictor, count: int) -> list[Any]:
    made = []
    for seed in range(count):
        with isolated_rng(seed):
            made.append(subject.fresh())
    return made


def states(found: list[Any]) -> list[dict[str, torch.Tensor]]:
    return [{name: tensor.clone() for name, tensor in module.state_dict().items()} for module in found]


def halves(models: int, n: int, seed: int = 0) -> Any:
    keep = np.zeros((models, n), dtype=bool)
    for row in keep:
        row[np.random.default_rng([seed, int(keep.sum())]).permutation(n)[: n // 2]] = True
    return keep


def fitted(
    subject: Predictor, rows: list[Sample], keep: Any, recipe: TrainConfig = SGD, **more: Any
) -> tuple[Any, str]:
    found = modules(subject, len(keep))
    note = train_stack(subject, found, rows, keep, recipe, seeds=list(range(len(keep))), **more)
    return states(found), note


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"max_grad_norm": 1e9, "schedule": "linear", "warmup_ratio": 0.2},
        {"optimizer": "adam", "learning_rate": 0.01, "schedule": "cosine"},
        {"optimizer": "adamw", "learning_rate": 0.01, "weight_decay": 0.1},
    ],
)
def test_a_stack_equals_one_after_another(change: dict[str, Any], numbers: bool) -> None:
    subject = predictor(numbers=numbers)
    rows = subject.encode_rows(data(numbers=numbers))
    recipe = SGD.model_copy(update=change)
    together, note = fitted(subject, rows, halves(4, 40), recipe)
    alone, _ = fitted(subject, rows, halves(4, 40), recipe, together=False)
    assert note == ""
    start = states(modules(subject, 4))
    for own, other, before in zip(together, alone, start, strict=True):
        assert max(float((own[name] - before[name]).abs().max()) for name in own) > 0.01  # something was learnt
        for name in own:
            torch.testing.assert_close(own[name], other[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_one_model_on_everything_equals_the_engine(optimizer: Any, tmp_path: Path) -> None:
    """Full batches, so that the order does not count: the same loss, decay, clipping and schedule."""
    subject = predictor()
    rows = subject.encode_rows(data())
    rate = 0.1 if optimizer == "sgd" else 0.01
    recipe = SGD.model_copy(update={
        "optimizer": optimizer, "learning_rate": rate, "batch_size": 40, "epochs": 12, "schedule": "linear",
    })  # fmt: skip
    found, _ = fitted(subject, rows, np.ones((2, 40), dtype=bool), recipe)
    engine = modules(subject, 1)[0]
    train(
        engine, supervised_schedule(rows, recipe), answer_loss, recipe, folder=tmp_path, collator=collator_of(subject)
    )
    for name, tensor in engine.state_dict().items():
        torch.testing.assert_close(found[0][name], tensor, rtol=1e-4, atol=1e-5)


def test_weights_do_not_depend_on_rows_that_are_not_kept() -> None:
    """Guarantee: other inputs and other labels in the rows that a model may not see leave it bit for bit."""
    subject = predictor()
    rows, others = subject.encode_rows(data()), subject.encode_rows(data(seed=9))
    keep = halves(3, 40)
    found, _ = fitted(subject, rows, keep)
    hidden = [other if not keep[1, i] else row for i, (row, other) in enumerate(zip(rows, others, strict=True))]
    changed, _ = fitted(subject, hidden, keep)
    assert all(torch.equal(found[1][name], changed[1][name]) for name in found[1])
    assert not all(torch.equal(found[0][name], changed[0][name]) for name in found[0])


def test_batches_come_from_the_kept_rows_in_passes() -> None:
    keep = halves(2, 40)
    keep[1, :] = False
    keep[1, :17] = True
    plan = batch_plan(keep, SGD, [0, 1])
    assert plan.shape == (2, round(3 * 17 / 8), 8)  # as many steps as the smallest share takes
    for own, kept in zip(plan, keep, strict=True):
        assert set(own.ravel()) <= set(np.flatnonzero(kept))
        assert len(set(own.ravel()[: int(kept.sum())])) == int(kept.sum())  # every row once before any comes twice


def test_running_statistics_and_refusing_models_go_one_after_another() -> None:
    for factory, words in ((batch_normed, "batch norms"), (branching, "refuses vmap")):
        subject = predictor(factory=f"{__name__}:{factory.__name__}")
        rows = subject.encode_rows(data())
        found, note = fitted(subject, rows, halves(2, 40))
        alone, _ = fitted(subject, rows, halves(2, 40), together=False)
        assert words in note
        assert note.startswith("one after another")
        for own, other in zip(found, alone, strict=True):
            assert all(torch.equal(own[name], other[name]) for name in own)
        if factory is batch_normed:
            assert not torch.equal(found[0]["1.running_mean"], found[1]["1.running_mean"])


def test_transformers_of_pictures_go_together_and_of_texts_say_why_not() -> None:
    """Attention over padded texts looks at its mask's numbers, which vmap refuses."""
    form = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "num_labels": 3,
    }
    rng = np.random.default_rng(0)

    def picture(values: torch.Tensor) -> Any:
        return lambda: {"pixel_values": values}

    def text(ids: torch.Tensor) -> Any:
        return lambda: {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    made = torch.from_numpy(rng.normal(size=(12, 3, 16, 16)).astype(np.float32))
    pictures = [Sample(picture(values), i % 3, str(i)) for i, values in enumerate(made)]
    texts = [Sample(text(torch.arange(1, 4 + i % 4)), i % 3, str(i)) for i in range(12)]
    with isolated_rng(0):
        vit = Predictor(ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, **form)).eval(), object())
        bert = Predictor(BertForSequenceClassification(BertConfig(vocab_size=20, **form)).eval(), object())
    recipe = SGD.model_copy(update={"epochs": 1})
    assert fitted(vit, pictures, halves(2, 12), recipe)[1] == ""
    assert "one after another" in fitted(bert, texts, halves(2, 12), recipe)[1]


def test_batches_made_on_the_way_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = predictor()
    rows = subject.encode_rows(data())
    found, _ = fitted(subject, rows, halves(2, 40))
    monkeypatch.setattr(model_stack, "READY_BYTES", 0)
    other, _ = fitted(subject, rows, halves(2, 40))
    assert all(torch.equal(found[0][name], other[0][name]) for name in found[0])


def test_dropout_is_seeded_and_differs_between_models() -> None:
    subject = predictor(dropout=0.5)
    rows = subject.encode_rows(data())
    state = torch.get_rng_state()
    numbers = np.random.get_state()[1].copy()
    found, note = fitted(subject, rows, halves(2, 40))
    again, _ = fitted(subject, rows, halves(2, 40))
    assert note == ""
    assert all(torch.equal(found[i][name], again[i][name]) for i in range(2) for name in found[i])
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(numbers, np.random.get_state()[1])
    same = modules(subject, 1)[0].state_dict()
    twins = modules(subject, 2)
    for twin in twins:
        twin.load_state_dict(same)
    train_stack(subject, twins, rows, np.ones((2, 40), dtype=bool), SGD, seeds=[3, 3])
    assert not torch.equal(*[twin.state_dict()["1.weight"] for twin in twins])  # one start, one order, other masks


def test_frozen_parameters_stay() -> None:
    subject = predictor()
    rows = subject.encode_rows(data())
    found = modules(subject, 2)
    for module in found:
        module[1].requires_grad_(False)
    before = states(found)
    train_stack(subject, found, rows, halves(2, 40), SGD, seeds=[0, 1])
    for own, was in zip(states(found), before, strict=True):
        assert torch.equal(own["1.weight"], was["1.weight"])
        assert not torch.equal(own["3.weight"], was["3.weight"])


def test_outputs_are_those_of_the_predictor() -> None:
    subject = predictor()
    rows = subject.encode_rows(data())
    assert torch.equal(outputs_of(subject, subject.model, rows, batch_size=7), subject.read(rows, batch_size=7)[1])


def test_bad_stacks_are_refused() -> None:
    subject = predictor()
    rows = subject.encode_rows(data())
    with pytest.raises(InputError, match="sees no row"):
        fitted(subject, rows, np.zeros((2, 40), dtype=bool))
    with pytest.raises(InputError, match="seeds"):
        train_stack(subject, modules(subject, 2), rows, halves(3, 40), SGD, seeds=[0, 1, 2])
    with pytest.raises(Diverged, match="model 0 of the stack"):
        fitted(subject, rows, halves(2, 40), SGD.model_copy(update={"learning_rate": 1e30, "max_grad_norm": 1e30}))
