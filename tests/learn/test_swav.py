"""SwAV: the loss against loops, codes, queue, prototypes, crops, warnings, and runs that are killed."""

from __future__ import annotations

import io
import json
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
from efface.errors import ConfigError, InputError, ModelError
from efface.learn.heads import SharedBatchNorm, mlp
from efface.learn.memory.prototypes import Prototypes
from efface.learn.module import Lesson, Steps
from efface.learn.recipes.swav import CONFIG, RECIPE, SwavModule, load_head, swav_losses
from efface.learn.run import learn
from efface.numerics.transport import balanced_codes
from efface.run.files import read_json

SIDE = 16
SMALL: dict[str, Any] = {
    "start": {"architecture": "conv", "channels": (8, 16), "image_size": SIDE, "patch": 4}, "prototypes": 6, "hidden": 16,
    "projector": 8, "batch_size": 8, "epochs": 3, "queue_size": 12, "queue_start": 0.5, "learning_rate": 3e-3,
    "small_crops": 1, "small_views": {"size": 8, "crop_area": (0.2, 0.5)}, "evaluations": 0,
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


def swav(**more: Any) -> SwavModule:
    """The module of `clustering_script`, with other settings."""
    made = module_of("swav", **more)
    assert isinstance(made, SwavModule)
    return made


def step(model: SwavModule, number: int) -> tuple[Tensor, dict[str, float]]:
    """One forward and backward pass with the hooks; no optimiser."""
    model.zero_grad(set_to_none=True)
    value, numbers = model(batch_of(number, slice(None)))
    value.backward()
    model.before_step()
    model.after_step()
    model.done += 1
    return value.detach(), numbers


def test_the_loss_against_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [5 * torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(4)]
    codes = [balanced_codes(logits[place] / 5, eps=0.3) for place in range(2)]
    found = swav_losses(codes, logits)
    for b in range(4):
        total = 0.0
        for a in range(2):
            for v in range(4):
                if v != a:
                    lse = math.log(sum(math.exp(float(x)) for x in logits[v][b]))
                    total -= sum(float(codes[a][b, k]) * (float(logits[v][b, k]) - lse) for k in range(3)) / 3
        assert float(found[b]) == pytest.approx(total / 2, rel=1e-12)


def test_codes_have_no_gradient_and_every_crop_has() -> None:
    views = [torch.randn(4, 3).requires_grad_() for _ in range(3)]
    codes = [torch.full((4, 3), 1 / 3, requires_grad=True) for _ in range(2)]
    grads = torch.autograd.grad(swav_losses(codes, views).sum(), [*views, *codes], allow_unused=True)
    assert all(grad is not None and bool(grad.any()) for grad in grads[:3])
    assert grads[3] is None
    assert grads[4] is None


def test_one_crop_is_refused() -> None:
    logits = [torch.zeros(2, 3)]
    with pytest.raises(ConfigError, match="two or more crops"):
        swav_losses(logits, logits)
    with pytest.raises(ConfigError, match="two or more crops"):
        swav_losses(logits * 3, logits * 2)
    with pytest.raises(ConfigError, match="one crop"):
        swav(full_crops=1, small_crops=0)
    assert len(RECIPE.views_of(CONFIG())) == 8


def test_prototypes_are_unit_before_the_forward_pass_and_frozen_at_first() -> None:
    model = swav(freeze=1.0)  # an epoch is two steps
    weight = model.head.prototypes.weight
    for number in range(3):
        with torch.no_grad():
            weight.mul_(3.0)  # what an optimiser's step may leave
        step(model, number)
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(6, dtype=weight.dtype))
        assert (weight.grad is None) == (number < 2)
    with torch.no_grad():
        weight.mul_(3.0)
    model.finish()
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(6, dtype=weight.dtype))


def test_scores_are_float32_under_autocast() -> None:
    prototypes = Prototypes(5, 8)
    z = torch.nn.functional.normalize(torch.randn(4, 8), dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = prototypes(z)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, z @ prototypes.weight.T)
    with pytest.raises(InputError, match="embeddings"):
        prototypes(z[:, :3])
    with pytest.raises(ConfigError, match="at least 1"):
        Prototypes(0, 8)


def test_a_queue_is_used_only_when_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    from efface.learn.recipes import swav as file

    rows = []

    def spy(scores: Tensor, **settings: Any) -> Tensor:
        rows.append(len(scores))
        return balanced_codes(scores, **settings)

    monkeypatch.setattr(file, "balanced_codes", spy)
    model = swav(queue_size=19, queue_start=0.5)  # from step 1 on: 8, 16, 19 rows after steps 1, 2, 3
    fills = [step(model, number)[1]["queue"] for number in range(5)]
    assert rows[::2] == [8, 8, 8, 8, 8 + 19]
    assert fills == [0, 0, 8, 16, 19]


def test_queue_scores_are_taken_with_the_present_prototypes() -> None:
    model = swav(queue_size=8, queue_start=0.0, freeze=0.0)
    step(model, 0)
    earlier = model.queues[0].filled()[0]
    scores = torch.randn(8, 6)
    for _ in range(2):
        expected = balanced_codes(torch.cat([scores, earlier @ model.head.prototypes.weight.T]), eps=0.05)[:8]
        torch.testing.assert_close(model._codes(0, scores), expected)
        with torch.no_grad():
            model.head.prototypes.weight.copy_(torch.nn.functional.normalize(torch.randn(6, 8), dim=1))


def test_queues_belong_to_their_crop() -> None:
    model = swav(queue_size=8, queue_start=0.0)
    step(model, 0)
    first, second = (queue.filled()[0] for queue in model.queues)
    assert float((first - second).abs().max()) > 1e-3
    torch.testing.assert_close(first.norm(dim=1), torch.ones(8, dtype=first.dtype))


def test_crops_of_one_size_go_through_the_encoder_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model = swav()
    shapes = []
    original = model.subject.features

    def spy(inputs: dict[str, Tensor]) -> Tensor:
        shapes.append(tuple(inputs["pixel_values"].shape))
        found: Tensor = original(inputs)
        return found

    monkeypatch.setattr(model.subject, "features", spy)
    views = batch_of(0, slice(None))["views"]
    together = model._embed(views)
    assert shapes == [(16, 3, 16, 16), (8, 3, 8, 8)]
    model.eval()  # each row for itself
    for place, rows in enumerate(model._embed(views)):
        torch.testing.assert_close(rows, model._embed([views[place]])[0], atol=1e-5, rtol=1e-4)
    assert [len(rows) for rows in together] == [8, 8, 8]


def test_failures_are_seen_in_the_numbers() -> None:
    few = swav(prototypes=30, queue_size=8, queue_start=0.0)
    numbers = [step(few, number)[1] for number in range(2)]
    assert [one["rows_per_prototype"] for one in numbers] == [8 / 30, 16 / 30]
    assert any("share 30 prototypes" in line for line in few.warnings())
    stuck = swav(
        temperature=1000.0, freeze=0.5, queue_size=0
    )  # uniform predictions: a loss of log K; frozen for one step
    numbers = [step(stuck, number)[1] for number in range(3)]
    assert [one["stuck_steps"] for one in numbers] == [0, 1, 2]
    assert numbers[-1]["loss_of_log_k"] == pytest.approx(1, abs=0.01)
    assert any("log K for the last 2 steps" in line for line in stuck.warnings())
    late = swav(queue_start=50)
    step(late, 0)
    assert any("never filled" in line for line in late.warnings())
    assert swav(queue_size=0).warnings() == []


def test_softmax_codes_are_the_ablation() -> None:
    scores = torch.randn(8, 6)
    torch.testing.assert_close(swav(codes="softmax")._codes(0, scores), (scores / 0.1).softmax(1))


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="below the batch"):
        swav(queue_size=5)
    with pytest.raises(ConfigError, match="chunk"):
        swav(chunk=4)


def test_heads() -> None:
    kinds = [type(layer).__name__ for layer in mlp((3, 5, 4))]
    assert kinds == ["Linear", "SharedBatchNorm", "ReLU", "Linear"]
    assert [type(layer).__name__ for layer in mlp((3, 4), last_norm=True)] == ["Linear", "SharedBatchNorm"]
    x, mine, theirs = torch.randn(6, 4), SharedBatchNorm(4), torch.nn.BatchNorm1d(4)
    torch.testing.assert_close(mine(x), theirs(x))
    torch.testing.assert_close(mine.running_var, theirs.running_var)


def test_a_run_leaves_encoder_and_prototypes(pictures: Dataset, tmp_path: Path) -> None:
    model = learn("swav", pictures, tmp_path / "model", **SMALL)
    assert efface.load(tmp_path / "model").digest == model.digest
    assert math.isfinite(read_json(tmp_path / "model" / "learn.json")["final_loss"])
    head = load_head(tmp_path / "model")
    torch.testing.assert_close(head.prototypes.weight.norm(dim=1), torch.ones(6))
    with torch.no_grad():
        scores = head(torch.randn(5, 16))
    assert scores.shape == (5, 6)
    assert float(scores.abs().max()) <= 1 + 1e-6
    facts = json.loads((tmp_path / "model" / "prototypes" / "config.json").read_text())
    assert facts["sizes"] == [16, 16, 8, 6]
    told = read_json(tmp_path / "model" / "learn.json")["warnings"]
    assert not any("share" in line or "never filled" in line for line in told)
    with pytest.raises(ModelError, match="no prototypes"):
        load_head(tmp_path)


def test_texts_and_arrays_have_crops_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = Dataset.from_dict({"id": [str(i) for i in range(16)], "features": rng.random((16, 6)).tolist()})
    plain = {key: value for key, value in SMALL.items() if key not in ("start", "small_views")}
    assert learn("swav", arrays, tmp_path / "arrays", **(plain | {"epochs": 1})).modality == "features"
    texts = Dataset.from_dict(
        {"id": [str(i) for i in range(16)], "text": [f"word{i} and more of it" for i in range(16)]}
    )
    start = {"width": 32, "depth": 1, "heads": 2, "context": 8}
    assert learn("swav", texts, tmp_path / "texts", start=start, **(plain | {"epochs": 1})).modality == "text"


def test_a_killed_run_ends_with_the_same_bits(
    pictures: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SMALL | {"checkpoint_seconds": 1e-9}
    learn("swav", pictures, tmp_path / "whole", **settings)

    class Killed(Exception):
        pass

    original = Steps.on_step_end

    def killed(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        original(self, args, state, control, **rest)
        if state.global_step == 6:
            raise Killed

    monkeypatch.setattr(Steps, "on_step_end", killed)
    with pytest.raises(Killed):
        learn("swav", pictures, tmp_path / "model", **settings)
    monkeypatch.setattr(Steps, "on_step_end", original)
    learn("swav", pictures, tmp_path / "model", **settings)
    for place in ("model.safetensors", "prototypes/model.safetensors"):
        whole, resumed = load_file(tmp_path / "whole" / place), load_file(tmp_path / "model" / place)
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_lesson_decides_the_steps_of_an_epoch() -> None:
    lesson = Lesson(rows=100, steps=10, batch_size=8, inputs=lambda rows: {})
    assert lesson.steps_per_epoch == 12.5
    model = module_of("swav")
    assert isinstance(model, SwavModule)
    assert (model.frozen_steps, model.queue_step) == (2, 1)
