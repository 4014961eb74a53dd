"""Gaussian amnesiac: where the draws come from, that they are drawn once, what leaves the range, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import concatenate_datasets
from predictor_worlds import request_of
from row_models import model_of

from efface.data.request import Request
from efface.errors import ConfigError, RequestError
from efface.forget.objectives import finetune, gaussian_amnesiac
from efface.forget.objectives.gaussian_amnesiac import METHOD, gaussian_targets
from efface.train.streams import Schedule

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 20}


def fit(subject: Any, request: Request, folder: Path, **values: Any) -> Any:
    config = METHOD.configure({**QUICK, **values})
    return METHOD.fit(subject, request, config, work=folder / "work", out=folder / "edit")


def test_draws_have_the_mean_and_deviation_of_the_data() -> None:
    y = np.random.default_rng(0).gamma(2.0, 3.0, 400)
    found = gaussian_targets(y, 100_000, seed=0)
    assert (found.mu, found.sigma) == (pytest.approx(y.mean()), pytest.approx(y.std()))
    assert found.values.mean() == pytest.approx(y.mean(), abs=0.05)
    assert found.values.std() == pytest.approx(y.std(), abs=0.05)
    assert np.array_equal(gaussian_targets(y, 50, seed=3).values, gaussian_targets(y, 50, seed=3).values)
    assert not np.array_equal(gaussian_targets(y, 50, seed=3).values, gaussian_targets(y, 50, seed=4).values)


def test_draws_outside_the_range_are_counted_and_clipped_only_if_asked() -> None:
    ages = np.array([0.0, 1.0, 2.0, 60.0])
    plain = gaussian_targets(ages, 1000, seed=0)
    assert plain.values.min() < 0, "negative ages"
    assert plain.outside == pytest.approx(np.mean((plain.values < 0) | (plain.values > 60)))
    assert 0 < plain.outside < 1
    clipped = gaussian_targets(ages, 1000, seed=0, clip=(0.0, 60.0))
    assert clipped.values.min() == 0
    assert clipped.values.max() == 60
    assert clipped.outside == plain.outside, "the share is that of the draws, before clipping"
    with pytest.raises(ConfigError, match="lowest valid target"):
        METHOD.configure({"clip": (5, 0)})


def test_equal_targets_are_no_gaussian() -> None:
    with pytest.raises(RequestError, match="5 targets that all are 2; expected targets that differ"):
        gaussian_targets([2.0] * 5, 3, seed=0)


@pytest.mark.parametrize("source", ["all", "retain"])
def test_published_statistics_carry_the_forget_set(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, request = model_of("regressor"), request_of("rows", numbers=True)
    assert request.retain is not None
    schedules: list[Schedule] = []

    def no_training(method: Any, subject: Any, schedule: Schedule, *_: Any, **__: Any) -> Any:
        schedules.append(schedule)
        return SimpleNamespace(edit=None, costs=[], log=[])

    monkeypatch.setattr(gaussian_amnesiac, "train_edit", no_training)
    found = fit(subject, request, tmp_path, stats_from=source)
    own = [*request.retain["target"], *(request.forget["target"] if source == "all" else [])]
    assert found.log[0]["mu"] == pytest.approx(np.mean(own))
    assert found.log[0]["sigma"] == pytest.approx(np.std(own))
    # every row comes with one target in all passes; retain rows with their own
    given: dict[str, set[float]] = {}
    for i in range(len(schedules[0])):
        row = schedules[0].row("train", i)
        given.setdefault(row.key, set()).add(row.target)
    assert all(len(values) == 1 for values in given.values()), "drawn once"
    for data, same in ((request.retain, True), (request.forget, False)):
        for row in subject.encode_rows(data):
            assert (given[row.key] == {row.target}) == same


def test_it_is_training_on_the_edited_set_bit_for_bit(tmp_path: Path) -> None:
    subject, request = model_of("regressor"), request_of("rows", numbers=True)
    digest = subject.digest
    assert request.retain is not None
    assert request.holdout is not None
    draws = gaussian_targets([*request.forget["target"], *request.retain["target"]], len(request.forget), seed=0)
    relabelled = request.forget.remove_columns("target").add_column("target", draws.values.tolist())
    edited = Request(forget=request.holdout, retain=concatenate_datasets([relabelled, request.retain]))
    made = fit(subject, request, tmp_path / "a")
    subject.changed()
    assert subject.digest == digest
    same = {
        **QUICK,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "warmup_ratio": 0.0,
        "schedule": "constant",
    }
    config = finetune.METHOD.configure({**same, "max_grad_norm": 1e9})
    other = finetune.METHOD.fit(subject, edited, config, work=tmp_path / "work", out=tmp_path / "b")
    assert made.edit.facts.edited_digest == other.edit.facts.edited_digest
    assert made.log[0].keys() == {"mu", "sigma", "outside"}


def test_what_is_refused(tmp_path: Path) -> None:
    subject, request = model_of("regressor"), request_of("rows", numbers=True)
    with pytest.raises(ConfigError, match="gaussian-amnesiac on a classifier; expected a regressor"):
        fit(model_of("mlp"), request_of(), tmp_path)
    with pytest.raises(RequestError, match="without a retain set"):
        fit(subject, Request(forget=request.forget), tmp_path)
    values = list(request.forget["target"])
    values[3] = float("inf")
    bad = request.forget.remove_columns("target").add_column("target", values)
    with pytest.raises(RequestError, match="forget row 3, column 'target': inf"):
        fit(subject, Request(forget=bad, retain=request.retain), tmp_path)
    assert not (tmp_path / "edit").exists()
