"""A small variational autoencoder on embeddings: how well it explains a row stands for how likely the row is.

Label-Agnostic Forgetting (Shen et al., arXiv 2404.00506, section 4.1) learns one on the embeddings of all data and one on
those of the data to forget. With e [B, d], encoder d-128-32-(mu, log s^2 in R^z), decoder z-32-128-d, ReLU between,

    L = mean_B [ ||h(e) - e||^2 + beta KL(N(mu, s^2) || N(0, I)) ],   beta = 0.025,   r(e; h) = ||h(e) - e||^2

Departures from the official code, and why: the decoder is linear and e is standardised (the released decoder ends in a
sigmoid while embeddings are unbounded, so residuals cannot become small); outside training h(e) decodes the mean mu, so that
r is a function of e (the code samples there too). `official` takes all three back. Both autoencoders of a run standardise
by the same rows, so that their residuals have one scale. Embeddings come detached.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from efface.errors import InputError
from efface.run.files import write_with
from efface.train.alternating import Turn, alternate
from efface.train.config import TrainConfig
from efface.train.engine import isolated_rng
from efface.train.rows import RowSchedule

WIDTHS = (128, 32)
STILL = 0.1
"""Least deviation of a unit as a share of the typical one; with 1e-3, a unit that is active in a few rows outweighs all others
as soon as it moves (residuals of 90,000 on the digits, seed 0, where this was chosen)."""


class EmbeddingVAEConfig(TrainConfig):
    """Optimisation and form of one autoencoder. Defaults: LAF's code."""

    latent: int = Field(8, ge=1, description="z; LAF's code: 8 for MNIST, 16 for CIFAR-10")
    kl_weight: float = Field(0.025, ge=0, description="beta; LAF's code: 0.025")
    official: bool = Field(False, description="released form: raw embeddings, sigmoid decoder, sampled reconstruction")
    learning_rate: float = Field(1e-3, gt=0, description="LAF's code: 1e-3")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adam", description="LAF's code: Adam")
    weight_decay: float = Field(0.0, ge=0, description="LAF's code: none")
    epochs: float = Field(10, gt=0, description="LAF's code: 10")
    batch_size: int = Field(32, ge=2, description="LAF's code: 32")
    schedule: Literal["linear", "cosine", "constant"] = Field("constant", description="LAF's code: none")
    max_grad_norm: float = Field(1e9, gt=0, description="LAF's code clips nothing")


class Reconstruction(NamedTuple):
    """One pass: what was to be said and what was, [B, d] in units of the autoencoder; mu and log s^2 [B, z]."""

    target: Tensor
    said: Tensor
    mu: Tensor
    log_variance: Tensor


def residual(target: Tensor, said: Tensor) -> Tensor:
    """r = ||h(e) - e||^2, [B] of two [B, d]."""
    return (said - target).square().sum(-1)


def kl_to_normal(mu: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mu, s^2) || N(0, I)) in nats, [B] of two [B, z]."""
    return 0.5 * (mu.square() + log_variance.exp() - 1 - log_variance).sum(-1)


def vae_loss(found: Reconstruction, kl_weight: float) -> Tensor:
    """Mean over the batch of r + beta KL."""
    return (residual(found.target, found.said) + kl_weight * kl_to_normal(found.mu, found.log_variance)).mean()


def spread(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each unit, [d] each, of rows [N, d]; no deviation below a tenth of the typical one.

    Typical is the root of the mean variance; rows that are all equal have deviation 1.
    """
    centre, scale = rows.mean(0), rows.std(0, correction=0)
    typical = float(scale.square().mean().sqrt())
    return centre, scale.clamp_min(STILL * typical) if typical > 0 else torch.ones_like(scale)


class EmbeddingVAE(nn.Module):
    """h.

    Args:
        width: d.
        latent: z.
        official: see the module.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, width: int, latent: int = 8, *, official: bool = False) -> None:
        super().__init__()
        wide, narrow = WIDTHS
        self.official = official
        self.encoder = nn.Sequential(nn.Linear(width, wide), nn.ReLU(), nn.Linear(wide, narrow), nn.ReLU())
        self.mu, self.log_variance = nn.Linear(narrow, latent), nn.Linear(narrow, latent)
        self.decoder = nn.Sequential(
            nn.Linear(latent, narrow), nn.ReLU(), nn.Linear(narrow, wide), nn.ReLU(), nn.Linear(wide, width),
            *([nn.Sigmoid()] if official else []),
        )  # fmt: skip
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def forward(self, e: Tensor) -> Reconstruction:
        """A pass over embeddings [B, d].

        Raises:
            InputError: embeddings of another width.
        """
        if e.dim() != 2 or e.shape[1] != len(self.centre):
            raise InputError(
                f"embeddings of shape {list(e.shape)} for an autoencoder of width {len(self.centre)}",
                f"[B, {len(self.centre)}]", "use the extractor that it was fitted on",
            )  # fmt: skip
        target = (e - self.centre) / self.scale
        inner = self.encoder(target)
        mu, log_variance = self.mu(inner), self.log_variance(inner)
        z = mu
        if self.training or self.official:
            z = mu + torch.exp(0.5 * log_variance) * torch.randn_like(mu)
        return Reconstruction(target, self.decoder(z), mu, log_variance)

    def residual(self, e: Tensor) -> Tensor:
        """r(e; h), [B], with its gradient to e."""
        found = self(e)
        return residual(found.target, found.said)


def fit_vae(
    embeddings: Tensor, config: EmbeddingVAEConfig, *, folder: Path, units: Tensor | None = None, label: str = "fit VAE"
) -> EmbeddingVAE:
    """Fit an autoencoder to embeddings; it comes back frozen, in evaluation mode, on the CPU.

    Args:
        embeddings: [N, d], N of at least two.
        folder: of checkpoints, and of the result: a killed fit goes on from there, a finished one is read again. Emptied by
            the caller.
        units: [M, d] rows whose mean and spread standardise; default: `embeddings`.

    Raises:
        InputError: fewer than two rows, no matrix, or embeddings that are NaN or infinite.
    """
    rows = embeddings.detach().float()
    if rows.dim() != 2 or len(rows) < 2 or not bool(rows.isfinite().all()):
        raise InputError(f"embeddings of shape {list(rows.shape)} to fit a VAE to", "[N, d] of finite numbers, N >= 2")
    with isolated_rng(config.seed):
        vae = EmbeddingVAE(rows.shape[1], config.latent, official=config.official)
    done = folder / "vae.safetensors"
    if done.exists():
        vae.load_state_dict(load_file(done))
        return vae.eval().requires_grad_(False)
    if not config.official:
        vae.centre, vae.scale = spread(rows if units is None else units.detach().float())
    schedule = RowSchedule(len(rows), epochs=config.epochs, batch_size=config.batch_size, seed=config.seed)

    def collate(items: list[tuple[int, int]]) -> dict[str, Any]:
        return {"e": rows[[row for row, _ in items]]}

    def loss(model: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        found: Reconstruction = model(batch["e"])
        return vae_loss(found, config.kl_weight), {
            "kl": float(kl_to_normal(found.mu, found.log_variance).mean().detach())
        }

    turns = [Turn("vae", loss, config.learning_rate)]
    alternate(vae, schedule, turns, config, folder=folder, collator=collate, label=label)
    vae = vae.cpu().eval().requires_grad_(False)
    write_with(done, lambda partial: save_file(vae.state_dict(), partial))
    return vae


__all__ = [
    "EmbeddingVAE", "EmbeddingVAEConfig", "Reconstruction", "fit_vae", "kl_to_normal", "residual", "spread", "vae_loss",
]  # fmt: skip
