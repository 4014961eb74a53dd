"""Shadow models: kept for every later request, balanced over the candidates, the same however they were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value, concatenate_datasets

from efface.data.request import Request
from efface.errors import ConfigError, InputError, ModelError
from efface.run.cost import Cost
from efface.subjects.factory import FactoryForm
from efface.subjects.predictor import Predictor
from efface.train.config import TrainConfig
from efface.train.engine import isolated_rng
from efface.train.model_stack import outputs_of
from efface.train.shadow_models import candidates, form_digest, keep_matrix, put_weights, request_rows, shadow_models

RECIPE = TrainConfig(
    learning_rate=0.1, epochs=2, batch_size=8, optimizer="sgd", weight_decay=0.0, schedule="constant", max_grad_norm=1e9
)


def data(n: int = 30, seed: int = 0, names: tuple[str, ...] = ("0", "1", "2")) -> Dataset:
    rng = np.random.default_rng(seed)
    kinds = Features(
        {"id": Value("string"), "features": List(Value("float32")), "label": ClassLabel(names=list(names))}
    )
    return Dataset.from_dict({
        "id": [f"{seed}-{i}" for i in range(n)], "features": list(rng.normal(size=(n, 6)).astype(np.float32)),
        "label": rng.integers(0, 3, n).tolist(),
    }, features=kinds)  # fmt: skip


def predictor(hidden: int = 8, seed: int = 0) -> Predictor:
    form = FactoryForm(
        factory="efface.subjects.networks:mlp", arguments={"inputs": 6, "outputs": 3, "hidden": [hidden]},
        labels=("0", "1", "2"),
    )  # fmt: skip
    with isolated_rng(seed):
        return Predictor(form.build().eval(), form=form)


def request_of(first: int, last: int) -> Request:
    """The same 30 rows, of which others are to be forgotten; the last ten were never seen."""
    whole = data()
    return Request(
        forget=whole.select(range(first, last)), holdout=whole.select(range(20, 30)),
        retain=whole.select([i for i in range(20) if not first <= i < last]),
    )  # fmt: skip


def asked(request: Request, cache: Path, **more: Any) -> Any:
    subject = more.pop("subject", None) or predictor()
    recipe = more.pop("recipe", RECIPE)
    return shadow_models(subject, request_rows(subject, request), recipe, cache=cache, **{"models": 4, **more})


def test_a_later_request_over_the_same_data_trains_nothing(tmp_path: Path) -> None:
    cost, later = Cost(phase="first"), Cost(phase="later")
    first = asked(request_of(0, 5), tmp_path, cost=cost)
    other = predictor(seed=7)  # another model of the same form
    second = asked(request_of(11, 19), tmp_path, subject=other, cost=later)
    assert (first.trained, second.trained) == (4, 0)
    assert cost.items > 0
    assert later.items == 0
    assert np.array_equal(first.logits, second.logits)
    rows = predictor().encode_rows(request_of(11, 19).forget)
    assert [first.targets[c] for c in first.columns(rows)] == [row.target for row in rows]
    assert np.array_equal(first.columns(rows), second.columns(rows))


def test_more_models_leave_those_that_are_there(tmp_path: Path) -> None:
    first = asked(request_of(0, 5), tmp_path, models=2)
    more = asked(request_of(0, 5), tmp_path, models=6)
    assert more.trained == 4
    assert np.array_equal(more.logits[:2], first.logits)
    assert np.array_equal(more.keep[:2], first.keep)
    whole = asked(request_of(0, 5), tmp_path / "other", models=6, together=1)
    assert more.logits == pytest.approx(whole.logits, abs=1e-5)  # in one stack, in two, or one by one


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": RECIPE.model_copy(update={"epochs": 3.0})}, {"seed": 1}, {"subject": predictor(hidden=9)},
        {"request": Request(forget=data(5, seed=3), retain=data(25))}, {"start": predictor(seed=5)},
    ],
)  # fmt: skip
def test_other_data_form_or_recipe_is_trained_anew(change: dict[str, Any], tmp_path: Path) -> None:
    first = asked(request_of(0, 5), tmp_path, models=2)
    request = change.pop("request", request_of(0, 5))
    second = asked(request, tmp_path, models=2, **change)
    assert (first.trained, second.trained) == (2, 2)
    assert first.folder != second.folder


def test_what_the_models_do_not_depend_on_trains_nothing(tmp_path: Path) -> None:
    asked(request_of(0, 5), tmp_path)
    recipe = RECIPE.model_copy(update={"seed": 9, "checkpoint_seconds": 1.0})
    assert asked(request_of(0, 5), tmp_path, recipe=recipe).trained == 0


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    first = asked(request_of(0, 5), tmp_path)
    path = first.folder / "0002.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    again = asked(request_of(0, 5), tmp_path)
    assert again.trained == 1
    assert again.logits == pytest.approx(first.logits, abs=1e-5)


def test_halves_and_their_complements() -> None:
    keep = keep_matrix(8, 31, seed=0)
    assert (keep.sum(axis=0) == 4).all()  # every candidate is in half of the models
    assert set(keep.sum(axis=1)) == {15, 16}
    assert np.array_equal(keep[::2], ~keep[1::2])
    assert np.array_equal(keep_matrix(4, 31, seed=0), keep[:4])
    assert not np.array_equal(keep[0], keep[2])
    with pytest.raises(ConfigError, match="even"):
        keep_matrix(3, 31, seed=0)


def test_logits_are_those_of_the_models_that_saw_their_half(tmp_path: Path) -> None:
    """What is kept says the same as the kept weights do; a long-trained model knows the labels of its half."""
    recipe = RECIPE.model_copy(update={"epochs": 60.0, "learning_rate": 0.5})
    subject = predictor(hidden=64)
    found = asked(request_of(0, 5), tmp_path, subject=subject, recipe=recipe, weights=True)
    rows = candidates(request_rows(subject, request_of(0, 5)))
    for index in range(4):
        model = found.predictor(index, subject)
        assert torch.equal(outputs_of(subject, model.model, rows), torch.from_numpy(found.logits[index]))
    right = found.logits.argmax(-1) == found.targets
    assert right[found.keep].mean() == 1.0
    assert right[~found.keep].mean() < 0.7  # labels are random


def test_weights_are_kept_when_asked_for(tmp_path: Path) -> None:
    first = asked(request_of(0, 5), tmp_path)
    with pytest.raises(InputError, match="not kept"):
        first.predictor(0, predictor())
    second = asked(request_of(0, 5), tmp_path, weights=True)
    assert second.trained == 4  # trained again, once
    assert asked(request_of(0, 5), tmp_path, weights=True).trained == 0
    assert asked(request_of(0, 5), tmp_path).trained == 0


def test_equal_rows_are_one_candidate_and_foreign_sets_stay_out(tmp_path: Path) -> None:
    whole = data()
    twice = concatenate_datasets([whole.select(range(20)), whole.select(range(3))])
    subject = predictor()
    foreign = data(6, seed=5, names=("a", "b", "c"))
    request = Request(
        forget=whole.select(range(20, 25)), retain=twice, holdout=whole.select(range(25, 28)),
        evaluate={"retain": twice.select(range(4)), "forget_test": whole.select(range(28, 30)), "downstream": foreign,
                  "transfer": foreign, "downstream_same": data(6, seed=6)},
    )  # fmt: skip
    assert len(candidates(request_rows(subject, request))) == 30
    found = shadow_models(subject, request_rows(subject, request), RECIPE, models=2, cache=tmp_path)
    columns = found.columns(subject.encode_rows(twice))
    assert np.array_equal(columns[:3], columns[20:])
    with pytest.raises(InputError, match="row 0 is not among the 30 candidates"):
        found.columns(subject.encode_rows(data(3, seed=9)))


def test_global_generators_and_the_subject_are_untouched(tmp_path: Path) -> None:
    subject = predictor()
    before, state, numbers = subject.digest, torch.get_rng_state(), np.random.get_state()[1].copy()
    asked(request_of(0, 5), tmp_path, subject=subject)
    subject.changed()
    assert subject.digest == before
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(numbers, np.random.get_state()[1])


def test_models_may_start_from_a_checkpoint(tmp_path: Path) -> None:
    start = predictor(seed=5)
    start.model[1].requires_grad_(False)
    found = asked(request_of(0, 5), tmp_path, start=start, weights=True, models=2)
    for index in range(2):
        weights = found.predictor(index, predictor()).weights()
        assert torch.equal(weights["1.weight"], start.weights()["1.weight"])
        assert not torch.equal(weights["3.weight"], start.weights()["3.weight"])
    start.model[1].requires_grad_(True)
    assert (
        asked(request_of(0, 5), tmp_path, start=start, models=2).trained == 2
    )  # what may move is part of the settings


def test_a_form_is_known_by_what_it_is_built_like() -> None:
    assert form_digest(predictor(seed=1)) == form_digest(predictor(seed=2))
    assert form_digest(predictor(hidden=8)) != form_digest(predictor(hidden=9))


def test_bad_input_is_refused(tmp_path: Path) -> None:
    subject = predictor()
    with pytest.raises(InputError, match="3 distinct rows"):
        shadow_models(subject, subject.encode_rows(data(3)), RECIPE, models=2, cache=tmp_path)
    with pytest.raises(ModelError, match="does not fit"):
        put_weights(subject, {"1.weight": torch.zeros(1)})
