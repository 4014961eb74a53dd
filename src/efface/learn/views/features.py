"""Views of arrays: Gaussian noise, and values that are taken from other rows of the batch.

Paper: SCARF, Bahri et al., arXiv 2106.15147, section 3: a random share of the features of a row is replaced by draws from
their empirical marginals, here the values of other rows of the batch. Every draw comes from the generator that is passed.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Generator, Tensor

from efface.errors import InputError
from efface.run.settings import Settings


class FeatureViewConfig(Settings):
    """What a view of an array changes."""

    corrupt: float = Field(0.6, ge=0, le=1, description="chance that a value is taken from another row; SCARF: 0.6")
    noise: float = Field(0.0, ge=0, description="standard deviation of Gaussian noise, in units of the features")


class FeatureViews:
    """`views(features, generator)` -> one view of each row."""

    def __init__(self, config: FeatureViewConfig) -> None:
        self.config = config

    def __call__(self, features: Tensor, generator: Generator) -> Tensor:
        """[B, ...] float32, of the shape of `features`.

        Raises:
            InputError: fewer than two dimensions, or no floating type.
        """
        if features.ndim < 2 or not features.is_floating_point():
            raise InputError(f"features of shape {list(features.shape)} and type {features.dtype}", "real [B, ...]")
        seen = features
        if self.config.corrupt > 0:
            other = torch.randint(len(features), features.shape, generator=generator)
            taken = torch.rand(features.shape, generator=generator) < self.config.corrupt
            seen = torch.where(taken.to(features.device), features.gather(0, other.to(features.device)), features)
        if self.config.noise > 0:
            seen = seen + self.config.noise * torch.randn(features.shape, generator=generator).to(features)
        return seen
