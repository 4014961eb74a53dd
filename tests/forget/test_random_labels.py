"""Random labels: what may be drawn, in which order the rows come, one step against a plain loop, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.data.request import Request
from efface.errors import ConfigError, RequestError
from efface.forget.edit import Edit
from efface.forget.objectives.random_labels import METHOD, RandomLabelsConfig, Relabelled, label_choices
from efface.lab.classified import labelled
from efface.learn.recipes.classifier import ClassifierConfig, new_model
from efface.subjects.predictor import Predictor
from efface.subjects.samples import Sample

CLASSES = 5
PLAIN = {"learning_rate": 0.1, "batch_size": 8, "epochs": 2, "momentum": 0.0, "weight_decay": 0.0}


def rows(labels: list[int], seed: int = 0) -> Any:
    """Rows of these classes, alike within a class, from the same centres whatever the seed."""
    centres = np.random.default_rng(99).normal(size=(CLASSES, 4))
    noise = np.random.default_rng(seed).normal(size=(len(labels), 4))
    ids = [f"{seed}-{i}" for i in range(len(labels))]
    return labelled(centres[labels] + 0.3 * noise, labels, ids, [str(i) for i in range(CLASSES)])


def subject_of(data: Any) -> Predictor:
    return new_model(ClassifierConfig(arguments={"hidden": [8]}), data)


def class_request(forgotten: int = 2) -> Request:
    """Class forgetting: 12 rows of one class, 28 of the others."""
    others = [label for label in range(CLASSES) if label != forgotten]
    return Request(forget=rows([forgotten] * 12), retain=rows(others * 7, seed=1))


def row_request() -> Request:
    """Rows of every class on both sides."""
    return Request(forget=rows([0, 1, 2, 3, 4] * 2), retain=rows([0, 1, 2, 3, 4] * 6, seed=1))


def drawn(request: Request, **values: Any) -> tuple[list[tuple[int, int]], Any]:
    """(own label, label drawn) wherever a forget row comes, and the run."""
    subject = subject_of(request.forget)
    config = METHOD.configure({**PLAIN, **values})
    assert isinstance(config, RandomLabelsConfig)
    run = METHOD.prepare(subject, request, config)
    own = {row.key: row.target for row in subject.encode_rows(request.forget)}
    found = [run.schedule.row("train", i) for i in range(len(run.schedule))]
    return [(int(own[row.key]), int(row.target)) for row in found if row.key in own], run


def fit(request: Request, folder: Path, **values: Any) -> tuple[Edit, Predictor]:
    subject = subject_of(request.forget)
    config = METHOD.configure({**PLAIN, **values})
    return METHOD.fit(subject, request, config, work=folder / "work", out=folder / "edit").edit, subject


@pytest.mark.parametrize("order", ["mixed", "sequential"])
def test_never_the_forgotten_class_and_never_the_own_label(order: str) -> None:
    pairs, _ = drawn(class_request(2), epochs=40, order=order)
    assert len(pairs) >= 400
    assert Counter(label for _, label in pairs).keys() == {0, 1, 3, 4}
    pairs, _ = drawn(row_request(), epochs=60, order=order)
    assert all(own != label for own, label in pairs)
    assert {label for own, label in pairs if own == 0} == {1, 2, 3, 4}


def test_uniform_and_drawn_anew_each_time() -> None:
    request = Request(forget=rows([2] * 12), retain=rows([0, 1, 3, 4] * 7, seed=1))
    pairs, run = drawn(request, epochs=200)
    counts = Counter(label for _, label in pairs)
    expected = len(pairs) / 4
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 16.3, "chi square, 3 degrees, p = 0.001"
    first = [run.schedule.row("train", i) for i in range(len(run.schedule)) if run.schedule.plan["train"][i] == 0]
    assert len({row.target for row in first[:20]}) > 1, "one row, other labels in other epochs"


def test_any_draws_as_the_published_code_does() -> None:
    pairs, _ = drawn(class_request(2), epochs=60, labels="any")
    assert {label for _, label in pairs} == set(range(CLASSES)), "the true label, and here the forgotten class, too"


@settings(max_examples=60, deadline=None)
@given(kept=st.sets(st.integers(0, 9)), label=st.integers(0, 9))
def test_choices_by_definition(kept: set[int], label: int) -> None:
    assert label_choices(label, kept, 10, "other") == [y for y in range(10) if y in kept and y != label]
    assert label_choices(label, kept, 10, "any") == list(range(10))


def test_sequential_has_pure_batches_and_every_row_equally_often() -> None:
    samples = [Sample(dict, 0, str(i)) for i in range(40)]
    parts = (samples[:10], samples[10:], [[1, 2]] * 10)
    schedule = Relabelled(*parts, order="sequential", epochs=4, batch_size=8, seed=3)
    rows_of = [schedule.plan["train"][i : i + 8] for i in range(0, len(schedule), 8)]
    assert schedule.steps == 4 * (2 + 4)
    for step, batch in enumerate(rows_of):
        assert all((index < 10) == (step % 6 < 2) for index in batch), "two batches to forget, then four to keep"
    counts = Counter(index for batch in rows_of for index in batch)
    assert set(counts) == set(range(40))
    for part in (range(10), range(10, 40)):
        seen = [counts[index] for index in part]
        assert max(seen) - min(seen) <= 1
    half = Relabelled(*parts, order="sequential", epochs=0.5, batch_size=8, seed=3)
    assert half.plan["train"] == schedule.plan["train"][: len(half)]


@pytest.mark.parametrize("order", ["mixed", "sequential"])
def test_the_steps_against_a_plain_loop(order: str, tmp_path: Path) -> None:
    request = row_request()
    edit, subject = fit(request, tmp_path, order=order, labels="any")
    _, run = drawn(request, order=order, labels="any")
    slow = subject_of(request.forget).model
    for start in range(0, len(run.schedule), 8):
        batch = [run.schedule.row("train", i) for i in range(start, start + 8)]
        loss = torch.zeros(())
        for row in batch:
            logits = slow(row.make()["x"].unsqueeze(0))[0]
            loss = loss - (logits[row.target] - logits.exp().sum().log()) / 8
        slow.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in slow.parameters():
                parameter -= 0.1 * parameter.grad
    edit.apply(subject)
    for ours, theirs in zip(subject.model.parameters(), slow.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_same_seed_same_bits_and_the_subject_comes_back(tmp_path: Path) -> None:
    request = class_request()
    found = []
    for name, values in (
        ("a", {}),
        ("b", {}),
        ("c", {"seed": 1}),
        ("d", {"order": "sequential"}),
        ("e", {"labels": "any"}),
    ):
        edit, subject = fit(request, tmp_path / name, epochs=1, **values)
        subject.changed()
        assert subject.digest == edit.facts.base_digest
        found.append(edit.facts.edited_digest)
    assert found[0] == found[1]
    assert len(set(found)) == 4


def test_what_has_no_other_label_is_refused(tiny: Any, request_: Any, tmp_path: Path) -> None:
    numbers = Dataset.from_dict({"id": ["a", "b"], "features": [[0.0, 1.0], [1.0, 0.0]], "target": [0.5, 1.5]})
    regressor = new_model(ClassifierConfig(arguments={"hidden": [4]}), numbers)
    parts = Request(forget=numbers.select([0]), retain=numbers.select([1]))
    for subject, request in ((regressor, parts), (tiny, request_)):
        with pytest.raises(ConfigError, match="no other one to draw"):
            METHOD.fit(subject, request, METHOD.configure(), work=tmp_path / "work", out=tmp_path / "edit")
    alone = Request(forget=rows([0, 0, 1]), retain=rows([1, 1], seed=1))
    with pytest.raises(RequestError, match=r"forget row 2 \(class 1\)"):
        fit(alone, tmp_path)
    two = Request(forget=rows([0, 0]), retain=rows([1, 1], seed=1))
    assert {label for _, label in drawn(two, epochs=4)[0]} == {1}, "of two classes the other one is left"
    with pytest.raises(RequestError, match="without a retain set"):
        fit(Request(forget=rows([0, 1])), tmp_path)
    assert not (tmp_path / "edit").exists()
