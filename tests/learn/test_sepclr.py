"""SepCLR: two encoders that start apart, balanced batches, what is saved, and the leakage matrix."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pictures
from safetensors.torch import load_file
from share_script import ROWS, SIDE, batch_of, found, module_of

import efface
from efface.errors import ConfigError, InputError, RequestError
from efface.learn.leakage import leakage
from efface.learn.module import Lesson
from efface.learn.recipes.sepclr import CONFIG, RECIPE, groups, second_encoder
from efface.learn.run import learn
from efface.learn.starts import StartConfig, new_encoder
from efface.run.files import read_json

SMALL: dict[str, Any] = {
    "start": {"architecture": "conv", "channels": (8, 16), "image_size": SIDE, "patch": 4}, "head_hidden": 16,
    "common_size": 4, "salient_size": 4, "batch_size": 8, "epochs": 4, "learning_rate": 3e-3,
    "views": {"crop_area": (1.0, 1.0), "jitter": 0.0, "grey": 0.0, "blur": 0.0, "noise": 0.1},
}  # fmt: skip


def rows(labels: list[int], names: list[str] | None = None) -> Dataset:
    """Pictures of noise; those of the last label have a bright square."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 128, (len(labels), SIDE, SIDE, 3))
    for i, label in enumerate(labels):
        if label == max(labels):
            x, y = rng.integers(0, 10, 2)
            pixels[i, y : y + 6, x : x + 6] += 120
    kinds = Features(
        id=Value("string"), image=Image(), label=ClassLabel(names=names) if names is not None else Value("int64")
    )
    found = {"id": [f"p{i}" for i in range(len(labels))], "label": labels,
             "image": [Pictures.fromarray(p.astype("uint8")) for p in pixels]}  # fmt: skip
    return Dataset.from_dict(found, features=kinds)


@pytest.fixture(scope="module")
def pictures() -> Dataset:
    """24 pictures, of which eight are target."""
    return rows([0, 0, 1] * 8)


# -- the second encoder --------------------------------------------------------------------------------------------------


def test_both_encoders_start_apart_and_reproducibly() -> None:
    start = StartConfig(architecture="conv", channels=(8, 16), image_size=SIDE, patch=4)
    subject = new_encoder(start, "image", (), 0)
    subject.model.layers[1].running_mean.fill_(3.0)
    first, again, other = (second_encoder(subject, seed) for seed in (0, 0, 1))
    assert first.digest == again.digest
    assert len({subject.digest, first.digest, other.digest}) == 3
    name = "layers.0.weight"
    assert not torch.equal(first.model.state_dict()[name], subject.model.state_dict()[name]), "same seed, same start"
    assert torch.equal(first.model.layers[1].running_mean, subject.model.layers[1].running_mean)
    assert second_encoder(subject, 0, copied=True).digest == subject.digest
    assert second_encoder(subject, 0, copied=True).model is not subject.model


def test_arrays_keep_their_standardisation() -> None:
    data = 5 + 3 * torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    subject = new_encoder(StartConfig(), "features", (), 0, arrays=data)
    assert torch.equal(second_encoder(subject, 0).model.mean, subject.model.mean)


# -- groups --------------------------------------------------------------------------------------------------------------


def test_which_class_is_the_target_is_a_setting() -> None:
    data = rows([0, 2, 2, 0], ["sick", "unused", "well"])
    assert groups(data, CONFIG()).tolist() == [0, 1, 1, 0]
    assert groups(data, CONFIG(target="sick")).tolist() == [1, 0, 0, 1]
    assert groups(rows([3, 7, 3]), CONFIG(target="3")).tolist() == [1, 0, 1]
    with pytest.raises(ConfigError, match=r"target='sik'.*sick"):
        groups(data, CONFIG(target="sik"))
    with pytest.raises(ConfigError, match="unused"):
        groups(data, CONFIG(target="unused"))


@pytest.mark.parametrize("labels", [[0] * 8, [0, 1, 2] * 4])
def test_anything_but_two_classes_is_refused(labels: list[int], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="two"):
        learn("sepclr", rows(labels), tmp_path / "model", **SMALL)


def test_batches_hold_as_many_targets_as_background(
    pictures: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efface.learn.recipes import sepclr

    seen: list[tuple[int, int]] = []
    original = sepclr.SepCLRModule.forward

    def watched(self: Any, batch: Any) -> Any:
        seen.append((int(batch["groups"].sum()), int(batch["labels"].sum())))
        return original(self, batch)

    monkeypatch.setattr(sepclr.SepCLRModule, "forward", watched)
    learn("sepclr", pictures, tmp_path / "model", target="0", **SMALL)
    assert len(seen) == 12
    assert set(seen) == {(4, 4)}, "a third of the rows is label 1, half of each batch"


# -- the module ----------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_weighted_sum_and_every_term_is_logged() -> None:
    model = module_of("sepclr")
    value, numbers = model(batch_of(slice(0, ROWS)))
    expected = numbers["common"] + 3 * numbers["salient"] + 2 * numbers["information"] + 5 * numbers["joint"]
    assert float(value.detach()) == pytest.approx(expected, rel=1e-5)
    assert {"background_norm", "target_norm"} <= numbers.keys()


def test_the_encoders_share_nothing_but_the_joint_term() -> None:
    batch = batch_of(slice(0, ROWS))

    def gradient(weights: dict[str, float], of: int) -> torch.Tensor:
        model = module_of("sepclr")
        model.settings = model.settings.model_copy(update=weights)
        model(batch)[0].backward()
        return torch.cat([p.grad.flatten() for p in model.encoders[of].parameters()])

    without = {"joint_weight": 0.0}
    assert torch.equal(gradient(without, 0), gradient(without | {"salient_weight": 5.0}, 0))
    assert not torch.equal(gradient(without, 0), gradient({"joint_weight": 10.0}, 0))
    nothing = gradient({"salient_weight": 0.0, "information_weight": 0.0, "joint_weight": 0.0}, 1)
    assert torch.equal(nothing, torch.zeros_like(nothing))


def test_a_target_without_salience_is_told() -> None:
    model = module_of("sepclr")
    model.norms.copy_(torch.tensor([2.0, 1.0]))
    with pytest.warns(UserWarning, match="target class"):
        model.finish()
    model.norms.copy_(torch.tensor([1.0, 2.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.finish()


def test_too_small_batches_and_settings_without_effect_are_refused(pictures: Dataset, tmp_path: Path) -> None:
    for more, words in (({"chunk": 4}, "chunk"), ({"projector": 8}, "projector"), ({"batch_size": 2}, "batch_size")):
        with pytest.raises(ConfigError, match=words):
            learn("sepclr", pictures, tmp_path / "model", **(SMALL | more))
    subject = new_encoder(StartConfig(image_size=16), "image", (), 0)
    lesson = Lesson(rows=3, steps=1, batch_size=2, inputs=lambda index: {})
    assert RECIPE.build is not None
    with pytest.raises(ConfigError, match="two of each set"):
        RECIPE.build(subject, CONFIG(), lesson)


# -- runs ----------------------------------------------------------------------------------------------------------------


def test_a_run_leaves_both_encoders_and_salience_only_in_the_target(pictures: Dataset, tmp_path: Path) -> None:
    common = learn("sepclr", pictures, tmp_path / "model", **(SMALL | {"epochs": 40}))
    assert common.kind == "encoder"
    salient = efface.load(tmp_path / "model" / "salient")
    assert salient.digest != common.digest
    assert efface.load(tmp_path / "model").digest == common.digest
    losses = [value for _, value in read_json(tmp_path / "model" / "learn.json")["losses"]]
    assert all(math.isfinite(value) for value in losses)
    assert losses[-1] < losses[0]
    x = salient.embed(list(pictures["image"]))
    labels = torch.tensor(pictures["label"])
    inside, across = (x @ x.T)[labels == 0][:, labels == 0].mean(), (x @ x.T)[labels == 0][:, labels == 1].mean()
    assert inside > across, "the background lies together in the salient space"


def test_a_killed_run_ends_with_the_same_bits(
    pictures: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efface.learn import module

    class Killed(Exception):
        pass

    settings = SMALL | {"checkpoint_seconds": 1e-9}
    learn("sepclr", pictures, tmp_path / "whole", **settings)
    original = module.Steps.on_step_end

    def killed(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        original(self, args, state, control, **rest)
        if state.global_step == 7:
            raise Killed

    monkeypatch.setattr(module.Steps, "on_step_end", killed)
    with pytest.raises(Killed):
        learn("sepclr", pictures, tmp_path / "model", **settings)
    monkeypatch.setattr(module.Steps, "on_step_end", original)
    learn("sepclr", pictures, tmp_path / "model", **settings)
    for file in ("model.safetensors", "salient/model.safetensors"):
        whole, resumed = load_file(tmp_path / "whole" / file), load_file(tmp_path / "model" / file)
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_two_processes_have_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("share_script.py"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, script, str(tmp_path), "sepclr"], capture_output=True, text=True, timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = found("sepclr"), load_file(tmp_path / "sepclr.safetensors")
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=5e-6, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")


# -- the leakage matrix --------------------------------------------------------------------------------------------------


def test_the_matrix_says_which_space_holds_which_factor() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(0, 3, (2, 400), generator=generator)
    noise = 0.1 * torch.randn(400, 3, generator=generator)
    one, both = torch.eye(3)[first] + noise, torch.cat([torch.eye(3)[first], torch.eye(3)[second]], 1)

    def parts(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x[:200], x[200:]

    made = leakage({"one": parts(one), "both": parts(both)}, {"first": parts(first), "second": parts(second)})
    assert made.accuracy["one", "first"] == made.accuracy["both", "second"] == made.accuracy["both", "first"] == 1
    assert made.accuracy["one", "second"] < 0.45
    assert made.chance["second"] == pytest.approx(1 / 3, abs=0.07)
    table = made.rows()
    assert [row["space"] for row in table] == ["one", "both", "chance"]
    assert table[1]["second"] == 1


def test_a_matrix_without_sense_is_refused() -> None:
    x, labels = torch.randn(6, 2), torch.tensor([0, 1, 0, 1, 0, 1])
    with pytest.raises(InputError, match="one class"):
        leakage({"x": (x, x)}, {"f": (torch.zeros(6, dtype=torch.int64), labels)})
    with pytest.raises(InputError, match=r"\[n, D\]"):
        leakage({"x": (x, x)}, {"f": (labels, labels[:3])})
    with pytest.raises(InputError, match="at least one"):
        leakage({}, {"f": (labels, labels)})
