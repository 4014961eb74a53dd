"""Gradient descent on the digits: its gradient, its labels, and what the two models know."""

from __future__ import annotations

import torch

from efface.lab.digits import CLASSES, FORGET, TRAIN, accuracy, descend, digits, divergence, drift, label_logp


def test_one_step_is_minus_the_closed_form_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(7, 5, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    start = torch.randn(5, 3, generator=generator)
    (after,) = descend(start, features, labels, lambda logp, _: -logp, steps=1, learning_rate=0.1)
    residual = (features @ start).softmax(-1) - torch.nn.functional.one_hot(labels, 3)
    torch.testing.assert_close(after, start - 0.1 * features.T @ residual / 7)
    kept = descend(start, features, labels, lambda logp, _: -logp, steps=3, learning_rate=0.1, keep=(1, 3))
    assert len(kept) == 3
    torch.testing.assert_close(kept[0], after)
    torch.testing.assert_close(kept[1], kept[2])
    assert drift(start, start) == 0


def test_the_draw_and_its_two_models() -> None:
    world, again, other = digits(0), digits(0), digits(1)
    assert torch.equal(world.original, again.original)
    assert not torch.equal(world.original, other.original)
    assert world.features.shape == (TRAIN, 257)
    assert len(world.test_labels) == 497
    assert accuracy(world.original, world) > 0.9
    assert accuracy(world.retrained, world) > accuracy(world.original, world)
    assert divergence(world.retrained, world) == 0
    assert divergence(world.original, world) > 0.05
    wrong, right = label_logp(world.retrained, world.features, world.labels).split([FORGET, TRAIN - FORGET])
    assert float(wrong.mean()) < -2 < float(right.mean())  # the forget labels are wrong, the others are not
    assert int(world.labels.max()) == CLASSES - 1
