"""PixPro and PixContrast: their equations against plain loops, the traps, and whole runs."""

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
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pictures
from safetensors.torch import load_file
from share_script import ROWS, SIDE, batch_of, found, module_of

import efface
from efface.errors import ConfigError, InputError, ModelError
from efface.learn.pixel_towers import MapNorm, cell_spread, cells_of, load_pixel_head
from efface.learn.recipes.pixcontrast import pixel_contrast
from efface.learn.recipes.pixpro import CONFIG, RECIPE, agreement, propagate
from efface.learn.run import learn
from efface.run.files import read_json

SMALL: dict[str, Any] = {
    "start": {"architecture": "conv", "channels": (8, 16), "image_size": SIDE, "patch": 4}, "head_hidden": 16,
    "head_width": 8, "batch_size": 8, "epochs": 4, "learning_rate": 3e-3, "views": {"crop_area": (0.4, 1.0), "blur": 0.0},
}  # fmt: skip


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def cells(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def pictures() -> Dataset:
    rng = np.random.default_rng(0)
    rows = {
        "id": [f"p{i}" for i in range(24)],
        "image": [Pictures.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3)).astype("uint8")) for _ in range(24)],
    }
    return Dataset.from_dict(rows, features=Features(id=Value("string"), image=Image()))


# -- PixContrast's equation ----------------------------------------------------------------------------------------------


def test_the_positives_are_summed_inside_the_logarithm() -> None:
    unit = torch.nn.functional.normalize
    queries, keys = unit(cells(2, 3, 4), dim=2), unit(cells(2, 5, 4, seed=1), dim=2)
    match = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(2)) < 0.5
    match[0, 1] = False
    losses = []
    for b in range(2):
        for i in range(3):
            if match[b, i].any():
                say = [math.exp(cosine(queries[b, i], keys[b, j]) / 0.3) for j in range(5)]
                losses.append(-math.log(sum(s for s, m in zip(say, match[b, i], strict=True) if m) / sum(say)))
    value, count = pixel_contrast(queries, keys, match, 0.3)
    assert (float(value), int(count)) == (pytest.approx(sum(losses)), len(losses))
    assert len(losses) < 6, "a cell without a match takes no part"


def test_no_match_at_all_is_a_loss_of_zero_with_a_finite_gradient() -> None:
    queries, keys = cells(2, 3, 4).requires_grad_(), cells(2, 3, 4, seed=1).requires_grad_()
    value, count = pixel_contrast(queries, keys, torch.zeros(2, 3, 3, dtype=torch.bool), 0.3)
    assert (float(value.detach()), int(count)) == (0, 0)
    value.backward()
    assert torch.equal(queries.grad, torch.zeros_like(queries))  # type: ignore[arg-type]
    assert keys.grad is None
    some = torch.zeros(2, 3, 3, dtype=torch.bool)
    some[0, 0, 0] = True
    pixel_contrast(queries, keys, some, 0.3)[0].backward()
    assert torch.isfinite(queries.grad).all()  # type: ignore[arg-type]
    assert keys.grad is None, "no gradient flows into the moving copy's keys"


# -- PixPro's equation ---------------------------------------------------------------------------------------------------


def test_a_cell_is_smoothed_by_all_cells_that_look_like_it_and_itself() -> None:
    x, v = cells(1, 4, 3), cells(1, 4, 5, seed=1)
    for gamma in (1.0, 2.0, 3.5):
        found = propagate(x, v, gamma)[0]
        for i in range(4):
            parts = [max(cosine(x[0, i], x[0, j]), 0) ** gamma * v[0, j] / v[0, j].norm() for j in range(4)]
            torch.testing.assert_close(found[i], sum(parts))


def test_gamma_below_one_has_a_finite_gradient_at_zero() -> None:
    x = torch.eye(3)[None].clone().requires_grad_()  # cosines of exactly 0
    propagate(x, cells(1, 3, 2).float(), 0.5).sum().backward()
    assert torch.isfinite(x.grad).all()  # type: ignore[arg-type]
    same = propagate(cells(1, 4, 3), cells(1, 4, 2, seed=1), 0.0)[0]
    torch.testing.assert_close(same, same[:1].expand(4, -1))


def test_agreement_is_the_mean_over_matching_pairs_of_each_image() -> None:
    a, b = cells(2, 3, 4), cells(2, 5, 4, seed=1)
    match = torch.zeros(2, 3, 5, dtype=torch.bool)
    match[0, 0, 1] = match[0, 2, 4] = True
    expected = (cosine(a[0, 0], b[0, 1]) + cosine(a[0, 2], b[0, 4])) / 2
    assert agreement(a, b, match).tolist() == [pytest.approx(expected), 0]


@pytest.mark.parametrize("name", ["pixpro", "pixcontrast"])
def test_images_without_a_match_do_not_dilute_the_mean(name: str) -> None:
    """In eval mode no norm mixes rows: leaving out the two pictures without a match changes nothing."""
    model = module_of(name).eval()
    if name == "pixpro":
        object.__setattr__(model, "predictor", None)
    whole, numbers = model(batch_of(slice(0, ROWS)))
    rest, _ = model(batch_of(slice(2, ROWS)))
    none, _ = model(batch_of(slice(0, 2)))
    assert numbers["matched"] <= 0.75
    torch.testing.assert_close(whole, rest)
    assert float(none.detach()) == 0
    none.backward()


def test_both_directions_and_the_factor_two() -> None:
    model = module_of("pixpro").eval()
    object.__setattr__(model, "predictor", None)
    batch = batch_of(slice(2, ROWS))
    batch["views"][1], batch["boxes"] = batch["views"][0], torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(2, 6, 1)
    online, keys = model.look(batch["views"][0]), model.look_slowly(batch["views"][0])
    smooth = propagate(online.cells, cells_of(model.values(online.heads[0])), 2.0)
    cos = torch.nn.functional.cosine_similarity(smooth, keys.cells, dim=2)
    torch.testing.assert_close(model(batch)[0], -4 * cos.mean())


def test_shapes_that_do_not_fit_are_refused() -> None:
    match = torch.zeros(2, 3, 3, dtype=torch.bool)
    for call in (
        lambda: pixel_contrast(cells(2, 3, 4), cells(2, 3, 5), match, 0.3),
        lambda: agreement(cells(2, 3, 4), cells(2, 4, 4), match),
        lambda: propagate(cells(2, 3, 4), cells(2, 4, 4), 2.0),
        lambda: propagate(cells(2, 3, 4), cells(2, 3, 4), -1.0),
        lambda: pixel_contrast(cells(2, 3, 4), cells(2, 3, 4), match, 0.0),
    ):
        with pytest.raises(InputError):
            call()


# -- the moving copy and what is logged ----------------------------------------------------------------------------------


def test_the_copy_follows_on_a_cosine_whose_count_is_kept() -> None:
    model = module_of("pixpro")
    before = {name: value.clone() for name, value in model.ema.module.named_parameters()}
    assert not any(value.requires_grad for value in model.ema.parameters())
    with torch.no_grad():
        for parameter in model.online.parameters():
            parameter += 1
    model.after_step()
    for name, value in model.ema.module.named_parameters():
        torch.testing.assert_close(value, before[name] + 0.01)
    seen = [model.ema.momentum]
    for _ in range(9):
        model.after_step()
        seen.append(model.ema.momentum)
    assert seen == [pytest.approx(1 - 0.01 * (math.cos(math.pi * t / 10) + 1) / 2) for t in range(1, 11)]
    assert int(model.state_dict()["ema.step"]) == 10, "stored, not recomputed from the epoch"


def test_spread_tells_a_collapse() -> None:
    assert cell_spread(cells(400, 16)) == pytest.approx(1, abs=0.05)
    assert cell_spread(torch.ones(400, 16) + 1e-4 * cells(400, 16)) < 0.01


def test_views_without_overlap_are_told_after_one_pass() -> None:
    model = module_of("pixpro")
    batch = batch_of(slice(0, ROWS))
    batch["boxes"][0, :3], batch["boxes"][1, :3] = torch.tensor([0, 0, 0.2, 0.2]), torch.tensor([0.6, 0.6, 1, 1])
    model(batch)
    with pytest.warns(UserWarning, match="without a matching cell"):
        model.after_step()
    quiet = module_of("pixpro")
    batch["boxes"][:] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    quiet(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quiet.after_step()


def test_only_the_blur_differs_between_the_views() -> None:
    first, second = RECIPE.views_of(CONFIG())
    assert (first.blur, second.blur, first.flip, first.hue) == (1.0, 0.1, 0.5, 0.1)
    assert first.model_copy(update={"blur": 0.1}) == second
    first, second = RECIPE.views_of(CONFIG.parse({"views": {"blur": 0.0}}))
    assert first == second
    assert first.brightness == 0.4, "the other views stay PixPro's"


# -- runs ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["pixpro", "pixcontrast"])
def test_a_run_leaves_an_encoder_and_its_head(recipe: str, pictures: Dataset, tmp_path: Path) -> None:
    more = {"instance_weight": 1.0, "value_layers": 2} if recipe == "pixpro" else {}
    model = learn(recipe, pictures, tmp_path / "model", **SMALL, **more)
    again = efface.load(tmp_path / "model")
    assert again.digest == model.digest
    assert math.isfinite(read_json(tmp_path / "model" / "learn.json")["final_loss"])
    head = load_pixel_head(tmp_path / "model")
    with again.evaluating():
        maps = head(again.maps(again.prepare(list(pictures["image"]))))
    assert maps.shape == (24, 8, 8, 8)
    assert float(maps.std(0).min()) > 0


@pytest.mark.parametrize("name", ["pixpro", "pixcontrast"])
def test_steps_lower_the_loss(name: str) -> None:
    """On one fixed batch of overlapping views of the same pictures."""
    model = module_of(name)
    batch = batch_of(slice(2, ROWS))
    batch["views"][1] = {"pixel_values": batch["views"][0]["pixel_values"].roll(2, dims=3)}  # one cell to the right
    batch["boxes"][0] = torch.tensor([0.0, 0.0, 1.0, 1.0])
    batch["boxes"][1] = torch.tensor([-0.125, 0.0, 0.875, 1.0])
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(40):
        value, _ = model(batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        model.after_step()
        losses.append(float(value.detach()))
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.2


def test_a_killed_run_ends_with_the_same_bits(
    pictures: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efface.learn import module

    class Killed(Exception):
        pass

    settings = SMALL | {"checkpoint_seconds": 1e-9}
    learn("pixpro", pictures, tmp_path / "whole", **settings)
    original = module.Steps.on_step_end

    def killed(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        original(self, args, state, control, **rest)
        if state.global_step == 7:
            raise Killed

    monkeypatch.setattr(module.Steps, "on_step_end", killed)
    with pytest.raises(Killed):
        learn("pixpro", pictures, tmp_path / "model", **settings)
    monkeypatch.setattr(module.Steps, "on_step_end", original)
    learn("pixpro", pictures, tmp_path / "model", **settings)
    for file in ("model.safetensors", "pixels/head.safetensors"):
        whole, resumed = load_file(tmp_path / "whole" / file), load_file(tmp_path / "model" / file)
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"chunk": 4}, "chunk"),
        ({"projector": 8}, "projector"),
        ({"views": {"rotate": 5.0}}, "rotate"),
        ({"most_cells": 63}, "64 x 64"),
    ],
)
def test_what_cannot_be_is_refused(more: dict[str, Any], words: str, pictures: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        learn("pixpro", pictures, tmp_path / "model", **(SMALL | more))


def test_input_without_a_map_is_refused(tmp_path: Path) -> None:
    texts = Dataset.from_dict({"id": ["a", "b", "c"], "text": ["one", "two", "three"]})
    with pytest.raises(ModelError, match="map"):
        learn("pixpro", texts, tmp_path / "model", batch_size=2)
    arrays = Dataset.from_dict({"id": ["a", "b", "c"], "features": [[0.0, 1.0], [1.0, 2.0], [3.0, 1.0]]})
    with pytest.raises(ModelError, match="map"):
        learn("pixcontrast", arrays, tmp_path / "model", batch_size=2)


def test_patches_of_a_vision_transformer_are_cells_too(pictures: Dataset, tmp_path: Path) -> None:
    start = {"width": 32, "depth": 1, "heads": 2, "image_size": SIDE, "patch": 4}
    learn("pixcontrast", pictures, tmp_path / "model", **(SMALL | {"start": start, "epochs": 1}))
    assert load_pixel_head(tmp_path / "model")[0].weight.shape[1] == 32


# -- processes -----------------------------------------------------------------------------------------------------------


def test_two_processes_have_the_loss_and_gradients_of_one(tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("share_script.py"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, script, str(tmp_path), "pixpro", "pixcontrast"], capture_output=True, text=True, timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("pixpro", "pixcontrast"):
        one, two = found(name), load_file(tmp_path / f"{name}.safetensors")
        assert one.keys() == two.keys()
        assert float(one["loss"]) != 0
        for key, value in one.items():
            torch.testing.assert_close(
                two[key], value, atol=2e-6, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
            )


def test_one_process_has_torchs_own_batch_norm() -> None:
    ours, theirs = MapNorm(4), torch.nn.BatchNorm2d(4)
    x = cells(3, 4, 2, 2).float()
    torch.testing.assert_close(ours(x), theirs(x))
