"""Training settings that every recipe and every objective share; typed, frozen, unknown keys refused."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from efface.run.settings import Settings


class TrainConfig(Settings):
    """Optimisation. Defaults of a system override these and name their source on the system's own config."""

    learning_rate: float = Field(1e-5, gt=0, description="peak learning rate")
    epochs: float = Field(5, gt=0, description="passes over the anchor set")
    batch_size: int = Field(
        32, ge=1, description="examples of the anchor set in one optimiser step, all processes together"
    )
    micro_batch_size: int | None = Field(
        None, ge=1, description="examples in one forward pass; default: the whole batch"
    )
    optimizer: Literal["adamw", "adam", "sgd"] = Field(
        "adamw", description="adamw, adam (decay in the gradient), or sgd"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(0.01, ge=0, description="weight decay; decoupled for adamw")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="share of the steps with linear warm-up")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="learning rate after the warm-up")
    max_grad_norm: float = Field(1.0, gt=0, description="clip the gradient's norm")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="autocast precision of the forward pass")
    seed: int = Field(0, ge=0, description="seed of data order, adapters and dropout")
    checkpoint_seconds: float = Field(120.0, gt=0, description="at most this much work is lost to a kill")
