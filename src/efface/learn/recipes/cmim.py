"""cMIM: an auto-encoder whose encoder and decoder factor one joint distribution, with codes spread in angle over the batch.

Paper: Livne, A contrastive mutual information framework, arXiv 2502.19642; base: MIM, arXiv 1910.03175, and its asymmetric
form A-MIM (NeMo's hidden loss, by the same author). With z ~ q(z|x) = N(mu, diag exp(lv)) and P = N(0, I),

    L = -(1/B) sum_i [ log p(x_i|z_i) + 1/2 (log q(z_i|x_i) + log P(z_i)) ] - (w/B) sum_i log p_i     (numerics/mim.py)

p_i says that z_i belongs to x_i among the batch's codes; its positive is z_i itself, so that no view and no pair is needed.
Densities are summed over pixels and dimensions, and meaned over the batch.

No official code of cMIM was found. Ours: lv is clamped to [-6, 2] as in the MIM code (log q has no upper bound), and the share
of dimensions that sit on the clamp is logged. Symmetric MIM adds, half and half, decoder samples x ~ p(x|z), z ~ P, for a
Gaussian p only: of discrete x it would need a score-function correction. `objective` and `contrast=0` give MIM, a VAE and a
plain auto-encoder as baselines. The claims are on toy pictures: nothing is promised of natural ones. Texts (a categorical
decoder) are not built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from efface.catalog import Card
from efface.errors import ConfigError, ModelError
from efface.learn.module import Batch, LearnModule, Lesson
from efface.learn.objective import ContrastiveConfig, Recipe
from efface.learn.views.features import FeatureViewConfig
from efface.learn.views.images import ViewConfig
from efface.numerics.mim import a_mim, log_posterior, log_prior, negative_elbo, self_contrast
from efface.subjects.auto_encoder import FOLDER, LOG_VARIANCE, Coder, CoderConfig, as_inputs, content
from efface.train.gather import gather_rows, processes, rank
from efface.train.gradient_caching import cached, refuse_batch_norm

CARD = Card(
    name="cmim",
    system="cmim",
    title="cMIM: contrastive mutual information machine",
    summary="Trains an encoder with a decoder, so that codes keep the input and differ from each other in angle; the decoder "
    "is saved beside, and its hidden state is an informative embedding. No augmentation, insensitive to the batch size.",
    paper="Livne, cMIM, arXiv 2502.19642 (2025); MIM: Livne et al., arXiv 1910.03175",
    verb="learn",
    mechanism="recipes",
    modalities=("image", "tabular"),
    subjects=("encoder",),
    defaults_source="log variance in [-6, 2]: the MIM code; code 64, temperature 1, learning rate 1e-3: cMIM, unverified",
)


class CMIMConfig(ContrastiveConfig):
    """The factor, the bound, and the decoder."""

    temperature: float = Field(
        1.0, gt=0, description="T of the contrastive factor; cMIM: 1, later 0.1 to 1 (unverified)"
    )
    contrast: float = Field(1.0, ge=0, description="weight of the contrastive factor; cMIM: 1, not tuned; 0: MIM")
    objective: Literal["a-mim", "mim", "vae", "ae"] = Field(
        "a-mim", description="a-mim; mim: symmetric, Gaussian likelihood only; vae and ae: baselines"
    )
    code: int = Field(64, ge=1, description="d, dimensions of the code; cMIM, pictures: 64 (unverified)")
    likelihood: Literal["auto", "bernoulli", "gaussian"] = Field(
        "auto", description="of a value; auto: bernoulli for pictures and for arrays in [0, 1], else gaussian"
    )
    deviation: float = Field(1.0, gt=0, description="of the Gaussian likelihood; arrays are standardised")
    decoder: Literal["auto", "mlp", "conv"] = Field("auto", description="auto: conv for pictures, mlp for arrays")
    decoder_widths: tuple[int, ...] = Field(
        (), description="hidden layers of an mlp, or channels of a conv decoder from the smallest map on; "
        "default: 128, 128 and 128, 64, 32",
    )  # fmt: skip
    weight_decay: float = Field(0.0, ge=0, description="none: no source names one")
    max_grad_norm: float = Field(1e9, gt=0, description="the sums over pixels are large; nothing is clipped")
    views: ViewConfig = Field(
        ViewConfig.none(), description="cMIM augments nothing; what is set here is reconstructed too"
    )
    feature_views: FeatureViewConfig = Field(
        FeatureViewConfig(corrupt=0.0), description="as `views`, for arrays; cMIM: nothing"
    )


class CMIMModule(LearnModule):
    """Encoder, posterior head and decoder.

    Args:
        subject: an encoder of pictures or arrays.
        config: its settings.
        lesson: the run.

    Raises:
        ModelError: an encoder of texts.
        ConfigError: a projector; symmetric MIM with a Bernoulli likelihood; a convolutional decoder of arrays.
    """

    def __init__(self, subject: Any, config: CMIMConfig, lesson: Lesson) -> None:
        super().__init__(subject)
        if subject.modality == "text":
            raise ModelError(
                f"cMIM of texts ('{subject.source}')", "an encoder of pictures or arrays", "choose another recipe"
            )
        if config.projector:
            raise ConfigError(f"projector={config.projector} for cmim", "0", "the posterior head stands in its place")
        if config.chunk is not None:
            refuse_batch_norm(subject.model, training=True)
        self.settings = config
        self.backbone = subject.model
        self.coder = Coder(_form(subject, config, lesson))
        if subject.modality == "features" and self.coder.form.likelihood == "gaussian":
            rows = _contents(subject, lesson)
            wide = rows.double()
            spread = wide.std(0, correction=0)
            self.coder.centre.copy_(wide.mean(0))
            self.coder.spread.copy_(torch.where(spread > 1e-12, spread, torch.ones_like(spread)))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Encode, sample, decode; the four log-terms and the contrastive factor."""
        config, inputs = self.settings, batch["views"][0]
        features = cached(self._features, inputs, config.chunk)
        mu, log_variance = self.coder.posterior(features)
        total, start = len(mu) * processes(), rank() * len(mu)
        noise, noise_prior, noise_x = self._noise(mu, total, start)
        z = mu if config.objective == "ae" else mu + (0.5 * log_variance).exp() * noise
        log_x = self.coder.log_likelihood(self.coder.targets(content(self.subject, inputs)), self.coder(z))
        log_q, log_p = log_posterior(z, mu, log_variance), log_prior(z)
        if config.objective == "ae":
            losses = -log_x
        elif config.objective == "vae":
            losses = negative_elbo(log_x, log_q, log_p)
        else:
            losses = a_mim(log_x, log_q, log_p)
        if config.objective == "mim":
            losses = (losses + self._of_samples(noise_prior, noise_x)) / 2
        factor = self_contrast(
            z, config.temperature, codes_all=gather_rows(z) if config.contrast else z, start=start if config.contrast else 0,
            tile=config.tile,
        )  # fmt: skip
        low, high = LOG_VARIANCE
        clamped = (log_variance.detach() <= low) | (log_variance.detach() >= high)
        numbers = {
            "reconstruction": -float(log_x.detach().mean()), "factor": float(factor.detach().mean()),
            "posterior_deviation": float((0.5 * log_variance.detach()).exp().mean()),
            "on_clamp": float(clamped.float().mean()),
        }  # fmt: skip
        return (losses + config.contrast * factor).sum() / total, numbers

    def _features(self, inputs: dict[str, Tensor]) -> Tensor:
        found: Tensor = self.subject.features(inputs)
        return found.float()

    def _of_samples(self, noise: Tensor, noise_x: Tensor) -> Tensor:
        """[b] A-MIM's loss at x ~ p(x|z), z ~ P, with the gradient through x = mean + deviation * noise."""
        said = self.coder(noise)
        target = said + self.settings.deviation * noise_x
        x = target * self.coder.spread + self.coder.centre
        mu, log_variance = self.coder.posterior(self._features(as_inputs(self.subject, x)))
        return a_mim(self.coder.log_likelihood(target, said), log_posterior(noise, mu, log_variance), log_prior(noise))

    def _noise(self, like: Tensor, total: int, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """This process's rows of the step's draws: the same for any number of processes, and after a kill."""
        generator = torch.Generator().manual_seed((self.settings.seed * 0x9E3779B1 + int(self.done) + 1) % 2**63)
        rows = slice(start, start + len(like))
        first = torch.randn(total, like.shape[1], generator=generator)[rows].to(like)
        if self.settings.objective != "mim":
            return first, first, first
        second = torch.randn(total, like.shape[1], generator=generator)[rows].to(like)
        shape = (total, *self.coder.form.shape)
        return first, second, torch.randn(shape, generator=generator)[rows].to(like)

    def save_beside(self, folder: Path) -> None:
        """`decoder/`: head and decoder."""
        self.coder.save_into(folder / FOLDER)


def _contents(subject: Any, lesson: Lesson, most: int = 100_000) -> Tensor:
    """x [n, ...] of the first rows."""
    return content(subject, lesson.inputs(range(min(lesson.rows, most))))


def _form(subject: Any, config: CMIMConfig, lesson: Lesson) -> CoderConfig:
    """Shapes and likelihood, from the data."""
    arrays = subject.modality == "features"
    first = content(subject, lesson.inputs([0]))
    likelihood = config.likelihood
    if likelihood == "auto":
        rows = _contents(subject, lesson) if arrays else first
        likelihood = "bernoulli" if bool(((rows >= 0) & (rows <= 1)).all()) else "gaussian"
    if config.objective == "mim" and likelihood == "bernoulli":
        raise ConfigError(
            "symmetric MIM with a Bernoulli likelihood: samples of discrete values have no gradient",
            "likelihood=gaussian, or objective=a-mim",
        )  # fmt: skip
    form = config.decoder if config.decoder != "auto" else "mlp" if arrays else "conv"
    if arrays and form == "conv":
        raise ConfigError("a convolutional decoder of arrays", "mlp", "leave decoder out")
    widths = config.decoder_widths or ((128, 128) if form == "mlp" else (128, 64, 32))
    if min(widths) < 1:
        raise ConfigError(f"decoder_widths={widths}", "positive numbers")
    return CoderConfig(
        modality=subject.modality, features=subject.width, code=config.code, shape=tuple(first.shape[1:]),
        likelihood=likelihood, deviation=config.deviation, form=form, widths=widths,
    )  # fmt: skip


CONFIG = CMIMConfig
RECIPE = Recipe(CARD, CONFIG, None, takes="views", build=CMIMModule, draws=lambda config: [config.views])
