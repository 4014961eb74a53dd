"""BECLR: student, teacher, masks, memories, both readings of the loss, and runs that are killed."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clustering_script import batch_of, module_of
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures
from safetensors.torch import load_file
from torch import Tensor

import efface
from efface.errors import ConfigError, ModelError
from efface.learn.module import Lesson, Steps
from efface.learn.recipes.beclr import CONFIG, RECIPE, BeclrModule
from efface.learn.run import learn
from efface.learn.starts import StartConfig, new_encoder
from efface.learn.views.block_mask import BlockMask
from efface.run.files import read_json

SIDE = 16
SMALL: dict[str, Any] = {
    "start": {"architecture": "conv", "channels": (8, 16), "image_size": SIDE, "patch": 4}, "projector": 8, "clusters": 4,
    "rows_per_cluster": 8, "memory_start": 1, "recluster": 2, "topk": 2, "mask_patch": 4, "batch_size": 8, "epochs": 4,
    "learning_rate": 0.01, "evaluations": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures() -> Dataset:
    """24 pictures of 16 x 16 noise in three tones."""
    rng = np.random.default_rng(0)
    rows: dict[str, list[Any]] = {"id": [], "image": []}
    for i in range(24):
        out = io.BytesIO()
        pixels = np.clip(60 * (i % 3) + 60 + rng.integers(-50, 50, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
        Pictures.fromarray(pixels).save(out, "PNG")
        rows["id"].append(f"item{i}")
        rows["image"].append({"bytes": out.getvalue(), "path": f"{i}.png"})
    return Dataset.from_dict(rows, features=Features(id=Value("string"), image=Image(decode=False)))


def beclr(**more: Any) -> BeclrModule:
    """The module of `clustering_script`, with other settings; an epoch is two steps."""
    made = module_of("beclr", **more)
    assert isinstance(made, BeclrModule)
    return made


def batch(number: int) -> dict[str, Any]:
    found = batch_of(number, slice(None))
    return found | {"views": found["views"][:2]}


def step(model: BeclrModule, number: int) -> tuple[Tensor, dict[str, float]]:
    model.zero_grad(set_to_none=True)
    value, numbers = model(batch(number))
    value.backward()
    model.after_step()
    model.done += 1
    return value.detach(), numbers


def units(seed: int, *size: int) -> Tensor:
    rows = torch.randn(*size, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=-1)


def test_neighbours_come_from_the_start_epoch_on_and_only_from_a_full_memory() -> None:
    model = beclr(memory_start=2)  # 16 rows a step; full after step 1
    seen = ["fell_back" in step(model, number)[1] for number in range(6)]
    assert seen == [False, False, False, False, True, True]
    late = beclr(memory_start=0, rows_per_cluster=20)  # 80 rows: full in step 4
    assert ["fell_back" in step(late, number)[1] for number in range(6)] == [False] * 4 + [True, True]


def test_without_neighbours_both_readings_are_the_plain_loss() -> None:
    """-1/2 (cos(p1, t2) + cos(p2, t1)) + 0.1 log mean exp(cos / 2), over the rows themselves."""
    model = beclr(memory_start=100, negative_weight=0.1)
    z = {name: units(seed, 2, 6) for seed, name in enumerate(("student", "predictor", "teacher"))}
    loss, _ = model._loss(z, torch.arange(6))
    p, t, s = z["predictor"], z["teacher"], torch.cat([*z["student"]])
    positive = -((p[0] * t[1]).sum(1).mean() + (p[1] * t[0]).sum(1).mean()) / 2
    means = [sum(math.exp(float(s[i] @ s[j]) / 2) for j in range(12) if j % 6 != i % 6) / 10 for i in range(12)]
    assert float(loss) == pytest.approx(float(positive) + 0.1 * math.log(sum(means) / 12), rel=1e-9)
    rows = beclr(memory_start=100, negative_weight=0.1, neighbors="rows")
    assert float(rows._loss(z, torch.arange(6))[0]) == pytest.approx(float(loss), rel=1e-12)


def ready(**more: Any) -> tuple[BeclrModule, dict[str, Tensor]]:
    """A module with full memories, and streams of other items."""
    model = beclr(memory_start=0, **more)
    for number in range(3):
        earlier = {
            name: units(10 * number + seed, 2, 8) for seed, name in enumerate(("student", "predictor", "teacher"))
        }
        with torch.no_grad():
            model._loss(earlier, 100 * number + torch.arange(8))
    z = {name: units(50 + seed, 2, 8).requires_grad_() for seed, name in enumerate(("student", "predictor", "teacher"))}
    return model, z


def test_as_targets_a_neighbour_pulls() -> None:
    """The prediction's gradient is that of its cosine with the other view's teacher and with the neighbours of that."""
    model, z = ready(negative_weight=0.0)
    loss, _ = model._loss(z, 1000 + torch.arange(8))
    by_prediction, by_teacher = torch.autograd.grad(loss, (z["predictor"], z["teacher"]), allow_unused=True)
    assert by_teacher is None
    memory = model.memories["teacher"]
    places, _ = memory.neighbours(z["teacher"].detach().flatten(0, 1), (1000 + torch.arange(8)).repeat(2), 2)
    near = memory.rows(places).unflatten(0, (2, 8))
    for view in range(2):
        other = 1 - view
        expected = -(z["teacher"][other].detach() + near[other].sum(1)) / 3 / 2 / 8
        torch.testing.assert_close(by_prediction[view], expected)


def test_as_rows_a_neighbour_only_scales_the_rest() -> None:
    """The official pairing: the neighbours' part of the first term has no gradient, the rest is divided by 1 + k."""
    model, z = ready(negative_weight=0.0, neighbors="rows")
    loss, _ = model._loss(z, 1000 + torch.arange(8))
    (gradient,) = torch.autograd.grad(loss, z["predictor"])
    for view in range(2):
        torch.testing.assert_close(gradient[view], -z["teacher"][1 - view].detach() / 3 / 2 / 8)


def test_whose_rows_repel() -> None:
    for negatives, moved in (("SS", (True, True)), ("ST", (True, False)), ("TT", (False, False))):
        for neighbors in ("targets", "rows"):
            model, z = ready(negatives=negatives, neighbors=neighbors)
            z["teacher"] = z["teacher"].detach()
            loss, _ = model._loss(z, 1000 + torch.arange(8))
            gradient = torch.autograd.grad(loss, z["student"], allow_unused=True)[0]
            found = (False, False) if gradient is None else tuple(bool(part.any()) for part in gradient)
            assert found == moved


def test_only_as_many_memories_as_are_read() -> None:
    assert set(beclr().memories) == {"teacher", "student"}
    assert set(beclr(neighbors="rows").memories) == {"teacher", "student", "predictor"}


def test_the_teacher_sees_whole_pictures_and_follows() -> None:
    model = beclr(momentum=0.5)
    inputs = batch(0)["views"][0]
    hidden, share = model.masked(inputs, 0)
    zero = hidden["pixel_values"] == 0
    assert share == pytest.approx(float(zero.double().mean()))
    assert 0.03 < share < 0.27
    seen = []
    original = model.shadow.features

    def spy(given: dict[str, Tensor]) -> Tensor:
        seen.append(given["pixel_values"])
        found: Tensor = original(given)
        return found

    model.shadow.features = spy
    before = {name: value.clone() for name, value in model.teacher.module.named_parameters()}
    with torch.no_grad():
        for parameter in model.online.parameters():
            parameter += 1.0
    step(model, 0)
    assert not bool((seen[0] == 0).any())
    for name, parameter in model.teacher.module.named_parameters():
        torch.testing.assert_close(parameter, before[name] + 0.5)
        assert not parameter.requires_grad
    assert model.teacher.momentum > 0.5, "on its way to 1"


def test_masks_are_those_of_the_step() -> None:
    model = beclr()
    inputs = batch(0)["views"][0]
    first, again, other = (model.masked(inputs, view)[0]["pixel_values"] for view in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    model.done += 1
    assert not torch.equal(first, model.masked(inputs, 0)[0]["pixel_values"])


def test_block_masks() -> None:
    masks = BlockMask(4, 0.25, 0.1)
    seen = masks.draw(200, 42, 40, (0,))  # ten by ten patches, and two rows of pixels that belong to none
    cells = seen[:, 0, :40].view(200, 10, 4, 10, 4).transpose(2, 3).flatten(3)
    assert bool((cells.all(3) | ~cells.any(3)).all()), "whole patches"
    assert bool(seen[:, 0, 40:].all())
    shares = 1 - cells.all(3).double().mean((1, 2))
    assert float(shares.max()) <= 0.35 + 1e-9
    assert float(shares.mean()) == pytest.approx(0.25, abs=0.02)
    assert float(shares.std()) > 0.03
    neighbours = (~cells[:, :, 1:].any(3) & ~cells[:, :, :-1].any(3)).double().mean() / (
        1 - cells.all(3).double().mean()
    )
    assert float(neighbours) > 0.5, "blocks, not single patches: chance would give a quarter"
    assert bool(BlockMask(16, 0.15, 0.1).draw(3, 32, 32, (0,)).all()), "too small for blocks: left whole"
    assert bool(BlockMask(4, 0.0, 0.0).draw(3, 32, 32, (0,)).all())
    for wrong in ((0, 0.1, 0.0), (4, 0.1, 0.2), (4, 0.95, 0.1)):
        with pytest.raises(ConfigError, match="masked"):
            BlockMask(*wrong)


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="both views of a batch"):
        beclr(rows_per_cluster=3)
    with pytest.raises(ConfigError, match="chunk"):
        beclr(chunk=2)
    with pytest.raises(ConfigError, match="topk"):
        beclr(topk=33)
    vectors = new_encoder(StartConfig(), "features", (), 0, arrays=torch.rand(4, 3))
    lesson = Lesson(rows=8, steps=1, batch_size=4, inputs=lambda rows: {})
    with pytest.raises(ModelError, match="pictures"):
        RECIPE.build(vectors, CONFIG(), lesson)  # type: ignore[misc]


@pytest.mark.parametrize("neighbors", ["targets", "rows"])
def test_a_killed_run_ends_with_the_same_bits(
    neighbors: str, pictures: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SMALL | {"checkpoint_seconds": 1e-9, "neighbors": neighbors}
    model = learn("beclr", pictures, tmp_path / "whole", **settings)
    assert efface.load(tmp_path / "whole").digest == model.digest
    assert math.isfinite(read_json(tmp_path / "whole" / "learn.json")["final_loss"])

    class Killed(Exception):
        pass

    original = Steps.on_step_end

    def killed(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        original(self, args, state, control, **rest)
        if state.global_step == 7:
            raise Killed

    monkeypatch.setattr(Steps, "on_step_end", killed)
    with pytest.raises(Killed):
        learn("beclr", pictures, tmp_path / "model", **settings)
    monkeypatch.setattr(Steps, "on_step_end", original)
    learn("beclr", pictures, tmp_path / "model", **settings)
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "model"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
