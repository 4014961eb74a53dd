"""The digit encoder: shape, seeds, and that every pixel reaches the output."""

from __future__ import annotations

import torch

from efface.lab.digit_encoder import new_digit_encoder


def test_shapes_seeds_and_reach() -> None:
    encoder = new_digit_encoder(0)
    assert encoder.digest == new_digit_encoder(0).digest != new_digit_encoder(1).digest
    pixels = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = encoder.features({"pixel_values": pixels})
    assert out.shape == (3, 64)
    out[0].square().sum().backward()
    assert pixels.grad is not None
    assert (pixels.grad[0].abs() > 0).all(), "no pixel is lost"
    assert not pixels.grad[1:].any(), "rows are independent"
