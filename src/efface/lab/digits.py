"""Digits: softmax regression on fixed random features, the stage of NPO's synthetic experiment with real images.

scikit-learn's 1797 digits, 256 random ReLU features that never move, 130 training images with random wrong labels as the
forget set. The model is one matrix, so training is full-batch gradient descent in a plain loop, as in the paper
(arXiv 2404.05868, section 3): there is nothing for the training engine to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

TRAIN, FORGET, FEATURES, CLASSES = 1300, 130, 256, 10

Loss = Callable[[Tensor, Tensor], Tensor]
"""(log-probabilities of the labels [n] under the model, the same under the reference [n]) -> losses [n]."""


@dataclass(frozen=True)
class Digits:
    """One draw of the experiment.

    Attributes:
        features, labels: of the training images, [1300, 257] with a constant column and [1300]; the first 130 are the
            forget set and carry wrong labels.
        test_features, test_labels: of the 497 test images, with true labels.
        original: [257, 10] fitted on all training images.
        retrained: [257, 10] fitted without the forget set.
    """

    features: Tensor
    labels: Tensor
    test_features: Tensor
    test_labels: Tensor
    original: Tensor
    retrained: Tensor


def digits(seed: int = 0, *, fit_steps: int = 500, learning_rate: float = 1.0) -> Digits:
    """Draw split, features and wrong labels from a seed, and fit both models."""
    rng = np.random.default_rng(seed)
    images, truth = load_digits(return_X_y=True)
    order = rng.permutation(len(images))
    inputs = torch.tensor(images[order] / 16.0, dtype=torch.float32)
    labels = torch.tensor(truth[order], dtype=torch.long)
    projection = torch.tensor(rng.standard_normal((inputs.shape[1], FEATURES)) / 8.0, dtype=torch.float32)
    ones = torch.ones(len(inputs), 1)
    features = torch.cat([(inputs @ projection).relu(), ones], dim=1)  # [1797, 257]
    labels[:FORGET] = (labels[:FORGET] + torch.tensor(rng.integers(1, CLASSES, FORGET))) % CLASSES
    train, wanted = features[:TRAIN], labels[:TRAIN]
    start = torch.zeros(FEATURES + 1, CLASSES)

    def nll(logp: Tensor, _: Tensor) -> Tensor:
        return -logp

    fitted = [
        descend(start, train[part], wanted[part], nll, steps=fit_steps, learning_rate=learning_rate)[-1]
        for part in (slice(None), slice(FORGET, None))
    ]
    return Digits(train, wanted, features[TRAIN:], labels[TRAIN:], fitted[0], fitted[1])


def descend(
    start: Tensor, features: Tensor, labels: Tensor, loss: Loss, *, steps: int, learning_rate: float,
    keep: tuple[int, ...] = (),
) -> list[Tensor]:  # fmt: skip
    """Full-batch gradient descent on the mean loss.

    Args:
        start: [d, C]; also the reference.
        features: [n, d].
        labels: [n].
        keep: steps whose weights are wanted.

    Returns:
        the weights at each step of `keep`, then the last ones.
    """
    with torch.no_grad():
        reference = label_logp(start, features, labels)
    weights = start.clone().requires_grad_(True)
    kept = []
    for step in range(1, steps + 1):
        (gradient,) = torch.autograd.grad(loss(label_logp(weights, features, labels), reference).mean(), weights)
        with torch.no_grad():
            weights -= learning_rate * gradient
        if step in keep:
            kept.append(weights.detach().clone())
    return [*kept, weights.detach().clone()]


def label_logp(weights: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """[n] log-probability of each label."""
    return (features @ weights).log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def drift(weights: Tensor, start: Tensor) -> float:
    """Euclidean distance from the start."""
    return float((weights - start).norm())


def accuracy(weights: Tensor, world: Digits) -> float:
    """Share of the test images that are read right."""
    return float(((world.test_features @ weights).argmax(-1) == world.test_labels).float().mean())


def divergence(weights: Tensor, world: Digits) -> float:
    """Mean KL(retrained || weights) over the test images, in nats."""
    ours = (world.test_features @ weights).log_softmax(-1)
    theirs = (world.test_features @ world.retrained).log_softmax(-1)
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())
