"""An encoder with a posterior head and a decoder of ours: codes, reconstructions and informative embeddings.

The head reads the encoder's features [B, D] and says N(mu, diag exp(lv)) in R^d; the decoder says x again. Its hidden state
just before the layer that produces the parameters of p(x|z) is the *informative embedding* of cMIM (arXiv 2502.19642): it
costs no training and often serves probes better than the code. It may have thousands of dimensions: standardise it.

On the disk: the encoder's own folder, and `decoder/` in it with model.safetensors and decoder.json.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from efface.errors import ModelError
from efface.numerics.mim import log_bernoulli, log_gaussian
from efface.run.files import read_json, write_json
from efface.run.progress import track
from efface.run.settings import Settings
from efface.subjects.encoder import Encoder, load_encoder

FOLDER = "decoder"
LOG_VARIANCE = (-6.0, 2.0)
"""The MIM code's Hardtanh: log q has no upper bound, so that without a bound of lv the loss falls for ever."""


class CoderConfig(Settings):
    """Shapes of the head and of the decoder."""

    modality: Literal["image", "features"]
    features: int = Field(ge=1, description="D, the encoder's width")
    code: int = Field(ge=1, description="d")
    shape: tuple[int, ...] = Field(description="of one x: [3, H, W] for pictures")
    likelihood: Literal["bernoulli", "gaussian"]
    deviation: float = Field(1.0, gt=0, description="of the Gaussian, in units of the (standardised) data")
    form: Literal["mlp", "conv"]
    widths: tuple[int, ...] = Field(description="hidden layers of the decoder, or channels of a convolutional one")


class Coder(nn.Module):
    """The posterior head and the decoder.

    Args:
        config: their shapes.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, config: CoderConfig) -> None:
        super().__init__()
        self.form = config
        head = nn.Linear(config.features, 2 * config.code)
        # an MLP's last layer is linear, an encoder of pictures ends in a nonlinearity or a norm of its own
        self.head = nn.Sequential(nn.ReLU(), head) if config.modality == "features" else head
        values = math.prod(config.shape)
        self.side: tuple[int, int] | None = None
        if config.form == "mlp":
            layers: list[nn.Module] = []
            for before, after in zip((config.code, *config.widths), config.widths, strict=False):
                layers += [nn.Linear(before, after), nn.ReLU()]
            self.body, self.last = nn.Sequential(*layers), nn.Linear(config.widths[-1], values)
        else:
            halvings = len(config.widths) - 1
            self.side = (-(-config.shape[1] // 2**halvings), -(-config.shape[2] // 2**halvings))
            first = config.widths[0]
            layers = [
                nn.Linear(config.code, first * self.side[0] * self.side[1]), nn.Unflatten(1, (first, *self.side)), nn.ReLU(),
            ]  # fmt: skip
            for before, after in zip(config.widths, config.widths[1:], strict=False):
                layers += [nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
            self.body = nn.Sequential(*layers)
            self.last = nn.Conv2d(config.widths[-1], config.shape[0], 3, padding=1)  # type: ignore[assignment]
        self.register_buffer("centre", torch.zeros(config.shape))
        self.register_buffer("spread", torch.ones(config.shape))

    def posterior(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """mu and the clamped log variance, [B, d] each, of the encoder's features [B, D]."""
        mu, log_variance = self.head(features.float()).chunk(2, dim=1)
        return mu, log_variance.clamp(*LOG_VARIANCE)

    def hidden(self, z: Tensor) -> Tensor:
        """The state before the last layer: [B, width], or [B, channels, H, W] cut to the picture."""
        found: Tensor = self.body(z)
        return found[:, :, : self.form.shape[1], : self.form.shape[2]] if self.side is not None else found

    def forward(self, z: Tensor) -> Tensor:
        """The parameters of p(x|z), [B, *shape]: logits, or means in units of `targets`."""
        found: Tensor = self.last(self.hidden(z))
        return found.reshape(len(z), *self.form.shape)

    def targets(self, x: Tensor) -> Tensor:
        """x as the likelihood sees it: standardised for a Gaussian of arrays, else as it is."""
        return (x.to(self.centre) - self.centre) / self.spread

    def log_likelihood(self, x: Tensor, said: Tensor) -> Tensor:
        """log p(x|z) in nats, [B], of targets and of what `forward` gave."""
        if self.form.likelihood == "bernoulli":
            return log_bernoulli(x, said)
        return log_gaussian(x, said, self.form.deviation)

    def save_into(self, folder: Path) -> None:
        """Write model.safetensors and decoder.json."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()},
                  folder / "model.safetensors")  # fmt: skip
        write_json(folder / "decoder.json", self.form.model_dump(mode="json"))


class AutoEncoder:
    """A trained encoder with its head and decoder.

    Args:
        encoder: of pictures or arrays.
        coder: head and decoder.
    """

    def __init__(self, encoder: Encoder, coder: Coder) -> None:
        self.encoder, self.coder = encoder, coder.to(encoder.device).eval()

    def codes(self, items: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of the posterior, [N, d] each; the mean is the code to evaluate with."""
        rows = self._rows(items, lambda inputs: torch.stack(self._posterior(inputs), dim=1))
        return rows[:, 0], (0.5 * rows[:, 1]).exp()

    def informative(self, items: Sequence[Any]) -> Tensor:
        """The decoder's hidden state at the mean code, flattened, [N, H]. Not normalised: standardise before k-NN."""
        return self._rows(items, lambda inputs: self.coder.hidden(self._posterior(inputs)[0]).flatten(1))

    def reconstruction_loss(self, items: Sequence[Any]) -> Tensor:
        """-log p(x | mu) in nats, [N]."""

        def loss(inputs: dict[str, Tensor]) -> Tensor:
            said = self.coder(self._posterior(inputs)[0])
            return -self.coder.log_likelihood(self.coder.targets(content(self.encoder, inputs)), said)

        return self._rows(items, loss)

    def _posterior(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.coder.posterior(self.encoder.features(inputs))

    def _rows(self, items: Sequence[Any], run: Any, size: int = 256) -> Tensor:
        found = []
        with self.encoder.evaluating(), track("decode", len(items)) as advance:
            for start in range(0, len(items), size):
                part = list(items[start : start + size])
                found.append(run(self.encoder.prepare(part)).float().cpu())
                advance(len(part))
        return torch.cat(found)


def content(encoder: Any, inputs: dict[str, Tensor]) -> Tensor:
    """x [B, ...] of prepared inputs: pictures in [0, 1], arrays as they are."""
    if encoder.modality == "features":
        return inputs["features"]
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in encoder.normalisation)
    pixels = inputs["pixel_values"]
    return (pixels * std.to(pixels) + mean.to(pixels)).clamp(0, 1)


def as_inputs(encoder: Any, x: Tensor) -> dict[str, Tensor]:
    """The inputs of contents x [B, ...]: the reverse of `content`."""
    if encoder.modality == "features":
        return {"features": x}
    mean, std = (torch.tensor(values).view(1, -1, 1, 1).to(x) for values in encoder.normalisation)
    return {"pixel_values": (x - mean) / std}


def load_auto_encoder(folder: str | Path) -> AutoEncoder:
    """The encoder of a folder with the decoder that lies beside it.

    Raises:
        ModelError: no decoder, or one that does not fit its configuration.
    """
    place = Path(folder).expanduser()
    beside = place / FOLDER
    if not (beside / "decoder.json").exists():
        raise ModelError(f"'{folder}' has no decoder", f"{FOLDER}/decoder.json beside the encoder",
                         "train it with the recipe cmim")  # fmt: skip
    encoder = load_encoder(place)
    coder = Coder(CoderConfig.parse(read_json(beside / "decoder.json"), owner="decoder"))
    try:
        coder.load_state_dict(load_file(beside / "model.safetensors"))
    except (RuntimeError, OSError, SafetensorError) as error:
        raise ModelError(f"the decoder of '{folder}' is not whole", "weights that fit decoder.json",
                         "copy the folder again") from error  # fmt: skip
    return AutoEncoder(encoder, coder)


__all__ = ["AutoEncoder", "Coder", "CoderConfig", "as_inputs", "content", "load_auto_encoder"]
