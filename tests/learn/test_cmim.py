"""cMIM: the bounds that keep it finite, its baselines, and the decoder beside the encoder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from torch import Tensor

import efface
from efface.errors import ConfigError, ModelError
from efface.lab.digit_learning import digit_pixels, pictures
from efface.learn.module import Lesson, Steps
from efface.learn.recipes.cmim import CMIMConfig, CMIMModule
from efface.learn.run import learn
from efface.run.files import read_json
from efface.subjects.auto_encoder import LOG_VARIANCE, load_auto_encoder
from efface.subjects.encoder import Encoder
from efface.subjects.small_encoders import VectorEncoder, VectorEncoderConfig

SMALL: dict[str, Any] = {"epochs": 3, "batch_size": 8, "code": 4, "start": {"widths": (16, 8)}, "evaluations": 0}


def arrays() -> Dataset:
    rows = np.random.default_rng(0).uniform(0, 1, (32, 6)).astype(np.float32)
    return Dataset.from_dict({"id": [str(i) for i in range(32)], "features": rows})


def line() -> Dataset:
    """Rows of six values that one number decides, far from [0, 1]."""
    rng = np.random.default_rng(0)
    rows = (rng.uniform(-5, 5, (32, 1)) * np.array([[1.0, -2, 3, 1, -1, 2]])).astype(np.float32)
    return Dataset.from_dict({"id": [str(i) for i in range(32)], "features": rows})


def images() -> Dataset:
    pixels, labels = digit_pixels()
    return pictures(pixels[:24], labels[:24], range(24)).cast_column("label", ClassLabel(num_classes=10))


def module(**config: Any) -> CMIMModule:
    torch.manual_seed(0)
    subject = Encoder(VectorEncoder(VectorEncoderConfig(inputs=6, widths=(8,))))
    rows = torch.rand(32, 6, generator=torch.Generator().manual_seed(1))

    def inputs(places: Any) -> dict[str, Tensor]:
        return {"features": rows[list(places)]}

    return CMIMModule(subject, CMIMConfig(code=4, **config), Lesson(rows=32, steps=9, batch_size=8, inputs=inputs))


def batch(rows: int = 8) -> dict[str, Any]:
    return {"views": [{"features": torch.rand(rows, 6, generator=torch.Generator().manual_seed(2))}]}


def test_the_log_variance_stays_in_its_bounds_however_far_it_is_pushed() -> None:
    model = module()
    with torch.no_grad():
        model.coder.head[-1].bias[4:] = -1e4
    value, numbers = model(batch())
    value.backward()
    assert math.isfinite(float(value.detach()))
    assert numbers["on_clamp"] == 1.0
    assert numbers["posterior_deviation"] == pytest.approx(math.exp(LOG_VARIANCE[0] / 2), rel=1e-4)


def test_the_loss_is_the_equation() -> None:
    from efface.numerics import mim

    model = module(temperature=0.5, contrast=0.7)
    value, _ = model(batch())
    x = batch()["views"][0]["features"]
    mu, lv = model.coder.posterior(model.subject.features({"features": x}))
    z = mu + (0.5 * lv).exp() * model._noise(mu, 8, 0)[0]
    log_x = mim.log_bernoulli(x, model.coder(z))
    own = -(log_x + 0.5 * (mim.log_posterior(z, mu, lv) + mim.log_prior(z))) + 0.7 * mim.self_contrast(z, 0.5)
    torch.testing.assert_close(value, own.mean())
    assert float(log_x.mean().detach()) < -3, "summed over the six values, not meaned"


def test_draws_are_those_of_the_step_and_of_the_row() -> None:
    model = module()
    like = torch.zeros(8, 4)
    whole = model._noise(like, 8, 0)[0]
    torch.testing.assert_close(model._noise(like[:4], 8, 4)[0], whole[4:])
    model.done += 1
    assert not torch.allclose(model._noise(like, 8, 0)[0], whole)


@pytest.mark.parametrize("objective", ["a-mim", "mim", "vae", "ae"])
def test_every_objective_learns_arrays(objective: str, tmp_path: Path) -> None:
    config = SMALL | {"epochs": 20, "learning_rate": 1e-2, "likelihood": "gaussian"}
    learn("cmim", line(), tmp_path / "model", objective=objective, **config)
    losses = read_json(tmp_path / "model" / "learn.json")["losses"]
    assert losses[-1][1] < losses[0][1] - 0.5
    model = load_auto_encoder(tmp_path / "model")
    assert model.coder.form.likelihood == "gaussian"
    items = list(line().with_format("numpy")[:]["features"])
    torch.testing.assert_close(
        model.coder.targets(torch.tensor(np.stack(items))).mean(0), torch.zeros(6), atol=1e-5, rtol=0
    )


def test_gradient_of_symmetric_mim_reaches_the_encoder_through_samples() -> None:
    model = module(objective="mim", likelihood="gaussian", contrast=0.0)
    first, second, noise_x = model._noise(torch.zeros(8, 4), 8, 0)
    assert not torch.equal(first, second)
    model._of_samples(second, noise_x).sum().backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in model.backbone.parameters()]
    assert all(g is not None and bool(g.abs().sum() > 0) for g in gradients)


def test_pictures_and_what_is_saved_beside_them(tmp_path: Path) -> None:
    data = images()
    size = {"architecture": "conv", "channels": (8, 16), "image_size": 8, "patch": 4, "norm": "group"}
    trained = learn(
        "cmim", data, tmp_path / "model", **(SMALL | {"start": size, "decoder_widths": (16, 8), "chunk": 3})
    )
    assert efface.load(tmp_path / "model").digest == trained.digest
    model = load_auto_encoder(tmp_path / "model")
    items = list(data["image"])
    mu, deviation = model.codes(items)
    assert mu.shape == deviation.shape == (24, 4)
    assert model.informative(items).shape == (24, 8 * 8 * 8)
    assert model.coder(mu).shape == (24, 3, 8, 8)
    said = torch.sigmoid(model.coder(mu)).clamp(1e-6, 1 - 1e-6)
    x = torch.tensor(
        np.stack(
            [np.asarray(picture) for picture in data.cast_column("image", data.features["image"].__class__())["image"]]
        )
    )
    x = x.permute(0, 3, 1, 2) / 255
    slow = -(x * said.log() + (1 - x) * (1 - said).log()).sum((1, 2, 3))
    torch.testing.assert_close(model.reconstruction_loss(items), slow, atol=1e-2, rtol=1e-3)
    files = {path.name for path in (tmp_path / "model" / "decoder").iterdir()}
    assert files == {"model.safetensors", "decoder.json"}


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    more = SMALL | {"checkpoint_seconds": 1e-9}
    learn("cmim", arrays(), tmp_path / "whole", **more)

    class Killed(Exception):
        pass

    original = Steps.on_step_end

    def killed(self: Any, args: Any, state: Any, control: Any, **rest: Any) -> None:
        original(self, args, state, control, **rest)
        if state.global_step == 7:
            raise Killed

    monkeypatch.setattr(Steps, "on_step_end", killed)
    with pytest.raises(Killed):
        learn("cmim", arrays(), tmp_path / "model", **more)
    monkeypatch.setattr(Steps, "on_step_end", original)
    learn("cmim", arrays(), tmp_path / "model", **more)
    for name in ("model.safetensors", "decoder/model.safetensors"):
        whole, resumed = (load_file(tmp_path / one / name) for one in ("whole", "model"))
        assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_what_it_cannot_do_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "model"
    texts = Dataset.from_dict({"id": ["0", "1", "2"], "text": ["a fox", "a dog", "a cat"]})
    with pytest.raises(ModelError, match="texts"):
        learn("cmim", texts, out, evaluations=0)
    with pytest.raises(ConfigError, match="symmetric MIM"):
        learn("cmim", arrays(), out, objective="mim", **SMALL)
    with pytest.raises(ConfigError, match="projector"):
        learn("cmim", arrays(), out, projector=8, **SMALL)
    with pytest.raises(ConfigError, match="convolutional"):
        learn("cmim", arrays(), out, decoder="conv", **SMALL)
    learn(
        "nt-xent",
        arrays(),
        tmp_path / "plain",
        **{name: SMALL[name] for name in ("epochs", "batch_size", "start", "evaluations")},
    )
    with pytest.raises(ModelError, match="no decoder"):
        load_auto_encoder(tmp_path / "plain")
    learn("cmim", arrays(), out, **SMALL)
    form = json.loads((out / "decoder" / "decoder.json").read_text())
    (out / "decoder" / "decoder.json").write_text(json.dumps(form | {"code": 5}))
    with pytest.raises(ModelError, match="not whole"):
        load_auto_encoder(out)
