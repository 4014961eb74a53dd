"""SCRUB: the distillation by a loop, two steps by hand, the order of passes, every row once a pass, what it needs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from efface.data.request import Request
from efface.errors import ConfigError, RequestError
from efface.forget.edit import Edit
from efface.forget.method import find_method
from efface.forget.objectives.scrub import METHOD, Passes, distillation, loss, passes_of, teacher_logp
from efface.lab.classified import labelled, of_class
from efface.subjects.factory import FactoryForm
from efface.subjects.networks import mlp
from efface.subjects.predictor import Predictor
from efface.train.streams import Stream, collator_of

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


def test_distillation_by_a_loop() -> None:
    rng = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(5, 7, generator=rng, dtype=torch.float64) for _ in range(2))
    for T in (1.0, 4.0):
        found = distillation(student, teacher, T)
        for b in range(5):
            q = [float(v) for v in torch.exp(teacher[b] / T) / torch.exp(teacher[b] / T).sum()]
            p = [float(v) for v in torch.exp(student[b] / T) / torch.exp(student[b] / T).sum()]
            expected = T**2 * sum(a * (np.log(a) - np.log(c)) for a, c in zip(q, p, strict=True))
            assert float(found[b]) == pytest.approx(expected)
    assert torch.allclose(distillation(student, teacher, 4.0), distillation(student, teacher.log_softmax(-1), 4.0))
    assert distillation(teacher, teacher, 4.0).abs().max() < 1e-12


def test_the_teacher_is_the_model_before() -> None:
    subject, asked = model(), request()
    rows = subject.encode_rows(asked.forget)
    _, logits = subject.read(rows)
    assert torch.allclose(teacher_logp(subject, rows), logits.log_softmax(-1), atol=1e-6)


def test_passes_and_their_order() -> None:
    config = METHOD.configure
    assert passes_of(config({"epochs": 2})) == ["retain", "forget"] * 2, (
        "the benchmark's: each epoch ends on the forget pass"
    )
    assert passes_of(config({"epochs": 2, "order": "forget-first"})) == ["forget", "retain"] * 2
    assert passes_of(config({"epochs": 3, "order": "forget-first", "forget_epochs": 1})) == [
        "forget", "retain", "retain", "retain",
    ]  # fmt: skip


def test_every_row_counts_once_a_pass() -> None:
    """No batch is left out for being smaller than the others (the benchmark's loops skip it)."""
    subject, asked = model(), request()
    assert asked.retain is not None
    streams = {"retain": Stream(subject.encode_rows(asked.retain)), "forget": Stream(subject.encode_rows(asked.forget))}
    schedule = Passes(streams, ["retain", "forget", "retain"], batch_size=4, seed=3)
    assert len(schedule) == 24 + 8 + 24
    assert schedule.steps == 14
    keys: list[Counter[str]] = [Counter(), Counter(), Counter()]
    for step in range(schedule.steps):
        items = [schedule[4 * step + i] for i in range(4)]
        names = {name for item in items for name in item}
        assert len(names) == 1, "a batch holds one kind of rows"
        (name,) = names
        assert name == ("forget" if 6 <= step < 8 else "retain")
        shares = [item[name]["row_share"] for item in items]
        assert sum(shares) == pytest.approx(1.0), "the mean over the rows of the step"
        keys[0 if step < 6 else 1 if step < 8 else 2].update(
            item[name]["row"].key for item in items if item[name]["row_share"]
        )
    for found, own in zip(keys, ("retain", "forget", "retain"), strict=True):
        assert found == Counter(row.key for row in streams[own].rows)
    orders = [[next(iter(schedule[i].values()))["row"].key for i in part] for part in (range(23), range(32, 55))]
    assert orders[0] != orders[1], "a fresh order in each pass"


def test_two_steps_by_hand(tmp_path: Path) -> None:
    """One retain step and one forget step over whole sets, against autograd on the equations."""
    subject, asked = model(), request()
    assert asked.retain is not None
    before = {name: t.detach().clone() for name, t in subject.weights().items()}
    parts = {name: subject.encode_rows(data) for name, data in (("retain", asked.retain), ("forget", asked.forget))}
    xs = {name: torch.stack([row.make()["x"] for row in rows]) for name, rows in parts.items()}
    ys = torch.tensor([row.target for row in parts["retain"]])
    net = mlp(WIDTH, CLASSES, (8, 6))
    net.load_state_dict(before)
    teacher = {name: net(x).detach() for name, x in xs.items()}
    T, rate = 4.0, 0.05

    def apart(name: str) -> torch.Tensor:
        q, p = (teacher[name] / T).softmax(-1), (net(xs[name]) / T).log_softmax(-1)
        return T**2 * (q * (q.log() - p)).sum(-1).mean()

    for value in (lambda: nn.functional.cross_entropy(net(xs["retain"]), ys) + 0.5 * apart("retain"),
                  lambda: -apart("forget")):  # fmt: skip
        gradients = torch.autograd.grad(value(), list(net.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                parameter -= rate * gradient
    edit = fit("scrub", subject, asked, tmp_path, epochs=1, batch_size=64, learning_rate=rate, kl_weight=0.5)
    edit.apply(subject)
    for name, expected in net.state_dict().items():
        assert torch.allclose(subject.weights()[name], expected, atol=1e-6), name


def test_it_leaves_the_teacher_on_the_forget_set_more(tmp_path: Path) -> None:
    """A class to forget, of a model that was trained on all three."""
    subject, plain = model(), request(60, 30)
    assert plain.retain is not None
    asked = Request(forget=of_class(plain.forget, 0), retain=of_class(plain.retain, 0, False))
    assert asked.retain is not None
    whole = Request(forget=asked.retain, retain=plain.forget)
    fit("finetune", subject, whole, tmp_path / "warm", epochs=20, batch_size=8, learning_rate=0.1,
        optimizer="sgd").apply(subject)  # fmt: skip
    digest = subject.digest
    rows = {name: subject.encode_rows(data) for name, data in (("retain", asked.retain), ("forget", asked.forget))}
    teacher = {name: teacher_logp(subject, part) for name, part in rows.items()}
    edit = fit("scrub", subject, asked, tmp_path, epochs=20, batch_size=8, learning_rate=0.02, temperature=1.0)
    assert subject.digest == digest
    edit.apply(subject)
    apart = {name: float(distillation(subject.read(part)[1], teacher[name], 1.0).mean()) for name, part in rows.items()}
    assert apart["forget"] > 3 * apart["retain"]
    edit.remove(subject)
    assert subject.digest == digest


def test_without_the_cross_entropy_the_student_never_leaves(tmp_path: Path) -> None:
    """At the start student and teacher are one, where the KL has no gradient: only the retain set's CE sets it in motion."""
    subject = model()
    before = {name: t.detach().clone() for name, t in subject.weights().items()}
    edit = fit("scrub", subject, request(), tmp_path, epochs=2, ce_weight=0.0)
    edit.apply(subject)
    assert all(torch.allclose(t, before[name], atol=1e-4) for name, t in subject.weights().items())


def test_micro_batches_give_the_same(tmp_path: Path) -> None:
    edits = []
    for name, micro in (("a", None), ("b", 2)):
        subject = model()
        edit = fit("scrub", subject, request(), tmp_path / name, epochs=2, batch_size=6, micro_batch_size=micro)
        edit.apply(subject)
        edits.append({key: t.detach().clone() for key, t in subject.weights().items()})
    for key, tensor in edits[0].items():
        assert torch.allclose(tensor, edits[1][key], atol=1e-6)


def test_the_loss_says_which_pass_it_was() -> None:
    subject, asked = model(), request()
    rows = subject.encode_rows(asked.forget)
    schedule = Passes(
        {"forget": Stream(rows, {"teacher": teacher_logp(subject, rows)})}, ["forget"], batch_size=7, seed=0
    )
    batch = collator_of(subject)([schedule[i] for i in range(7)])
    value, numbers = loss(METHOD.configure(), subject.model, batch)
    assert set(numbers) == {"forget_kl"}
    assert float(value.detach()) == pytest.approx(0, abs=1e-5), "the student is still its teacher"


def test_scrub_needs_a_retain_set_and_a_classifier(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="scrub without a retain set"):
        fit("scrub", model(), Request(forget=request().forget), tmp_path)
    with pytest.raises(ConfigError, match="epochs"):
        METHOD.configure({"epochs": 1.5})
