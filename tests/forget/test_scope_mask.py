"""`scope=mask` on forgetting methods: frozen bits, density 1 as without, resume, the stored mask, WAGLE's own defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import efface
from efface.errors import ConfigError, RequestError, RunError
from efface.forget.edit import Edit
from efface.forget.method import find_method
from efface.run.files import read_json
from efface.train.snapshot import bits
from efface.train.weight_mask import WeightMask

QUICK = {"learning_rate": 5e-3, "epochs": 2, "batch_size": 4}


def fit(subject: Any, request: Any, name: str, folder: Path, **more: Any) -> Edit:
    method = find_method(name)
    config = method.configure({**QUICK, **more})
    return method.fit(subject, request, config, work=folder / "work", out=folder / "edit").edit


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("npo", "wagle"), ("npo", "reverse"), ("gradient-difference", "snip"), ("dpo-idk", "wagle"), ("simnpo", "gradient"),
        ("gradient-ascent", "magnitude"), ("finetune", "wagle"), ("inverted-hinge", "random"), ("flat", "wagle"),
    ],
)  # fmt: skip
def test_only_masked_weights_move_under_decay(name: str, mask: str, tiny: Any, request_: Any, tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in tiny.weights().items()}
    digest = tiny.digest
    edit = fit(tiny, request_, name, tmp_path, scope="mask", mask=mask, density=0.3, weight_decay=0.5)
    assert tiny.digest == digest
    stored = WeightMask.load(edit.folder / "mask.safetensors")
    assert abs(stored.density - 0.3) <= 1 / stored.size
    assert stored.facts.selector == mask
    assert stored.facts.model == digest
    words = read_json(edit.folder / "mask.json")
    assert sum(part["selected"] for part in words["modules"].values()) == stored.selected
    assert (words["retain_share"] is None) == (mask not in {"wagle", "reverse"}), "which term dominates is on record"
    edit.apply(tiny)
    moved = 0
    for key, part in stored.masks.items():
        now, then = bits(tiny.weights()[key]), bits(before[key])
        assert torch.equal(now[~part], then[~part]), f"{key}: a frozen weight moved"
        moved += int((now != then).sum())
    assert moved > 0.5 * stored.selected
    edit.remove(tiny)
    assert tiny.digest == digest


@pytest.mark.parametrize("name", ["npo", "wagle"])
@pytest.mark.parametrize("mask", ["wagle", "random"])
def test_density_one_is_the_run_without_a_mask(name: str, mask: str, tiny: Any, request_: Any, tmp_path: Path) -> None:
    values = {"weight_decay": 0.1, "max_grad_norm": 0.1, "micro_batch_size": 2}
    if name == "wagle":
        values.update(warmup_ratio=0.1, beta=0.1)
    plain = fit(tiny, request_, "npo", tmp_path / "a", **values)
    full = fit(tiny, request_, name, tmp_path / "b", scope="mask", mask=mask, density=1.0, **values)
    assert full.facts.edited_digest == plain.facts.edited_digest


def test_a_stopped_masked_run_goes_on_to_the_same_bits(tiny: Any, tiny_folder: Path, request_: Any, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    from efface.train import engine

    values = {"scope": "mask", "mask": "wagle", "density": 0.2, "weight_decay": 0.3, "epochs": 3}
    whole = fit(tiny, request_, "npo", tmp_path / "a", **values, checkpoint_seconds=1e-9)
    plain, calls = engine._Engine.compute_loss, {"n": 0}

    def dying(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls["n"] += 1
        if calls["n"] == 4:
            raise KeyboardInterrupt
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(engine._Engine, "compute_loss", dying)
    with pytest.raises(KeyboardInterrupt):
        fit(efface.load(tiny_folder), request_, "npo", tmp_path / "b", **values, checkpoint_seconds=1e-9)
    monkeypatch.setattr(engine._Engine, "compute_loss", plain)
    resumed = fit(efface.load(tiny_folder), request_, "npo", tmp_path / "b", **values, checkpoint_seconds=1e-9)
    assert resumed.facts.edited_digest == whole.facts.edited_digest


def test_a_stored_mask_serves_another_run_on_the_same_model(
    tiny: Any, request_: Any, tmp_path: Path, retrained_folder: Path
) -> None:
    first = fit(tiny, request_, "npo", tmp_path / "a", scope="mask", mask="wagle", density=0.3)
    path = str(first.folder / "mask.safetensors")
    again = fit(tiny, request_, "npo", tmp_path / "b", scope="mask", mask=path)
    assert again.facts.edited_digest == first.facts.edited_digest
    with pytest.raises(RunError, match="mask was made on the model"):
        fit(efface.load(retrained_folder), request_, "npo", tmp_path / "c", scope="mask", mask=path)


def test_what_makes_no_sense_is_refused(tiny: Any, request_: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set scope=mask"):
        fit(tiny, request_, "npo", tmp_path / "a", mask="wagle")
    with pytest.raises(ConfigError, match="takes none"):
        fit(tiny, request_, "task-vector", tmp_path / "b", alpha=0.5, scope="mask")
    with pytest.raises(ConfigError, match="did you mean 'wagle'"):
        fit(tiny, request_, "npo", tmp_path / "c", scope="mask", mask="wagel")
    with pytest.raises(ConfigError, match="density"):
        find_method("npo").configure({"density": 0})
    for name in ("wagle", "retrain"):
        with pytest.raises(ConfigError, match="scope"):
            find_method(name).configure({"scope": "lora"})
    lone = efface.Request(forget=request_.forget)
    with pytest.raises(RequestError, match="mask=wagle without retain rows"):
        fit(tiny, lone, "npo", tmp_path / "d", retain_term="none", scope="mask")
    assert not (tmp_path / "d" / "edit").exists()


def test_a_model_with_an_adapter_is_refused(tiny: Any, request_: Any, tmp_path: Path) -> None:
    edit = fit(tiny, request_, "npo", tmp_path / "a", scope="lora", lora_rank=2)
    edit.apply(tiny)
    for name in ("npo", "wagle", "loku"):
        with pytest.raises(ConfigError, match="adapter"):
            fit(tiny, request_, name, tmp_path / name, **({} if name == "loku" else {"scope": "mask"}))
    edit.remove(tiny)


def test_refusal_training_is_attributed_to_the_refusals(tiny: Any, request_: Any, tmp_path: Path) -> None:
    facts = {}
    for name in ("npo", "dpo-idk"):
        edit = fit(tiny, request_, name, tmp_path / name, scope="mask", density=0.3)
        facts[name] = WeightMask.load(edit.folder / "mask.safetensors").facts.data
    assert facts["npo"]["retain"] == facts["dpo-idk"]["retain"]
    assert facts["npo"]["forget"] != facts["dpo-idk"]["forget"]


def test_each_loss_of_wagle_has_its_published_values() -> None:
    method = find_method("wagle")
    found = {loss: method.configure({"loss": loss}) for loss in ("npo", "gradient-difference", "dpo-idk")}
    assert [config.density for config in found.values()] == [0.95, 0.95, 0.8]
    assert [config.learning_rate for config in found.values()] == [1e-5, 7e-6, 2e-5]
    assert all(config.weight_decay == 0.1 and config.gamma == "auto" for config in found.values())
    assert method.configure({"loss": "dpo-idk", "density": 0.5, "gamma": 1e-6}).density == 0.5


@pytest.mark.parametrize("loss", ["npo", "gradient-difference", "dpo-idk"])
def test_wagle_is_its_loss_with_the_mask(loss: str, tiny: Any, request_: Any, tmp_path: Path) -> None:
    ours = fit(tiny, request_, "wagle", tmp_path / "a", loss=loss, density=0.4, weight_decay=0.0)
    more = {} if loss == "gradient-difference" else {"beta": 0.1}
    theirs = fit(
        tiny, request_, loss, tmp_path / "b", scope="mask", mask="wagle", density=0.4, weight_decay=0.0, **more
    )
    assert ours.facts.edited_digest == theirs.facts.edited_digest


def test_the_retain_set_as_anchor(tiny: Any, request_: Any, tmp_path: Path) -> None:
    few = efface.Request(forget=request_.forget.select(range(2)), retain=request_.retain)
    made = fit(tiny, few, "wagle", tmp_path / "a", anchor="retain", batch_size=8, epochs=1)
    assert made.facts.tensors > 0
    with pytest.raises(ConfigError, match="anchor=retain"):
        fit(tiny, few, "wagle", tmp_path / "c", anchor="retain", retain_term="none")
