"""SalUn: the mask by sorting, frozen bits under decay and momentum, the published leak, the proximal step by a loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from efface.data.request import Request
from efface.errors import ConfigError
from efface.forget.edit import Edit
from efface.forget.method import find_method
from efface.forget.objectives.salun import METHOD, soft_step
from efface.lab.classified import labelled
from efface.learn.recipes.classifier import ClassifierConfig, new_model
from efface.subjects.predictor import Predictor
from efface.train.snapshot import bits
from efface.train.weight_mask import WeightMask

NAMES = [str(i) for i in range(4)]
HARD = {"learning_rate": 0.05, "batch_size": 8, "epochs": 3, "momentum": 0.9, "weight_decay": 0.5}


def rows(labels: list[int], seed: int) -> Any:
    features = np.random.default_rng(seed).normal(size=(len(labels), 6)) + np.asarray(labels)[:, None]
    return labelled(features, labels, [f"{seed}-{i}" for i in range(len(labels))], NAMES)


@pytest.fixture
def request4() -> Request:
    return Request(forget=rows([3] * 10, 0), retain=rows([0, 1, 2] * 10, 1))


@pytest.fixture
def mlp(request4: Request) -> Predictor:
    return new_model(ClassifierConfig(arguments={"hidden": [16, 8]}), request4.forget)


def fit(subject: Predictor, request: Request, folder: Path, name: str = "salun", **values: Any) -> Edit:
    method = find_method(name)
    config = method.configure({**HARD, **values})
    return method.fit(subject, request, config, work=folder / "work", out=folder / "edit").edit


def moved(subject: Predictor, edit: Edit) -> dict[str, torch.Tensor]:
    """Which entries have other bits with the edit."""
    before = {name: tensor.detach().clone() for name, tensor in subject.weights().items()}
    edit.apply(subject)
    found = {name: bits(tensor) != bits(before[name]) for name, tensor in subject.weights().items()}
    edit.remove(subject)
    return found


def saliency(subject: Predictor, request: Request) -> dict[str, torch.Tensor]:
    """|sum over rows of the gradient of -log p(own label)|, one row at a time."""
    subject.model.eval()
    total = {name: torch.zeros_like(p) for name, p in subject.model.named_parameters()}
    for row in subject.encode_rows(request.forget):
        logits = subject.model(row.make()["x"].unsqueeze(0))
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([row.target]))
        for name, grad in zip(total, torch.autograd.grad(loss, list(subject.model.parameters())), strict=True):
            total[name] += grad
    return {name: value.abs() for name, value in total.items()}


@pytest.mark.parametrize("density", [0.5, 0.13])
def test_exactly_the_rest_keeps_its_bits_under_decay_and_momentum(
    density: float, mlp: Predictor, request4: Request, tmp_path: Path
) -> None:
    edit = fit(mlp, request4, tmp_path, density=density)
    mask = WeightMask.load(edit.folder / "mask.safetensors")
    total = mlp.n_parameters
    assert mask.size == total, "biases are ranked too, all tensors together"
    assert mask.selected == round(density * total)
    found = moved(mlp, edit)
    for name, part in mask.masks.items():
        assert not bool(found[name][~part].any()), f"{name}: a frozen weight moved"
    assert sum(int(part.sum()) for part in found.values()) > 0.9 * mask.selected


def test_the_mask_is_the_largest_of_the_whole_gradient(mlp: Predictor, request4: Request, tmp_path: Path) -> None:
    edit = fit(mlp, request4, tmp_path)
    mask = WeightMask.load(edit.folder / "mask.safetensors")
    score = torch.cat([value.flatten() for value in saliency(mlp, request4).values()])
    chosen = torch.cat([mask.masks[name].flatten() for name, _ in mlp.model.named_parameters()])
    assert score[chosen].min() >= score[~chosen].max() - 1e-5
    assert mask.facts.selector == "gradient"


def test_the_leaky_variant_leaks_and_only_by_decay(mlp: Predictor, request4: Request, tmp_path: Path) -> None:
    mask = WeightMask.load(fit(mlp, request4, tmp_path / "a").folder / "mask.safetensors")

    def leaked(folder: str, **values: Any) -> int:
        found = moved(mlp, fit(mlp, request4, tmp_path / folder, **values))
        return sum(int(found[name][~part].sum()) for name, part in mask.masks.items())

    frozen = mask.size - mask.selected
    assert leaked("tight") == 0
    assert leaked("leaky", leaky=True) > 0.8 * frozen, "all frozen matrix entries shrink"
    assert leaked("plain", leaky=True, weight_decay=0.0) == 0, "no gradient and no decay: nothing moves"


def test_the_leak_is_weight_decay(mlp: Predictor, request4: Request, tmp_path: Path) -> None:
    tight = fit(mlp, request4, tmp_path / "a", momentum=0.0, epochs=1, batch_size=40)
    mask = WeightMask.load(tight.folder / "mask.safetensors")
    leaky = fit(mlp, request4, tmp_path / "b", leaky=True, momentum=0.0, epochs=1, batch_size=40)
    before = {name: tensor.detach().clone() for name, tensor in mlp.weights().items()}
    leaky.apply(mlp)
    for name, now in mlp.weights().items():
        if now.dim() > 1:
            frozen = ~mask.masks[name]
            assert torch.allclose(now[frozen], before[name][frozen] * (1 - 0.05 * 0.5), atol=1e-7), name


def test_a_density_of_one_and_a_ratio_of_zero_are_random_labels(
    mlp: Predictor, request4: Request, tmp_path: Path
) -> None:
    plain = fit(mlp, request4, tmp_path / "a", "random-labels")
    for name, values in (("b", {"density": 1.0}), ("c", {"soft": True, "mask_ratio": 0.0})):
        assert fit(mlp, request4, tmp_path / name, **values).facts.edited_digest == plain.facts.edited_digest


def test_same_seed_same_bits(mlp: Predictor, request4: Request, tmp_path: Path) -> None:
    for variant in ({}, {"soft": True}, {"leaky": True}):
        found = [
            fit(mlp, request4, tmp_path / f"{i}-{variant}", epochs=1, seed=seed, **variant).facts.edited_digest
            for i, seed in enumerate((0, 0, 1) if not variant else (0, 0))
        ]
        assert found[0] == found[1], variant
        assert variant or found[1] != found[2]


def test_the_soft_step_by_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    anchor = {name: torch.randn(shape, generator=generator) for name, shape in (("a", (3, 4)), ("b", (5,)))}
    start = {name: value + torch.randn(value.shape, generator=generator) for name, value in anchor.items()}
    delta = torch.cat([(start[name] - anchor[name]).flatten() for name in anchor])
    for k in (0, 1, 9, 17):
        theta = {name: value.clone() for name, value in start.items()}
        threshold = soft_step(theta, anchor, k)
        expected = sorted(float(x) for x in delta.abs())[k - 1] if k else 0.0
        assert threshold == pytest.approx(expected, rel=1e-6)
        back = 0
        for name in theta:
            for now, then, at in zip(theta[name].flatten(), start[name].flatten(), anchor[name].flatten(), strict=True):
                d = float(then - at)
                wanted = float(at) + (1 if d > 0 else -1) * max(abs(d) - expected, 0.0)
                assert float(now) == pytest.approx(wanted, abs=1e-6)
                back += int(torch.equal(now, at))
        assert back == k, "the k smallest have the anchor's bits"


def test_the_soft_anchor_survives_a_kill(mlp: Predictor, request4: Request, tmp_path: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    from efface.train import engine

    values = {"soft": True, "checkpoint_seconds": 1e-9}
    kept = fit(mlp, request4, tmp_path / "a", **values)
    plain, calls = engine._Engine.compute_loss, {"n": 0}

    def dying(self: Any, *args: Any, **more: Any) -> Any:
        calls["n"] += 1
        if calls["n"] == 9:
            raise KeyboardInterrupt
        return plain(self, *args, **more)

    monkeypatch.setattr(engine._Engine, "compute_loss", dying)
    with pytest.raises(KeyboardInterrupt):
        fit(mlp, request4, tmp_path / "b", **values)
    monkeypatch.setattr(engine._Engine, "compute_loss", plain)
    mlp.changed()
    assert fit(mlp, request4, tmp_path / "b", **values).facts.edited_digest == kept.facts.edited_digest


def test_statistics_of_batch_norms_rest_under_the_mask(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [labelled(rng.random((n, 1, 8, 8)), labels, [f"{n}-{i}" for i in range(n)], NAMES)
                for n, labels in ((8, [3] * 8), (24, [0, 1, 2] * 8))]  # fmt: skip
    request = Request(forget=pictures[0], retain=pictures[1])
    config = ClassifierConfig(
        factory="efface.subjects.networks:conv",
        arguments={"channels": 1, "side": 8, "outputs": 4, "widths": [4], "features": 8, "norm": True},
    )  # fmt: skip
    subject = new_model(config, request.forget)
    for name, values, still in (
        ("a", {}, True),
        ("b", {"leaky": True}, False),
        ("c", {"norm_statistics": "move"}, False),
    ):
        found = moved(subject, fit(subject, request, tmp_path / name, **values))
        assert bool(found["1.running_mean"].any()) != still, values


def test_what_makes_no_sense_is_refused(mlp: Predictor, request4: Request, tmp_path: Path) -> None:
    for values, words in (
        ({"soft": True, "leaky": True}, "soft and leaky"), ({"soft": True, "scope": "mask"}, "takes the mask's place"),
        ({"scope": "all"}, "without its mask"), ({"leaky": True, "mask": "random"}, "published code"),
        ({"density": 0.0}, "density"), ({"density": 1.5}, "density"), ({"scope": "lora"}, "scope"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            METHOD.configure(values)
    assert METHOD.configure({"scope": "layers", "layers": "0"}).scope == "mask"
    for leaky in (False, True):
        with pytest.raises(ConfigError, match=r"no parameter to train|no weight move"):
            fit(mlp, request4, tmp_path / f"few-{leaky}", density=1e-6, leaky=leaky)
    none = WeightMask({name: torch.zeros_like(p, dtype=torch.bool) for name, p in mlp.model.named_parameters()})
    path = none.save(tmp_path / "none.safetensors")
    with pytest.raises(ConfigError, match="no parameter to train"):
        fit(mlp, request4, tmp_path / "none", mask=str(path))
    numbers = Dataset.from_dict({"id": ["a", "b"], "features": [[0.0, 1.0], [1.0, 0.0]], "target": [0.5, 1.5]})
    regressor = new_model(ClassifierConfig(arguments={"hidden": [4]}), numbers)
    with pytest.raises(ConfigError, match="no other one to draw"):
        fit(regressor, Request(forget=numbers.select([0]), retain=numbers.select([1])), tmp_path / "numbers")
    assert not list(tmp_path.glob("*/edit"))
