"""Two small encoders of our own in the form of transformers, for what its models are too large or too coarse for.

`ConvEncoder`: 3 x 3 convolutions, batch or group norm, ReLU; the first keeps the side, every further one halves it.
`VectorEncoder`: linear layers on arrays. Both are saved and loaded as any model of transformers.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from efface.errors import InputError, ModelError
from efface.subjects.loading import OWN

CONV, VECTOR = OWN


class ConvEncoderConfig(PreTrainedConfig):  # type: ignore[misc]
    """Channels of each layer; `norm`: batch, or group (one group a channel of eight: for gradient caching)."""

    model_type = CONV

    def __init__(
        self, channels: tuple[int, ...] = (32, 64, 128), num_channels: int = 3, image_size: int = 32,
        norm: Literal["batch", "group"] = "batch", **kwargs: Any,
    ) -> None:  # fmt: skip
        self.channels, self.num_channels, self.image_size, self.norm = list(channels), num_channels, image_size, norm
        super().__init__(**kwargs)


class ConvEncoder(PreTrainedModel):  # type: ignore[misc]
    """[B, C, H, W] pictures to a map [B, D, H / 2^(n-1), W / 2^(n-1)] and its mean [B, D], D the last of n channels."""

    config_class = ConvEncoderConfig
    main_input_name = "pixel_values"
    base_model_prefix = "encoder"

    def __init__(self, config: ConvEncoderConfig) -> None:
        super().__init__(config)
        if not config.channels or min(config.channels) < 8 or any(width % 8 for width in config.channels):
            raise ModelError(f"channels {config.channels}", "one or more multiples of 8")
        layers: list[nn.Module] = []
        for place, (before, after) in enumerate(
            zip([config.num_channels, *config.channels], config.channels, strict=False)
        ):
            norm: nn.Module = nn.BatchNorm2d(after) if config.norm == "batch" else nn.GroupNorm(after // 8, after)
            conv = nn.Conv2d(before, after, 3, stride=1 if place == 0 else 2, padding=1, bias=False)
            layers += [conv, norm, nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """torch's own starting values."""

    def forward(self, pixel_values: Tensor, return_dict: bool = True, **_: Any) -> BaseModelOutputWithPooling:
        """The map and its mean."""
        found = self.layers(pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=found, pooler_output=found.mean((2, 3)))


class VectorEncoderConfig(PreTrainedConfig):  # type: ignore[misc]
    """Values of a row, and the widths of the layers."""

    model_type = VECTOR

    def __init__(self, inputs: int = 1, widths: tuple[int, ...] = (128, 64), **kwargs: Any) -> None:
        self.inputs, self.widths = inputs, list(widths)
        super().__init__(**kwargs)


class VectorEncoder(PreTrainedModel):  # type: ignore[misc]
    """[B, ...] arrays, flattened and standardised by the data's mean and deviation, to [B, D], D the last width."""

    config_class = VectorEncoderConfig
    main_input_name = "features"
    base_model_prefix = "encoder"
    mean: Tensor
    deviation: Tensor

    def __init__(self, config: VectorEncoderConfig) -> None:
        super().__init__(config)
        if not config.widths or min(config.widths) < 1:
            raise ModelError(f"widths {config.widths}", "one or more positive numbers")
        self.register_buffer("mean", torch.zeros(config.inputs))
        self.register_buffer("deviation", torch.ones(config.inputs))
        layers: list[nn.Module] = []
        for before, after in zip([config.inputs, *config.widths], config.widths, strict=False):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """torch's own starting values."""

    def standardise(self, rows: Tensor) -> None:
        """Take mean and deviation of rows [N, ...]; a constant column keeps the deviation 1."""
        flat = rows.flatten(1).double()
        spread = flat.std(0, correction=0)
        self.mean.copy_(flat.mean(0))
        self.deviation.copy_(torch.where(spread > 1e-12, spread, torch.ones_like(spread)))

    def forward(self, features: Tensor, return_dict: bool = True, **_: Any) -> BaseModelOutputWithPooling:
        """The last layer's output.

        Raises:
            InputError: rows of another size than the encoder was made for.
        """
        flat = features.flatten(1)
        if flat.shape[1] != self.config.inputs:
            raise InputError(f"features of shape {list(features.shape)}", f"{self.config.inputs} values a row")
        found = self.layers((flat - self.mean) / self.deviation)
        return BaseModelOutputWithPooling(last_hidden_state=found[:, None], pooler_output=found)


AutoConfig.register(CONV, ConvEncoderConfig)
AutoModel.register(ConvEncoderConfig, ConvEncoder)
AutoConfig.register(VECTOR, VectorEncoderConfig)
AutoModel.register(VectorEncoderConfig, VectorEncoder)
