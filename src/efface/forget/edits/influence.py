"""Influence unlearning: one Newton step that takes the forget set's part of the loss away.

Papers: Koh and Liang, arXiv 1703.04730; Izzo et al., arXiv 2002.10077; in the form of the baseline IU of Jia et al., arXiv
2304.04934. With g_f, g_r [P] the mean gradients of the loss on forget and retain set, n = n_f + n_r, and G [M, P] the
gradients of M single retain rows,

    v = (n_f / n) (g_f - g_r),   H = delta I + G^T G / M,   theta <- theta + alpha H^-1 v
    H^-1 v = (v - G^T (M delta I_M + G G^T)^-1 G v) / delta        (Woodbury: a system of M, not P, unknowns)

Departure from the official code, and why. Its WoodFisher recursion is degenerate: the running vector begins as the first
gradient and is only ever rescaled, so that what comes out is v minus a multiple of one gradient, for which the cosine to v is
1 on a trained model: gradient ascent with another name. `solver=repo` keeps it for replication (`cosine_to_v` is written
beside the edit). The exact solve is in float64. alpha 1 is the Newton step; with another delta the best alpha is another one
by orders of magnitude. Of a regressor the loss is half the square error, and H its empirical Fisher matrix too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.errors import ConfigError, InputError
from efface.forget.edits.one_shot import Change, OneShotConfig, edit_once, movable
from efface.forget.edits.row_gradients import sample_gradients
from efface.forget.method import FitConfig, Fitted, Method
from efface.run.progress import track
from efface.subjects.predictor import Predictor
from efface.train.gradient_stats import answer_gradients, mean_nll

CARD = Card(
    name="influence",
    system="sparse-unlearning",
    title="Influence unlearning",
    summary="One Newton step with the empirical Fisher matrix of the retain set, solved exactly.",
    paper="Koh and Liang, arXiv 1703.04730; Izzo et al., arXiv 2002.10077; as in Jia et al., arXiv 2304.04934",
    verb="forget",
    mechanism="edits",
    modalities=("any",),
    subjects=("classifier", "regressor"),
    needs=("forget", "retain", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="second_order", survey_class="parameter_optimisation", level="weights_all",
        threat_model="weight holder",
    ),
    defaults_source="code of arXiv 2304.04934: 1000 single retain gradients; damping 1e-3 and alpha 0.5 are efface's, "
    "from the lab's digits",
)  # fmt: skip

COLUMNS = 2**14
"""Columns of G that are taken to float64 at once."""


class InfluenceConfig(OneShotConfig):
    """The matrix and the length of the step."""

    alpha: float = Field(
        0.5, gt=0, description="length of the step; 1 is Newton's, too long where the model fits its rows; code: tuned"
    )
    damping: float = Field(1e-3, gt=0, description="delta of H, solver=exact; the best alpha depends on it")
    samples: int = Field(1000, ge=1, description="M single retain gradients; code: 1000")
    solver: Literal["exact", "repo"] = Field("exact", description="repo: the published recursion, no inverse at all")
    memory_gib: float = Field(4.0, gt=0, description="G [M, P] in float32 may take as much memory")
    batch_size: int = Field(256, ge=1, description="rows in a pass for the mean gradients, which do not depend on it")


def damped_inverse(g: Tensor, v: Tensor, damping: float) -> Tensor:
    """(delta I + G^T G / M)^-1 v [P] in float64, by the module's second line.

    Args:
        g: G [M, P], any floating type; it is taken to float64 in blocks of columns.
        v: [P].
        damping: delta > 0.

    Raises:
        InputError: shapes that do not fit.
    """
    if g.ndim != 2 or v.shape != g.shape[1:] or len(g) == 0:
        raise InputError(f"gradients {list(g.shape)} and a vector {list(v.shape)}", "[M, P] and [P]")
    m, wide = len(g), v.double()
    k = torch.zeros(m, m, dtype=torch.float64, device=g.device)
    gv = torch.zeros(m, dtype=torch.float64, device=g.device)
    for start in range(0, g.shape[1], COLUMNS):
        block = g[:, start : start + COLUMNS].double()
        k += block @ block.T
        gv += block @ wide[start : start + COLUMNS]
    k.diagonal().add_(m * damping)
    small = torch.cholesky_solve(gv.unsqueeze(1), torch.linalg.cholesky(k)).squeeze(1)  # [M]
    found = wide.clone()
    for start in range(0, g.shape[1], COLUMNS):
        found[start : start + COLUMNS] -= g[:, start : start + COLUMNS].double().T @ small
    return found / damping


def published_recursion(g: Tensor, v: Tensor) -> Tensor:
    """What the official code calls WoodFisher: k <- k - (k . g_t) / (M + o . g_t) o, o <- o - (o . g_t) / (M + o . g_t) o.

    o begins as g_1 and stays a multiple of it, so k is v minus a multiple of g_1.

    Args:
        g: G [M, P].
        v: [P].
    """
    k, o, m = v.double().clone(), g[0].double().clone(), len(g)
    for row in g[1:]:
        own = row.double()
        dot = o @ own
        k -= (k @ own) / (m + dot) * o
        o -= dot / (m + dot) * o
    return k


def gradient_rows(subject: Predictor, rows: Sequence[Any], names: Sequence[str]) -> Tensor:
    """G [M, P] in the order of rows and names, float32 (float64 of a float64 model)."""
    own = dict(subject.model.named_parameters())
    wide = torch.promote_types(subject.dtype, torch.float32)
    found = torch.empty(len(rows), sum(own[name].numel() for name in names), dtype=wide, device=subject.device)
    with track("gradients of single retain rows", len(rows)) as advance:
        for part, grads in sample_gradients(subject, rows, mean_nll, names):
            found[part] = torch.cat([grads[name].flatten(1) for name in names], dim=1).to(wide)
            advance(len(part))
    return found


class Influence(Method):
    """See the module."""

    card = CARD
    config_class = InfluenceConfig

    def fit(self, subject: Predictor, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`.

        Raises:
            RequestError: no retain set.
            ConfigError: neither classifier nor regressor, every weight frozen, or G beyond `memory_gib`.
        """
        assert isinstance(config, InfluenceConfig)
        self.check_subject(subject)
        self.check(request, config)
        assert request.retain is not None
        own = movable(subject, config, CARD.name)
        forget = subject.encode_rows(request.forget, name="forget")
        retain = subject.encode_rows(request.retain, name="retain")
        chosen = _chosen(len(retain), config)
        _refuse_large(len(chosen), sum(p.numel() for p in own.values()), config)

        def change() -> Change:
            means = [
                answer_gradients(subject, rows, batch_size=config.batch_size, names=list(own)).tensors
                for rows in (forget, retain)
            ]
            g_f, g_r = (torch.cat([tensors[name].flatten().double() for name in own]) for tensors in means)
            v = len(forget) / (len(forget) + len(retain)) * (g_f - g_r)
            g = gradient_rows(subject, [retain[i] for i in chosen], list(own))
            step = damped_inverse(g, v, config.damping) if config.solver == "exact" else published_recursion(g, v)
            notes = {
                "cosine_to_v": float(torch.nn.functional.cosine_similarity(step, v, dim=0)),
                "length_of_v": float(v.norm()), "length_of_step": config.alpha * float(step.norm()), "samples": len(chosen),
            }  # fmt: skip
            return Change(_moved(own, config.alpha * step), notes, len(forget))

        return edit_once(self, subject, config, own, change, work=work, out=out)


def _chosen(rows: int, config: InfluenceConfig) -> list[int]:
    """M retain rows without order effects; the published solver takes the first ones."""
    count = min(config.samples, rows)
    if config.solver == "repo":
        return list(range(count))
    picks: list[int] = sorted(np.random.default_rng(config.seed).permutation(rows)[:count].tolist())
    return picks


def _refuse_large(rows: int, numbers: int, config: InfluenceConfig) -> None:
    limit = int(config.memory_gib * 2**30)
    need = 4 * rows * numbers
    if need > limit:
        fits = limit // (4 * numbers)
        remedy = f"set samples={fits}" if fits else "set scope=layers with fewer weights"
        raise ConfigError(
            f"{rows} gradients of {numbers:,} weights are {need:,} bytes",
            f"at most {limit:,} (memory_gib={config.memory_gib:g})",
            f"{remedy}, or raise memory_gib",
        )  # fmt: skip


def _moved(own: Mapping[str, torch.nn.Parameter], step: Tensor) -> Iterator[tuple[str, Tensor]]:
    """theta + step, cut up by parameter."""
    sizes = [p.numel() for p in own.values()]
    for (name, parameter), part in zip(own.items(), torch.split(step, sizes), strict=True):
        yield name, parameter.detach().double() + part.view(parameter.shape)


METHOD = Influence()
