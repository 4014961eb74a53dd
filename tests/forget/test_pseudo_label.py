"""Pseudo-labels: the choice against a loop, which classes are no choice, no memory between runs, only the forget rows train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efface.data.request import Request
from efface.errors import ConfigError, RequestError
from efface.forget.edit import Edit
from efface.forget.method import find_method
from efface.forget.objectives.pseudo_label import METHOD, best_retained, relabelled
from efface.lab.classified import labelled, of_class
from efface.subjects.factory import FactoryForm
from efface.subjects.predictor import Predictor

CLASSES, WIDTH = 4, 6


def rows(n: int = 48, seed: int = 0, first: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    return labelled(
        3 * np.eye(WIDTH)[labels] + rng.normal(0, 0.5, (n, WIDTH)), labels, [str(first + i) for i in range(n)]
    )


def model(seed: int = 0) -> Predictor:
    form = FactoryForm(factory="efface.subjects.networks:mlp", labels=tuple("0123"),
                       arguments={"inputs": WIDTH, "outputs": CLASSES, "hidden": [8]})  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Predictor(form.build().eval(), form=form)


def class_request() -> Request:
    data = rows()
    return Request(forget=of_class(data, 1), retain=of_class(data, 1, False))


def fit(subject: Any, request: Request, folder: Path, **values: Any) -> Edit:
    config = METHOD.configure({"epochs": 3, "batch_size": 4, "learning_rate": 0.1, **values})
    return METHOD.fit(subject, request, config, work=folder / "work", out=folder / "edit").edit


def test_the_best_retained_class_by_a_loop() -> None:
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    labels = [i % 6 for i in range(50)]
    gone = {1, 4}
    found = best_retained(logits, labels, gone)
    for row, label, chosen in zip(logits, labels, found.tolist(), strict=True):
        allowed = [k for k in range(6) if k not in gone and k != label]
        assert chosen == max(allowed, key=lambda k, row=row: float(row[k]))
    assert logits.isfinite().all(), "the logits themselves stay as they are"


def test_which_classes_are_no_choice() -> None:
    subject, data = model(), rows()
    forget = subject.encode_rows(data.select(range(12)))
    keep = subject.encode_rows(data.select(range(12, 48)))
    some = relabelled(subject, forget, keep)
    assert all(new.target != old.target for new, old in zip(some, forget, strict=True)), (
        "rows: another class than their own"
    )
    assert [new.key for new in some] == [old.key for old in forget]
    two = subject.encode_rows(data.select([i for i in range(48) if i % 4 in (0, 1)]))
    assert {row.target for row in relabelled(subject, two, None)} <= {2, 3}, (
        "without a retain set, no class of the forget set"
    )
    with pytest.raises(RequestError, match=r"no class is left for forget row 0 .*give a retain set"):
        relabelled(subject, forget, None)


def test_a_second_run_in_one_process_asks_its_own_model() -> None:
    """The official code keeps the first run's original on the function object."""
    data = of_class(rows(), 1)
    models = [model(0), model(1)]
    found = []
    for subject in models:
        own = subject.encode_rows(data)
        _, logits = subject.read(own)
        logits[:, 1] = -torch.inf
        assert [row.target for row in relabelled(subject, own, None)] == logits.argmax(1).tolist()
        found.append(logits.argmax(1).tolist())
    assert found[0] != found[1], "two models with other favourites"


def test_only_the_forget_rows_are_trained_on(tmp_path: Path) -> None:
    """Other retain rows of the same classes change nothing; a retain term does."""
    request = class_request()
    other = Request(forget=request.forget, retain=of_class(rows(40, seed=5, first=100), 1, False))
    edits = [fit(model(), r, tmp_path / name) for r, name in ((request, "a"), (other, "b"))]
    assert edits[0].facts.edited_digest == edits[1].facts.edited_digest
    assert edits[0].facts.config["retain_term"] == "none"
    held = fit(model(), request, tmp_path / "c", retain_term="nll")
    assert held.facts.edited_digest != edits[0].facts.edited_digest


def test_it_learns_the_new_labels_and_comes_off(tmp_path: Path) -> None:
    subject, request = model(), class_request()
    digest = subject.digest
    new = [row.target for row in relabelled(subject, subject.encode_rows(request.forget), None)]
    edit = fit(subject, request, tmp_path, epochs=40)
    subject.changed()
    assert subject.digest == digest
    edit.apply(subject)
    _, logits = subject.read(subject.encode_rows(request.forget))
    assert logits.argmax(1).tolist() == new
    edit.remove(subject)
    assert subject.digest == digest


def test_scope_mask_ranks_by_the_new_labels(tmp_path: Path) -> None:
    edit = fit(model(), class_request(), tmp_path, scope="mask", mask="gradient", density=0.2)
    assert (edit.folder / "mask.safetensors").exists()


def test_other_kinds_are_refused() -> None:
    method = find_method("pseudo-label")

    class Number:
        kind = "regressor"

    with pytest.raises(ConfigError, match=r"pseudo-label on a regressor; expected a classifier"):
        method.check_subject(Number())  # type: ignore[arg-type]
