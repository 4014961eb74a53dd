"""The stack of classifiers against models trained one by one; halves, noise and the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from efface.errors import ConfigError
from efface.lab import shadows as lab


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))


def test_the_stack_equals_models_trained_alone() -> None:
    """The plain way: one torch module, its own Adam, only the rows that it may see."""
    images, labels = lab.digits()
    images, labels = images[:40], labels[:40]
    keep = torch.from_numpy(lab.random_halves(3, 40, np.random.default_rng(0)))
    start = lab.new_stack(3, seed=5, width=8)
    before = {name: tensor.clone() for name, tensor in start.items()}
    stack = lab.fit_stack(start, images, labels, keep.float(), steps=5, learning_rate=1e-2)
    assert all(torch.equal(start[name], before[name]) for name in start)
    for index in range(3):
        model = lab.mlp(8)
        model.load_state_dict({name: tensor[index] for name, tensor in start.items()})
        adam = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(5):
            adam.zero_grad()
            torch.nn.functional.cross_entropy(model(images[keep[index]]), labels[keep[index]]).backward()
            adam.step()
        with torch.no_grad():
            torch.testing.assert_close(lab.stack_logits(stack, images)[index], model(images), rtol=1e-3, atol=1e-3)


def test_look_sees_the_start_and_every_step() -> None:
    images, labels = lab.digits()
    seen = []
    start = lab.new_stack(1, seed=0, width=4)
    end = lab.fit_stack(
        start, images[:20], labels[:20], torch.ones(1, 20), steps=3, learning_rate=1e-2,
        look=lambda step, stack: seen.append((step, stack["0.weight"].clone())),
    )  # fmt: skip
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert torch.equal(seen[0][1], start["0.weight"])
    assert torch.equal(seen[-1][1], end["0.weight"])


def test_every_model_sees_a_random_half() -> None:
    keep = lab.random_halves(50, 41, np.random.default_rng(0))
    assert (keep.sum(1) == 20).all()
    assert len({tuple(row) for row in keep.tolist()}) == 50
    assert keep.any(0).all()
    assert not keep.all(0).any()


def test_shadows_have_noise_remember_their_half_and_come_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.random.get_rng_state()
    made = lab.shadows(3, models=4, examples=100, steps=150)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert made.logits.shape == (4, 100, 10)
    assert made.noisy.sum() == 15
    right = made.logits.argmax(-1) == made.labels
    assert right[made.keep].mean() > 0.99  # wrong labels too: they were remembered
    wrong = np.broadcast_to(made.noisy, right.shape) & ~made.keep
    assert right[wrong].mean() < 0.3

    def no_training(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(lab, "fit_stack", no_training)
    again = lab.shadows(3, models=4, examples=100, steps=150)
    assert np.array_equal(again.logits, made.logits)
    assert np.array_equal(again.keep, made.keep)
    assert np.array_equal(again.labels, made.labels)
    with pytest.raises(AssertionError, match="trained again"):
        lab.shadows(4, models=4, examples=100, steps=150)


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="1797"):
        lab.shadows(examples=5000)
    with pytest.raises(ConfigError, match="sees no example"):
        lab.fit_stack(
            lab.new_stack(2, 0, 4), torch.zeros(3, 64), torch.zeros(3, dtype=torch.long),
            torch.tensor([[1.0, 1, 1], [0, 0, 0]]), steps=1, learning_rate=1e-2,
        )  # fmt: skip
