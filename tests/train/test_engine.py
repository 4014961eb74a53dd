"""The engine: exact resume, frozen means frozen, one model in memory, no global state, accumulation as the whole batch."""

from __future__ import annotations

import gc
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from efface.errors import ConfigError, InputError
from efface.forget.method import find_method
from efface.run.manifest import MANIFEST
from efface.subjects.prompts import Encoded
from efface.train import engine
from efface.train.config import TrainConfig
from efface.train.scopes import ScopeConfig, layer_indices, scoped
from efface.train.streams import Schedule, Stream, whole_batch
from efface.train.supervised import answer_loss, supervised_schedule


def settings(**more: Any) -> TrainConfig:
    """A short run."""
    return TrainConfig(**{"learning_rate": 5e-3, "epochs": 3, "batch_size": 4, "checkpoint_seconds": 1e9, **more})


class _Stop(TrainerCallback):  # type: ignore[misc]
    """Die at a step, as a kill would (after the checkpoint of the step before, if any)."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.at:
            raise KeyboardInterrupt


def test_a_stopped_run_goes_on_to_the_same_bits(tiny: Any, tiny_folder: Path, request_: Any, tmp_path: Path) -> None:
    import efface

    rows = tiny.encode_rows(request_.retain)
    whole = settings(seed=3)
    engine.train(tiny.model, supervised_schedule(rows, whole), answer_loss, whole, folder=tmp_path / "a", pad_id=0)
    tiny.changed()
    stopped = efface.load(tiny_folder)
    often = settings(seed=3, checkpoint_seconds=1e-9)
    schedule = supervised_schedule(rows, often)
    with pytest.raises(KeyboardInterrupt):
        engine.train(
            stopped.model, schedule, answer_loss, often, folder=tmp_path / "b", pad_id=0, callbacks=(_Stop(4),)
        )
    resumed = efface.load(tiny_folder)
    log = engine.train(resumed.model, schedule, answer_loss, often, folder=tmp_path / "b", pad_id=0)
    assert 0 < log.resumed_from < schedule.steps
    assert resumed.digest == tiny.digest


def test_a_checkpoint_without_its_manifest_does_not_count(tmp_path: Path) -> None:
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").write_bytes(b"x" * step)
    from efface.run.manifest import write_manifest

    write_manifest(tmp_path / "checkpoint-2", step=2)
    write_manifest(tmp_path / "checkpoint-4", step=4)
    (tmp_path / "checkpoint-4" / "model.safetensors").write_bytes(b"torn")
    found = engine.newest_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "checkpoint-2"
    assert not (tmp_path / "checkpoint-4").exists()
    (found / MANIFEST).unlink()
    assert engine.newest_checkpoint(tmp_path) is None


def test_a_frozen_parameter_does_not_move_by_weight_decay_either(tiny: Any, request_: Any, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in tiny.weights().items()}
    config = settings(weight_decay=10.0)
    with scoped(tiny.model, ScopeConfig(scope="layers", layers="0")) as model:
        engine.train(
            model, supervised_schedule(tiny.encode_rows(request_.retain), config), answer_loss, config,
            folder=tmp_path, pad_id=0,
        )  # fmt: skip
    moved = {name for name, value in tiny.weights().items() if not torch.equal(before[name], value)}
    assert moved
    assert all(".layers.0." in name for name in moved)


@pytest.mark.parametrize(("name", "term"), [("npo", "nll"), ("dpo-idk", "nll"), ("gradient-difference", "kl")])
def test_no_second_model_in_memory(
    name: str, term: str, tiny: Any, request_: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted while training: one language model, and no more weight-sized storage than training itself needs."""
    seen: list[tuple[int, int]] = []
    plain = engine._Engine.compute_loss
    shapes = {tuple(value.shape) for value in tiny.weights().values() if value.dim() >= 2}

    def language_models() -> int:
        return sum(type(thing) is type(tiny.model) for thing in gc.get_objects())

    def counting(self: Any, *args: Any, **kwargs: Any) -> Any:
        gc.collect()
        weights = {value.untyped_storage().data_ptr(): value.numel() * 4 for value in tiny.weights().values()}
        others = {
            thing.untyped_storage().data_ptr(): thing.numel() * 4
            for thing in gc.get_objects()
            if type(thing) in {torch.Tensor, torch.nn.Parameter} and tuple(thing.shape) in shapes
        }
        extra = sum(size for place, size in others.items() if place not in weights)
        assert extra <= 3 * sum(weights.values()), "more than gradients and two moments: a copy of the weights is held"
        seen.append((language_models(), extra))
        return plain(self, *args, **kwargs)

    gc.collect()
    before = language_models()
    monkeypatch.setattr(engine._Engine, "compute_loss", counting)
    method = find_method(name)
    config = method.configure({"learning_rate": 1e-3, "epochs": 2, "batch_size": 4, "retain_term": term})
    method.fit(tiny, request_, config, work=tmp_path / "work", out=tmp_path / "edit")
    assert len(seen) >= 4
    assert seen[-1][1] > 0, "the optimiser's moments are seen, so a copy would be seen too"
    assert {count for count, _ in seen} == {before}, "no further language model while training"


def test_global_generators_are_left_alone(tiny: Any, request_: Any, tmp_path: Path) -> None:
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = (random.random(), np.random.random(), float(torch.rand(1)))
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    config = settings(epochs=1)
    engine.train(
        tiny.model, supervised_schedule(tiny.encode_rows(request_.retain), config), answer_loss, config,
        folder=tmp_path, pad_id=0,
    )  # fmt: skip
    assert (random.random(), np.random.random(), float(torch.rand(1))) == expected


def test_a_diverging_loss_stops_with_advice(tiny: Any, request_: Any, tmp_path: Path) -> None:
    config = settings(epochs=1)

    def broken(model: Any, batch: Any) -> Any:
        loss, numbers = answer_loss(model, batch)
        return loss * float("nan"), numbers

    with pytest.raises(engine.Diverged, match="lower learning_rate"):
        engine.train(
            tiny.model, supervised_schedule(tiny.encode_rows(request_.retain), config), broken, config,
            folder=tmp_path, pad_id=0,
        )  # fmt: skip


# -- schedules ------------------------------------------------------------------------------------------------------


def rows(n: int, length: int = 4) -> list[Encoded]:
    """n examples; the first token is the index."""
    return [Encoded([i, *range(1, length)], 2) for i in range(n)]


def test_every_anchor_row_once_an_epoch_and_partners_afresh() -> None:
    schedule = Schedule(
        {"forget": Stream(rows(6)), "retain": Stream(rows(20))}, anchor="forget", epochs=3, batch_size=3, seed=0
    )
    assert len(schedule) == 18
    for epoch in range(3):
        part = schedule.plan["forget"][6 * epoch : 6 * epoch + 6]
        assert sorted(part) == list(range(6))
    pairs = list(zip(schedule.plan["forget"], schedule.plan["retain"], strict=True))
    assert len(set(pairs)) > 15, "a forget row meets other retain rows in other epochs"
    assert len(set(schedule.plan["retain"])) == 18, "no retain row comes twice before all came once"


def test_the_official_pairing_is_there_for_comparison() -> None:
    streams = {"forget": Stream(rows(6)), "retain": Stream(rows(20))}
    schedule = Schedule(streams, anchor="forget", epochs=3, batch_size=3, seed=0, repeat_pairs=True)
    pairs = set(zip(schedule.plan["forget"], schedule.plan["retain"], strict=True))
    assert len(pairs) == 6


def test_a_stream_of_another_follows_it_whatever_the_anchor() -> None:
    streams = {
        "forget": Stream(rows(4)),
        "alternative": Stream([[Encoded([i, 9, 1], 1)] for i in range(4)], of="forget"),
        "retain": Stream(rows(10)),
    }
    schedule = Schedule(streams, anchor="retain", epochs=2, batch_size=5, seed=1)
    assert len(schedule) == 20
    assert sorted(schedule.plan["retain"][:10]) == list(range(10))
    assert sorted(schedule.plan["forget"][:4]) == list(range(4))
    assert schedule.plan["alternative"] == schedule.plan["forget"]
    with pytest.raises(InputError, match="4, one for each forget row"):
        Schedule(
            {**streams, "alternative": Stream(rows(3), of="forget")}, anchor="retain", epochs=1, batch_size=5, seed=1
        )


def test_aligned_streams_follow_the_anchor() -> None:
    variants = [[Encoded([i, 10 + k, 1], 1) for k in range(3)] for i in range(6)]
    streams = {
        "forget": Stream(rows(6)),
        "alternative": Stream(variants, {"value": [[i * 10 + k for k in range(3)] for i in range(6)]}, of="forget"),
    }
    schedule = Schedule(streams, anchor="forget", epochs=4, batch_size=6, seed=1)
    chosen = set()
    for position in range(len(schedule)):
        item = schedule[position]
        assert item["alternative"]["row"].ids[0] == item["forget"]["row"].ids[0]
        assert (
            item["alternative"]["extras"]["value"]
            == item["alternative"]["row"].ids[0] * 10 + item["alternative"]["row"].ids[1] - 10
        )
        chosen.add(item["alternative"]["row"].ids[1])
    assert len(chosen) == 3


@pytest.mark.parametrize(
    ("n", "batch", "micro", "expected"), [(100, 32, None, 32), (8, 32, None, 8), (10, 32, 4, 8), (2, 32, 4, 4)]
)
def test_whole_batches(n: int, batch: int, micro: int | None, expected: int) -> None:
    assert whole_batch(n, batch, micro) == expected


def test_a_batch_that_does_not_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 5"):
        whole_batch(100, 32, 5)


@pytest.mark.parametrize(("text", "expected"), [("0", {0}), ("0,3-5", {0, 3, 4, 5}), ("-1", {5}), (" 1 - 2 ", {1, 2})])
def test_layer_indices(text: str, expected: set[int]) -> None:
    assert layer_indices(text, 6) == expected


@pytest.mark.parametrize("text", ["", "a", "6", "4-2", "-7", "1;2"])
def test_bad_layer_indices(text: str) -> None:
    with pytest.raises(ConfigError):
        layer_indices(text, 6)


def test_work_folder_is_gone_after_a_fit(tiny: Any, request_: Any, tmp_path: Path) -> None:
    method = find_method("npo")
    work = tmp_path / "work"
    method.fit(tiny, request_, method.configure({"epochs": 1, "batch_size": 4}), work=work, out=tmp_path / "edit")
    assert not work.exists()
    shutil.rmtree(tmp_path / "edit")
