"""LiRA, RMIA and U-LiRA on a model that knows its rows, on one that never saw them, and against plain loops."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value, concatenate_datasets

from efface.audit.attacks import u_lira
from efface.audit.attacks.shadow_attacks import AuditedRows, judged, logp_of, phi_of, shadow_attacks
from efface.audit.attacks.u_lira import forget_matrix, pipelines, unlearning_attack
from efface.audit.predictions import Predictions, predictions_of
from efface.data.request import Request
from efface.errors import ConfigError, InputError
from efface.subjects.factory import FactoryForm
from efface.subjects.predictor import Predictor
from efface.train.config import TrainConfig
from efface.train.engine import isolated_rng
from efface.train.model_stack import train_stack
from efface.train.shadow_models import ShadowModels, request_rows, shadow_models

RECIPE = TrainConfig(
    learning_rate=0.02,
    epochs=40,
    batch_size=30,
    optimizer="adam",
    weight_decay=0.0,
    schedule="constant",
    max_grad_norm=1e9,
)
KINDS = Features(
    {"id": Value("string"), "features": List(Value("float32")), "label": ClassLabel(names=["0", "1", "2"])}
)
FORM = FactoryForm(
    factory="efface.subjects.networks:mlp",
    arguments={"inputs": 6, "outputs": 3, "hidden": [48]},
    labels=("0", "1", "2"),
)


def data(n: int, seed: int = 0) -> Dataset:
    """Labels are random: a model that has them right has seen them."""
    rng = np.random.default_rng(seed)
    columns = {"id": [f"{seed}-{i}" for i in range(n)], "features": list(rng.normal(size=(n, 6)).astype(np.float32))}
    return Dataset.from_dict({**columns, "label": rng.integers(0, 3, n).tolist()}, features=KINDS)


def trained(rows: Dataset, seed: int) -> Predictor:
    with isolated_rng(seed):
        made = Predictor(FORM.build().eval(), form=FORM)
    train_stack(made, [made.model], made.encode_rows(rows), np.ones((1, len(rows)), dtype=bool), RECIPE, seeds=[seed])
    return made


@dataclass
class World:
    request: Request
    original: Predictor
    retrained: Predictor
    shadows: ShadowModels
    rows: AuditedRows
    cache: Path

    def tables(self, model: Predictor) -> dict[str, Predictions]:
        assert self.request.holdout is not None
        return {
            name: predictions_of(model, part)
            for name, part in (("forget", self.request.forget), ("holdout", self.request.holdout))
        }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    whole = data(120)
    request = Request(
        forget=whole.select(range(30)), retain=whole.select(range(30, 60)), holdout=whole.select(range(60, 120))
    )
    assert request.retain is not None
    original = trained(concatenate_datasets([request.forget, request.retain]), seed=1)
    cache = tmp_path_factory.mktemp("shadows")
    shadows = shadow_models(original, request_rows(original, request), RECIPE, models=16, weights=True, cache=cache)
    rows = AuditedRows.of(original, request, shadows)
    return World(request, original, trained(request.retain, seed=2), shadows, rows, cache)


def test_a_model_that_saw_the_rows_is_told_from_one_that_did_not(world: World) -> None:
    """One sign convention: larger = member, for all four."""
    seen = shadow_attacks(world.rows, world.tables(world.original), world.shadows)
    never = shadow_attacks(world.rows, world.tables(world.retrained), world.shadows)
    assert set(seen["attacks"]) == {"lira_online", "lira_offline", "rmia_online", "rmia_offline"}
    for name in seen["attacks"]:
        assert seen["attacks"][name]["auc"]["value"] > 0.75, name
        assert 0.35 < never["attacks"][name]["auc"]["value"] < 0.65, name


def test_results_are_json_with_intervals_and_say_what_is_not_measurable(world: World) -> None:
    found = json.loads(
        json.dumps(shadow_attacks(world.rows, world.tables(world.original), world.shadows), allow_nan=False)
    )
    own = found["attacks"]["lira_online"]
    assert own["auc"]["low"] < own["auc"]["value"] <= own["auc"]["high"]
    assert (own["n_members"], own["n_nonmembers"]) == (30, 60)
    assert (len(own["scores"]["members"]), len(own["scores"]["nonmembers"])) == (30, 60)
    assert own["tpr"]["0.01"]["estimate"] is None
    assert "60 non-members" in own["tpr"]["0.01"]["reason"]
    many = judged(np.arange(50) + 900.5, np.arange(1000))
    assert many["tpr"]["0.01"]["estimate"]["value"] == 0.0
    assert judged(np.full(50, 2000.0), np.arange(1000))["tpr"]["0.001"]["estimate"]["value"] == 1.0
    assert judged(np.full(50, 2000.0), np.arange(999))["tpr"]["0.001"]["estimate"] is None
    assert found["pooled_variance"]
    assert found["models"] == 16


def test_scores_equal_plain_loops_over_rows_and_models(world: World) -> None:
    """LiRA online with pooled variances, each row's candidate found by what it shows."""
    tables = world.tables(world.original)
    found = shadow_attacks(world.rows, tables, world.shadows)["attacks"]["lira_online"]["scores"]["members"]
    keys = list(world.shadows.places)
    order = [world.shadows.places[key] for key in keys]
    sides: dict[bool, list[list[float]]] = {True: [], False: []}
    phis = []
    assert world.request.holdout is not None
    samples = [
        row for part in (world.request.forget, world.request.holdout) for row in world.original.encode_rows(part)
    ]
    for sample in samples:
        column = next(
            place for key, place in zip(keys, order, strict=True) if key == (sample.key, float(sample.target))
        )
        label = int(sample.target)
        for side in (True, False):
            sides[side].append([
                log_odds(world.shadows.logits[k, column].tolist(), label)
                for k in range(16) if bool(world.shadows.keep[k, column]) == side
            ])  # fmt: skip
    for table in (tables["forget"], tables["holdout"]):
        phis += [log_odds(row.tolist(), int(y)) for row, y in zip(table.outputs, table.targets, strict=True)]
    std = {side: pooled(groups) for side, groups in sides.items()}
    for i in range(30):
        terms = [
            -0.5 * ((phis[i] - statistics.fmean(sides[s][i])) / std[s]) ** 2 - math.log(std[s]) for s in (True, False)
        ]
        assert found[i] == pytest.approx(terms[0] - terms[1], rel=1e-6)


def log_odds(logits: list[float], label: int) -> float:
    others = [value for index, value in enumerate(logits) if index != label]
    top = max(others)
    return logits[label] - top - math.log(sum(math.exp(value - top) for value in others))


def pooled(groups: list[list[float]]) -> float:
    squares = sum((x - statistics.fmean(group)) ** 2 for group in groups for x in group)
    return math.sqrt(squares / sum(len(group) - 1 for group in groups))


def test_numbers_have_scores_too() -> None:
    outputs, targets = np.array([[[1.0], [2.0]], [[0.0], [5.0]]]), np.array([1.5, 2.0])
    assert phi_of(outputs, targets, "regression").tolist() == [[-0.5, 0.0], [-1.5, -3.0]]
    assert logp_of(outputs, targets, "regression").tolist() == [[-0.125, 0.0], [-1.125, -4.5]]


def test_logp_is_the_log_probability_of_the_label() -> None:
    logits = np.array([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]])
    slow = [math.log(math.exp(2.0) / sum(map(math.exp, logits[0]))), math.log(1 / 3)]
    assert logp_of(logits, np.array([1, 2]), "classification") == pytest.approx(slow)


# -- U-LiRA --------------------------------------------------------------------------------------------------------


def untouched(model: Predictor, request: Request) -> Mapping[str, torch.Tensor]:
    """Unlearning that does nothing."""
    return model.weights()


def exact(model: Predictor, request: Request) -> Mapping[str, torch.Tensor]:
    """Retraining on what is to be kept."""
    assert request.retain is not None
    return trained(request.retain, seed=len(request.retain) + 7).weights()


def test_nothing_unlearned_is_found_and_exact_unlearning_is_not(world: World) -> None:
    retrained = world.tables(world.retrained)
    lazy = {"unlearned": world.tables(world.original), "retrained": retrained}
    found = unlearning_attack(world.original, world.request, world.rows, lazy, world.shadows, untouched)
    for name in ("forget_against_holdout", "forget_against_retrained"):
        assert found[name]["auc"]["value"] > 0.75, name
    assert world.request.retain is not None
    honest = {"unlearned": world.tables(trained(world.request.retain, seed=5)), "retrained": retrained}
    found = unlearning_attack(world.original, world.request, world.rows, honest, world.shadows, exact)
    for name in ("forget_against_holdout", "forget_against_retrained"):
        assert 0.35 < found[name]["auc"]["value"] < 0.65, name
    json.dumps(found, allow_nan=False)


def test_each_row_is_unlearned_by_a_quarter_of_the_pipelines(world: World) -> None:
    keep = world.shadows.keep[:8]
    told = forget_matrix(keep, seed=0)
    assert (told.sum(axis=0) == 2).all()
    assert not (told & ~keep).any()
    assert 0.3 < told.sum() / keep.sum() < 0.7
    assert not np.array_equal(told, forget_matrix(keep, seed=1))
    sizes = told.sum(axis=1)
    assert sizes.min() > 0.2 * sizes.mean()


def test_a_pipeline_forgets_and_keeps_what_its_model_was_trained_on(world: World) -> None:
    asked: list[Request] = []

    def look(model: Predictor, request: Request) -> Mapping[str, torch.Tensor]:
        asked.append(request)
        return model.weights()

    said, told = pipelines(world.original, world.request, world.rows, world.shadows, look, count=8)
    for index, request in enumerate(asked):
        assert request.retain is not None
        assert request.holdout is not None
        forget, retain, unseen = (
            set(world.shadows.columns(world.original.encode_rows(part)))
            for part in (request.forget, request.retain, request.holdout)
        )
        own = set(np.flatnonzero(world.shadows.keep[index]))
        assert forget | retain == own
        assert forget == set(world.rows.columns[told[index]])
        assert unseen == set(world.rows.columns[~world.rows.member]) - own
        assert np.allclose(said[index], world.shadows.logits[index, world.rows.columns])  # nothing was unlearned


def test_a_named_method_is_run_once(world: World) -> None:
    runs: list[int] = []

    def counted(model: Predictor, request: Request) -> Mapping[str, torch.Tensor]:
        runs.append(len(request.forget))
        return {name: 0.5 * tensor for name, tensor in model.weights().items()}

    first, _ = pipelines(world.original, world.request, world.rows, world.shadows, counted, key="half the weights")
    again, _ = pipelines(world.original, world.request, world.rows, world.shadows, counted, key="half the weights")
    assert len(runs) == 8
    assert np.array_equal(first, again)
    pipelines(world.original, world.request, world.rows, world.shadows, counted, key="another method")
    assert len(runs) == 16


def test_equal_rows_are_unlearned_together_and_never_kept_with_another_label(tmp_path: Path) -> None:
    whole = data(24)
    other = (
        whole.select([0])
        .remove_columns("label")
        .add_column("label", [(whole[0]["label"] + 1) % 3], feature=KINDS["label"])
    )
    forget = concatenate_datasets([whole.select(range(8)), whole.select([0]), other])
    request = Request(forget=forget, retain=whole.select(range(8, 16)), holdout=whole.select(range(16, 24)))
    subject = trained(whole.select(range(16)), seed=0)
    recipe = RECIPE.model_copy(update={"epochs": 2.0})
    shadows = shadow_models(subject, request_rows(subject, request), recipe, models=8, weights=True, cache=tmp_path)
    rows = AuditedRows.of(subject, request, shadows)
    assert len(shadows.targets) == 25

    def look(model: Predictor, request: Request) -> Mapping[str, torch.Tensor]:
        return model.weights()  # `Request` itself refuses an input that is in two of its sets

    _, told = pipelines(subject, request, rows, shadows, look)
    assert np.array_equal(told[:, 0], told[:, 8])


def test_the_ratio_of_two_sides_equals_plain_loops() -> None:
    rng = np.random.default_rng(0)
    phi, inside, outside = rng.normal(size=5), rng.normal(1, 1, (6, 5)), rng.normal(0, 2, (9, 5))
    is_in, is_out = np.zeros((6, 5), dtype=bool), np.zeros((9, 5), dtype=bool)
    for column in range(5):
        is_in[rng.permutation(6)[:3], column] = True
        is_out[rng.permutation(9)[:4], column] = True
    found = u_lira.ratio(phi, (inside, is_in), (outside, is_out))
    groups = [
        [table[chosen[:, i], i].tolist() for i in range(5)] for table, chosen in ((inside, is_in), (outside, is_out))
    ]
    std = [pooled(group) for group in groups]
    for i in range(5):
        terms = [-0.5 * ((phi[i] - statistics.fmean(groups[s][i])) / std[s]) ** 2 - math.log(std[s]) for s in (0, 1)]
        assert found[i] == pytest.approx(terms[0] - terms[1])


def test_bad_input_is_refused(world: World) -> None:
    tables = world.tables(world.original)
    given = (world.original, world.request, world.rows)
    with pytest.raises(ConfigError, match="6 pipelines"):
        pipelines(*given, world.shadows, untouched, count=6)
    with pytest.raises(InputError, match="20 pipelines and 16"):
        pipelines(*given, world.shadows, untouched, count=20)
    with pytest.raises(InputError, match="no predictions on the holdout"):
        shadow_attacks(world.rows, {"forget": tables["forget"]}, world.shadows)
    with pytest.raises(InputError, match="other rows"):
        shadow_attacks(world.rows, {"forget": tables["holdout"], "holdout": tables["forget"]}, world.shadows)
    with pytest.raises(InputError, match="without a holdout"):
        AuditedRows.of(world.original, Request(forget=world.request.forget), world.shadows)
    foreign = Request(forget=data(4, seed=5), holdout=data(4, seed=6))
    with pytest.raises(InputError, match="not among the 120 candidates"):
        AuditedRows.of(world.original, foreign, world.shadows)
