"""Selectors: how the single weights that may move are chosen.

`wagle` is the attribution of Jia et al., arXiv 2410.17509 (NeurIPS 2024): the influence of removing weight i on the forget
loss after the retain loss has been minimised again, with the Hessian of the retain loss taken as gamma times the identity,

    S_i = theta_i g_f,i - (1 / gamma) g_r,i g_f,i = (theta_i - g_r,i / gamma) g_f,i,   score_i = |S_i|

The others are its baselines: `snip` |theta g_f| (gamma to infinity), `gradient` |g_f|, `magnitude` |theta|, `random`, and
`reverse`, the lowest WAGLE scores. Gradients are means over the answer tokens, so that gamma does not depend on how many
rows there are. The official code sums over n batches: its gamma g (1e-6) is gamma = g / n here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from efface.errors import ConfigError, RequestError, nearest
from efface.subjects.learner import Learner
from efface.train.gradient_stats import GradStats, answer_gradients, own_parameters
from efface.train.mask_guard import refuse_masked
from efface.train.scopes import ScopeConfig, depth_of, layer_indices, part_names
from efface.train.weight_mask import MaskFacts, WeightMask, matching

SELECTORS = ("wagle", "gradient", "snip", "magnitude", "random", "reverse")
SEEN = {"wagle": ("forget", "retain"), "reverse": ("forget", "retain"), "gradient": ("forget",), "snip": ("forget",)}
"""Rows that a selector looks at."""

BATCH = 8
"""Rows in a pass; the mean gradient does not depend on it."""


@dataclass(frozen=True)
class MaskRows:
    """Tokenised rows to attribute: what is to be forgotten (for refusal training: the refusals) and what is to be kept."""

    forget: Sequence[Any] | None = None
    retain: Sequence[Any] | None = None


class LazyScores(Mapping[str, Tensor]):
    """Scores that are computed one tensor at a time, when asked for: no third array of the model's size."""

    def __init__(self, names: Sequence[str], score: Callable[[str], Tensor]) -> None:
        self.names, self.score = list(names), score

    def __getitem__(self, name: str) -> Tensor:
        return self.score(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def wagle_score(theta: Tensor, g_f: Tensor, g_r: Tensor, gamma: float) -> Tensor:
    """|(theta - g_r / gamma) g_f|, entry by entry.

    Args:
        theta, g_f, g_r: weights, forget gradient, retain gradient, of one shape.
        gamma: diagonal of the retain loss's Hessian; infinity gives |theta g_f|.
    """
    return ((theta - g_r / gamma) * g_f).abs()


def auto_gamma(subject: Learner, retain: Sequence[Any]) -> float:
    """Mean over weights and rows of the squared retain gradient: the mean diagonal of the empirical Fisher matrix.

    Raises:
        ConfigError: it is zero: the retain loss has no gradient anywhere.
    """
    gamma = answer_gradients(subject, retain, power=2, per="sample").mean()
    if not gamma > 0:
        raise ConfigError(
            "gamma=auto: the retain loss has no gradient", "a positive mean square", "set gamma to a number"
        )
    return gamma


def restricted(model: torch.nn.Module, config: ScopeConfig) -> list[str]:
    """Names of the weights that are ranked: within `layers`, `part` and `mask_modules`, without `mask_exclude`.

    Raises:
        ConfigError: a pattern that fits nothing, or nothing left.
    """
    chosen = None if config.layers is None else layer_indices(config.layers, depth_of(model))
    inside = set(part_names(model, config.part, chosen))
    known = list(own_parameters(model))
    wanted = known if config.mask_modules is None else matching(known, config.mask_modules.split(","))
    gone = set() if config.mask_exclude is None else set(matching(known, config.mask_exclude.split(",")))
    names = [name for name in wanted if name in inside and name not in gone]
    if not names:
        raise ConfigError("no weight is left to rank", "at least one", "widen layers, part or mask_modules")
    return names


def select(
    subject: Learner, selector: str, densities: Sequence[float], rows: MaskRows, *, gamma: float | Literal["auto"] = "auto",
    per_layer: bool = False, names: Sequence[str] | None = None, seed: int = 0,
) -> list[WeightMask]:  # fmt: skip
    """Masks of one selector in several densities, from one ranking.

    Args:
        rows: what the selector looks at.
        gamma: WAGLE's; `auto` is `auto_gamma`.
        per_layer: rank within each tensor.
        names: weights that are ranked; default all.
        seed: of `random`.

    Raises:
        ConfigError: no such selector; the model has an adapter or is quantised; the forget loss has no gradient at the
            weights that are ranked.
        RequestError: rows that the selector needs are missing.
    """
    if selector not in SELECTORS:
        raise ConfigError(f"mask='{selector}'", "a mask file or a selector", nearest(selector, SELECTORS))
    refuse_masked(subject.model)
    seen: dict[str, Sequence[Any]] = {}
    for role in SEEN.get(selector, ()):
        part = rows.forget if role == "forget" else rows.retain
        if not part:
            raise RequestError(
                f"mask={selector} without {role} rows", "rows to attribute the weights to",
                f"give them with --{role}, or choose another mask",
            )  # fmt: skip
        seen[role] = part
    names = list(own_parameters(subject.model, names))
    stats = {role: answer_gradients(subject, part, batch_size=BATCH) for role, part in seen.items()}
    if "forget" in stats:
        _refuse_nothing(selector, stats["forget"], names)
    used: float | None = None
    if "retain" in seen:
        used = auto_gamma(subject, seen["retain"]) if gamma == "auto" else float(gamma)
    scores = _scores(subject, selector, names, stats, used, seed)
    facts = MaskFacts(
        selector=selector, model=subject.digest, data={role: part.data for role, part in stats.items()}, gamma=used,
        retain_share=None if used is None else _retain_share(subject, names, stats, used),
    )  # fmt: skip
    return WeightMask.several(scores, densities, per_layer=per_layer, largest=selector != "reverse", facts=facts)


def _refuse_nothing(selector: str, forget: GradStats, names: Sequence[str]) -> None:
    """All scores would be zero, and the first weights in order would be taken for the important ones."""
    if not any(bool(forget.tensors[name].any()) for name in names):
        raise ConfigError(
            f"mask={selector}: the forget loss has a gradient of exactly zero at all {len(names)} tensors that are ranked",
            "a gradient", "widen layers, part or mask_modules, or choose mask=magnitude or mask=random; a model that is "
            "certain of its answers has no gradient either",
        )  # fmt: skip


def _scores(
    subject: Learner, selector: str, names: list[str], stats: Mapping[str, GradStats], gamma: float | None, seed: int
) -> LazyScores:
    theta = {name: parameter.detach() for name, parameter in own_parameters(subject.model, names).items()}
    g = {role: part.tensors for role, part in stats.items()}
    if selector == "random":
        seeds = {name: index for index, name in enumerate(names)}

        def random(name: str) -> Tensor:  # the same numbers whenever they are asked for
            generator = torch.Generator().manual_seed(seed * 2**20 + seeds[name])
            return torch.rand(theta[name].shape, generator=generator).to(theta[name].device)

        return LazyScores(names, random)
    if selector == "magnitude":
        return LazyScores(names, lambda name: theta[name].float().abs())
    if selector == "gradient":
        return LazyScores(names, lambda name: g["forget"][name].abs())
    if selector == "snip":
        return LazyScores(names, lambda name: (theta[name].float() * g["forget"][name]).abs())
    assert gamma is not None
    return LazyScores(names, lambda name: wagle_score(theta[name].float(), g["forget"][name], g["retain"][name], gamma))


def _retain_share(subject: Learner, names: list[str], stats: Mapping[str, GradStats], gamma: float) -> float:
    """sum |g_r g_f| / gamma as a share of itself and sum |theta g_f|: above a half, the retain term dominates."""
    weight = retain = 0.0
    for name, theta in own_parameters(subject.model, names).items():
        g_f = stats["forget"].tensors[name]
        weight += float((theta.detach() * g_f).abs().sum(dtype=torch.float64))
        retain += float((stats["retain"].tensors[name] * g_f).abs().sum(dtype=torch.float64)) / gamma
    return retain / (weight + retain) if weight + retain > 0 else 0.0


def mask_of(subject: Learner, config: ScopeConfig, rows: MaskRows, seed: int) -> WeightMask:
    """The mask that a configuration with `scope=mask` asks for: read from its file, or selected.

    Raises:
        ConfigError: see `select`.
        RunError: the file was made on another model.
    """
    refuse_masked(subject.model)
    name = config.mask or "wagle"
    if name not in SELECTORS and (name.endswith(".safetensors") or Path(name).is_file()):
        given = sorted({"density", "mask_per_layer", "gamma"} & config.model_fields_set)
        if given:
            raise ConfigError(f"{', '.join(given)} with a mask file", "the mask as it is stored", "leave them out")
        mask = WeightMask.load(name)
        mask.parameters(subject.model, subject.digest)
        kept = set(restricted(subject.model, config))
        return WeightMask({key: value for key, value in mask.masks.items() if key in kept}, mask.facts)
    found = select(
        subject, name, [config.density], rows, gamma=config.gamma, per_layer=config.mask_per_layer,
        names=restricted(subject.model, config), seed=seed,
    )  # fmt: skip
    return found[0]
