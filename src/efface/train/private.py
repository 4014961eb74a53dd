"""DP-SGD: clipped per-example gradients, Poisson batches, Gaussian noise, and an accountant's report.

Abadi et al., Deep Learning with Differential Privacy, arXiv 1607.00133. One step on a Poisson sample S of rate q = B / n:

    g = (sum_{i in S} g_i min(1, C / ||g_i||) + N(0, sigma^2 C^2 I)) / (q n)

The denominator is the expected batch, not the realised one; an empty sample still adds noise and counts as a step. There
is no averaging of gradients before clipping, so no accumulation to get wrong. The accountant is opacus' RDP accountant.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from efface.errors import ConfigError, InputError, MissingExtraError, ModelError
from efface.run.progress import track
from efface.run.settings import Settings
from efface.train.noise_source import NoiseSource, noise_generator

EMPTY_GUARANTEE = 10.0
"""Above this epsilon a bound says nearly nothing: e^10 is 22 000."""
ORDERS = [1 + x / 10 for x in range(1, 100)] + [*range(11, 64), *range(64, 513, 64)]
"""Renyi orders that the accountant takes the best of."""

Tensors = dict[str, Tensor]
SummedGradients = Callable[[Tensor], Tensors]
"""Indices of a batch [b], b > 0, to the sum of clipped per-example gradients by parameter name."""


class PrivacyWarning(UserWarning):
    """A delta so large that the guarantee is empty."""


class PrivateConfig(Settings):
    """DP-SGD. Defaults: DP2Unlearning, TOFU with Phi-1.5 (arXiv 2504.13774)."""

    learning_rate: float = Field(5e-5, gt=0, description="of plain SGD; DP2Unlearning: 5e-5")
    epochs: float = Field(10, gt=0, description="expected passes; DP2Unlearning: 10")
    batch_size: int = Field(16, ge=1, description="expected batch q n; DP2Unlearning: 16")
    clip: float = Field(1.0, gt=0, description="C, largest norm of one example's gradient; DP2Unlearning: 1.0")
    noise: float = Field(1.0, gt=0, description="sigma, in units of C; DP2Unlearning sweeps epsilon instead")
    epsilon: float | None = Field(None, gt=0, description="where given, sigma is what the accountant needs for it")
    delta: float = Field(1e-12, gt=0, lt=1, description="DP2Unlearning: 1e-12; must be below 1 / n")
    weight_decay: float = Field(0.01, ge=0, description="independent of the data; DP2Unlearning: 0.01")
    seed: int = Field(0, ge=0, description="of the starting weights, and of samples and noise (see noise_from)")
    noise_from: NoiseSource = Field(
        "key",
        description="source of samples and noise: the seed under a secret key of this installation (can be repeated here "
        "and by nobody else), fresh randomness, or the bare seed, which is published and makes no certified claim",
    )

    def rate(self, n: int) -> float:
        """q."""
        return min(1.0, self.batch_size / n)

    def steps(self, n: int) -> int:
        """Optimiser steps over n records."""
        return max(1, round(self.epochs / self.rate(n)))

    def generator(self, context: Any = None) -> torch.Generator:
        """Source of samples and noise.

        Args:
            context: what is trained on, as a JSON value: two runs that differ in it must not share their noise, which
                would cancel between them.
        """
        if self.noise_from == "seed":
            return torch.Generator().manual_seed(self.seed)
        return noise_generator(self.noise_from, ["dp-sgd", self.model_dump(mode="json"), context])


class PrivacyReport(BaseModel):
    """What a DP-SGD run guarantees, with all that the number depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilon: float
    delta: float
    noise: float
    clip: float
    rate: float
    steps: int
    records: int
    noise_from: str
    accountant: str = "RDP (opacus), Poisson sampling"

    def group(self, k: int) -> tuple[float, float]:
        """(k epsilon, delta') for k records together: delta' = delta (e^{k epsilon} - 1) / (e^epsilon - 1).

        Raises:
            InputError: k below 1.
        """
        if k < 1:
            raise InputError(f"a group of {k} records", "at least one")
        if k == 1:
            return self.epsilon, self.delta
        exponent = (k - 1) * self.epsilon  # the ratio lies between e^{(k-1) eps} and k e^{(k-1) eps}
        factor = k if self.epsilon == 0 else math.expm1(-k * self.epsilon) / math.expm1(-self.epsilon)
        return k * self.epsilon, min(1.0, self.delta * factor * math.exp(min(exponent, 700.0)))

    def vacuous(self, k: int = 1) -> str | None:
        """Why the bound for k records together says nothing worth certifying; None where it does."""
        together, delta = self.group(k)
        if self.noise_from == "seed":
            return "samples and noise come from a published seed, so the bound holds against nobody who reads it"
        if delta >= 1 / self.records:
            return f"delta {delta:.1e} is not below 1/{self.records}: publishing one record would satisfy it"
        if together > EMPTY_GUARANTEE:
            return f"an epsilon above {EMPTY_GUARANTEE:g} says nearly nothing"
        return None

    def lines(self, k: int = 1) -> list[str]:
        """The guarantee in words, that for k records together first, with its assumptions."""
        together, delta = self.group(k)
        each = "" if k == 1 else f"; for each record epsilon {self.epsilon:.3g} at delta {self.delta:.1e}"
        held = [
            f"epsilon {together:.3g} at delta {delta:.1e} for the {k} record(s) of this request together{each} (DP-SGD, sigma "
            f"{self.noise:g}, C {self.clip:g}, q {self.rate:.3g}, {self.steps} steps, {self.records} records, "
            f"{self.accountant})",
            "neighbours differ by one record added or removed; records deleted by earlier requests count with these",
            "not covered: what the starting checkpoint had learnt, a tokenizer made from these records, and settings chosen by "
            "looking at them",
            "assumed: pseudorandom samples and noise are as good as random ones to whoever lacks their key",
        ]
        empty = self.vacuous(k)
        return held if empty is None else [*held, f"not certified: {empty}"]


def _accountant() -> Any:
    """opacus' RDP analysis; imported when it is needed, since it takes seconds."""
    try:
        from opacus.accountants.analysis import rdp
    except ImportError as error:
        raise MissingExtraError(
            "the privacy accountant needs opacus, which is not installed", "opacus 1.6", "pip install 'efface[dp]'"
        ) from error
    return rdp


def epsilon_of(noise: float, rate: float, steps: int, delta: float) -> float:
    """Epsilon of `steps` subsampled Gaussian mechanisms.

    Raises:
        MissingExtraError: opacus is not installed.
        ConfigError: values outside their ranges.
    """
    if not (noise > 0 and 0 < rate <= 1 and steps >= 1 and 0 < delta < 1):
        raise ConfigError(
            f"noise {noise}, rate {rate}, {steps} steps, delta {delta}", "noise > 0, 0 < rate <= 1, 0 < delta < 1"
        )
    rdp = _accountant()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the best order is the first or last: the bound is valid, only loose
        spent = rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=ORDERS)
        epsilon, _ = rdp.get_privacy_spent(orders=ORDERS, rdp=np.asarray(spent), delta=delta)
    return float(epsilon)


def noise_for(epsilon: float, rate: float, steps: int, delta: float) -> float:
    """The smallest sigma (to 1e-3, rounded up) whose epsilon is at most the given one.

    Raises:
        ConfigError: none below 1e4 is enough.
    """
    low, high = 0.0, 0.5
    while epsilon_of(high, rate, steps, delta) > epsilon:
        low, high = high, high * 2
        if high > 1e4:
            raise ConfigError(
                f"epsilon={epsilon} at delta={delta}", "one that some noise reaches", "raise epsilon or delta"
            )
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon_of(middle, rate, steps, delta) > epsilon else (low, middle)
    return high


def report(config: PrivateConfig, n: int) -> PrivacyReport:
    """What the run of a configuration on n records guarantees; warns where that is little."""
    rate, steps = config.rate(n), config.steps(n)
    noise = config.noise if config.epsilon is None else noise_for(config.epsilon, rate, steps, config.delta)
    if config.delta >= 1 / n:
        warnings.warn(
            f"delta {config.delta:g} is not below 1/{n}: a mechanism that publishes one record would satisfy it; lower delta",
            PrivacyWarning, stacklevel=2,
        )  # fmt: skip
    return PrivacyReport(
        epsilon=epsilon_of(noise, rate, steps, config.delta), delta=config.delta, noise=noise, clip=config.clip, rate=rate,
        steps=steps, records=n, noise_from=config.noise_from,
    )  # fmt: skip


def poisson_batches(n: int, rate: float, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """`steps` samples of row indices, every row in each with probability `rate`; some may be empty."""
    for _ in range(steps):
        yield torch.nonzero(torch.rand(n, generator=generator, dtype=torch.float64) < rate).flatten()


def clipped_sum(rows: Mapping[str, Tensor], clip: float) -> Tensors:
    """sum_i g_i min(1, C / ||g_i||), the norm over all parameters together.

    Args:
        rows: per-example gradients [b, ...] by parameter name.
    """
    norms = torch.stack([g.flatten(1).float().square().sum(1) for g in rows.values()]).sum(0).sqrt()  # [b]
    whole = torch.isfinite(norms)  # a row whose gradient overflows counts as nothing: it must not show either
    factor = (clip / norms.clamp_min(torch.finfo(torch.float32).tiny)).clamp_max(1.0).masked_fill(~whole, 0.0)
    return {
        name: torch.tensordot(factor.to(g.dtype), g if bool(whole.all()) else g.nan_to_num(0.0, 0.0, 0.0), dims=1)
        for name, g in rows.items()
    }


def vectorised(
    model: torch.nn.Module, loss: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, targets: Tensor, clip: float
) -> SummedGradients:
    """Per-example gradients of a classifier by `torch.func`: one backward pass for the batch.

    Args:
        loss: (outputs [1, C], targets [1]) -> scalar.
        inputs, targets: [N, ...] and [N].

    Raises:
        ModelError: a layer that mixes the rows of a batch.
    """
    refuse_mixing(model)
    from torch.func import functional_call, grad, vmap

    def one(parameters: Tensors, x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(model, parameters, (x.unsqueeze(0),)), y.unsqueeze(0))

    rows = vmap(grad(one), in_dims=(None, 0, 0), randomness="different")

    def summed(batch: Tensor) -> Tensors:
        live = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        return clipped_sum(rows(live, inputs[batch], targets[batch]), clip)

    return summed


def one_by_one(model: torch.nn.Module, loss: Callable[[int], Tensor], clip: float) -> SummedGradients:
    """Per-example gradients by one backward pass an example: any architecture, tied weights included.

    Args:
        loss: index of an example to its scalar loss.

    Raises:
        ModelError: a trainable tensor that an example gives no gradient, or a layer that mixes rows.
    """
    refuse_mixing(model)

    def summed(batch: Tensor) -> Tensors:
        live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        total = {name: torch.zeros_like(p) for name, p in live.items()}
        for index in batch.tolist():
            found = torch.autograd.grad(loss(index), list(live.values()), allow_unused=True)
            for (name, parameter), g in zip(live.items(), found, strict=True):
                if g is None:
                    raise ModelError(
                        f"an example gives no gradient for {name} {list(parameter.shape)}", "one for every trained tensor",
                        "freeze it, or train something else privately",
                    )  # fmt: skip
            rows = {name: g.unsqueeze(0) for name, g in zip(live, found, strict=True) if g is not None}
            for name, g in clipped_sum(rows, clip).items():
                total[name] += g
        return total

    return summed


def refuse_mixing(model: torch.nn.Module) -> None:
    """Raise where a layer's output for one row depends on the others: clipping one row's gradient means nothing then."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            raise ModelError(f"{name} is a {type(module).__name__}", "layers that keep rows apart", "use GroupNorm")


def dp_sgd(
    model: torch.nn.Module, summed: SummedGradients, n: int, config: PrivateConfig, found: PrivacyReport,
    *, label: str = "private base", context: Any = None,
) -> None:  # fmt: skip
    """Train in place; parameters that require gradients move, no others.

    Args:
        summed: the clipped sum over a batch, with the clip of `found`.
        n: records.
        found: from `report`; says sigma, rate and steps.
        context: as in `PrivateConfig.generator`.
    """
    live = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not live:
        raise ModelError("no parameter requires a gradient", "at least one")
    rounded = sorted(name for name, p in live.items() if p.dtype not in (torch.float32, torch.float64))
    if rounded:
        raise ModelError(
            f"{rounded[0]} is {str(live[rounded[0]].dtype).removeprefix('torch.')}", "float32 weights",
            "load the model in float32: rounding breaks the bound on one record's share",
        )  # fmt: skip
    generator = config.generator(context)
    with track(label, found.steps) as advance:
        for batch in poisson_batches(n, found.rate, found.steps, generator):
            gradient = summed(batch) if len(batch) else {}
            with torch.no_grad():
                for name, parameter in live.items():
                    noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                    step = noise * (found.noise * found.clip)
                    if name in gradient:
                        step += gradient[name]
                    step /= found.rate * n
                    parameter.sub_(config.learning_rate * (step + config.weight_decay * parameter))
            advance(1)
