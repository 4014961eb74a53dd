"""A small convolutional encoder for 8 x 8 digits: what the contrastive proofs on digits start from.

ConvNeXt blocks in four stages that halve the side each time, 8 to 1, so that the place of a stroke is not averaged away.
It was chosen among three encoders by the accuracy of a probe on what it learns (0.96 against 0.91 to 0.93 for a vision
transformer and a two-stage ConvNeXt of the same width), not by the figures of any proof.
"""

from __future__ import annotations

from efface.learn.starts import image_processor
from efface.subjects.encoder import Encoder
from efface.train.engine import isolated_rng

SIDE = 8


def new_digit_encoder(seed: int) -> Encoder:
    """Untrained; [B, 3, 8, 8] pictures to [B, 64]."""
    from transformers import ConvNextConfig, ConvNextModel

    config = ConvNextConfig(
        num_channels=3, patch_size=1, num_stages=4, hidden_sizes=[32, 64, 64, 64], depths=[1, 1, 1, 1], image_size=SIDE,
        layer_scale_init_value=1.0,  # the default, 1e-6, would leave so small a network linear for the whole training
    )  # fmt: skip
    with isolated_rng(seed):
        model = ConvNextModel(config)
    return Encoder(model.eval(), image_processor(SIDE), pooling="mean", source="lab: digit encoder, untrained")
