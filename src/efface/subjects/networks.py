"""Small networks by name, for classifiers and regressors that are trained from scratch; factories for model.json."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def mlp(inputs: int, outputs: int, hidden: Sequence[int] = (128, 64), dropout: float = 0.0) -> nn.Sequential:
    """[B, ...] flattened to [B, inputs], ReLU layers of the given widths (dropout after each), then `outputs` numbers."""
    layers: list[nn.Module] = [nn.Flatten()]
    for wide, narrow in zip((inputs, *hidden[:-1])[: len(hidden)], hidden, strict=True):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    layers.append(nn.Linear(hidden[-1] if hidden else inputs, outputs))
    return nn.Sequential(*layers)


def conv(
    channels: int, side: int | Sequence[int], outputs: int, widths: Sequence[int] = (16, 32), features: int = 64,
    norm: bool = False, dropout: float = 0.0,
) -> nn.Sequential:  # fmt: skip
    """[B, channels, H, W] through 3 x 3 convolutions, each halving the sides, then one ReLU layer of `features`.

    Args:
        side: H = W, or (H, W).
        norm: a batch norm after each convolution.
    """
    height, width = (side, side) if isinstance(side, int) else side
    layers: list[nn.Module] = []
    for inside, outside in zip((channels, *widths[:-1]), widths, strict=True):
        layers.append(nn.Conv2d(inside, outside, 3, padding=1))
        if norm:
            layers.append(nn.BatchNorm2d(outside))
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        height, width = height // 2, width // 2
    layers += [nn.Flatten(), nn.Linear(widths[-1] * height * width, features), nn.ReLU()]
    if dropout:
        layers.append(nn.Dropout(dropout))
    layers.append(nn.Linear(features, outputs))
    return nn.Sequential(*layers)


__all__ = ["conv", "mlp"]
