"""Information gain: the covariance-weighted norm follows the KL gain, but only while the scores vary little.

Parts, each a function of its own: A, numerics: the estimators against closed forms, and how a sample's size caps them.
B, unit vectors in 128 dimensions: where the norm stands for the gain. C and D, trained models: `gain_of_models`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from efface.measure.gain import GainSums, centered_norm, cov_norm, gain_sums
from efface.proofs.gain_of_models import emoji_checks, scene_checks
from efface.proofs.proof import Check, Proof

SEEDS = (0, 1, 2)

GAUSSIAN_ROWS = 10_000
SIGMAS = (3.0, 4.0, 5.0)

DIMENSIONS, WIDE, NARROW_VARIANCE = 128, 32, 0.05
SAMPLE, QUERIES = 20_000, 1_000
SCALES = (5.0, 10.0, 20.0, 30.0, 50.0)
SMALL_K2_HALF = 1.5
"""Nats of mean k2/2 up to which the norm must stand for the gain."""


def gaussian(sigma: float, seed: int) -> GainSums:
    """The gain where scores are N(0, sigma^2), sampled GAUSSIAN_ROWS times; both gains are then sigma^2 / 2."""
    draws = torch.randn(GAUSSIAN_ROWS, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return gain_sums(torch.tensor([[sigma]], dtype=torch.float64), draws, 1.0)


def unit_figures() -> float:
    """Largest error on U = e1, e2; V = e1, e2, e3, -e1; a = 2, against the closed forms."""
    e = torch.eye(3, dtype=torch.float64)
    queries, sample = e[:2], torch.stack([e[0], e[1], e[2], -e[0]])
    found = gain_sums(queries, sample, 2.0)
    G = torch.cov(sample.T, correction=0)
    z = (math.exp(2) + 2 + math.exp(-2), math.exp(2) + 3)  # of scores (2, 0, 0, -2) and (0, 2, 0, 0)
    moved = (2 * math.exp(2) - 2 * math.exp(-2), 2 * math.exp(2))
    pairs = [
        (found.kl, [top / total - math.log(total / 4) for top, total in zip(moved, z, strict=True)]),
        (found.klr, [math.log(z[0] / 4), math.log(z[1] / 4) - 0.5]),
        (cov_norm(queries, G, None, 2.0), [1.0, 0.375]),
        (cov_norm(queries, G, queries.mean(dim=0), 2.0), [0.34375, 0.34375]),
    ]
    return max(float((ours - torch.tensor(exact, dtype=torch.float64)).abs().max()) for ours, exact in pairs)


def numerics_checks() -> list[Check]:
    """Part A; every figure is the worst of the seeds."""
    calm = [gaussian(1.0, seed) for seed in SEEDS]
    kl_error, klr_error = (max(abs(float(values) - 0.5) for values in column)
                           for column in ([g.kl for g in calm], [g.klr for g in calm]))  # fmt: skip
    gaussian_1 = "A Gaussian scores, sigma 1: error in nats of"
    found = [
        Check(name="A unit vectors: largest error of both gains and both norms", figure=unit_figures(), relation="<=",
              threshold=1e-12),
        Check(name=f"{gaussian_1} kl", figure=kl_error, relation="<=", threshold=0.05, seeds=SEEDS),
        Check(name=f"{gaussian_1} klr", figure=klr_error, relation="<=", threshold=0.05, seeds=SEEDS),
    ]  # fmt: skip
    for sigma in SIGMAS:
        sums = [gaussian(sigma, seed) for seed in SEEDS]
        true = sigma**2 / 2
        short = [(true - float(g.kl), true - float(g.klr)) for g in sums]
        found += [
            Check(name=f"A Gaussian scores, sigma {sigma:g}: nats that kl misses beyond what klr misses",
                  figure=min(kl - abs(klr) for kl, klr in short), relation=">", threshold=0.0,
                  baseline=max(abs(klr) for _, klr in short), seeds=SEEDS),
        ]  # fmt: skip
    return found


def vectors(seed: int) -> tuple[Tensor, Tensor]:
    """Queries [1000, 128] and a sample [20000, 128] of unit rows: 32 wide directions and 96 narrow ones."""
    generator = torch.Generator().manual_seed(seed)

    def normal(n: int) -> Tensor:
        return torch.randn(n, DIMENSIONS, generator=generator, dtype=torch.float64)

    sample = normal(SAMPLE)
    sample[:, WIDE:] *= math.sqrt(NARROW_VARIANCE)
    w = 0.02 + 0.98 * torch.rand(QUERIES, 1, generator=generator, dtype=torch.float64)
    queries = normal(QUERIES)
    queries[:, :WIDE] *= 1.5 * (1 - w)
    queries[:, WIDE:] *= 3 * w
    return queries / queries.norm(dim=1, keepdim=True), sample / sample.norm(dim=1, keepdim=True)


def r2(x: Tensor, y: Tensor) -> float:
    """Share of the variance of y that a line in x explains."""
    return float(torch.corrcoef(torch.stack([x, y]))[0, 1]) ** 2


@dataclass(frozen=True)
class Cell:
    """One seed at one scale: mean k2/2 in nats, and R^2 of both gains on the norm and of kl on the centred norm."""

    seed: int
    k2_half: float
    kl: float
    klr: float
    plain: float


def cells(a: float) -> list[Cell]:
    """All seeds at one scale; the norm has the paper's centring, the mean of the queries."""
    found = []
    for seed in SEEDS:
        queries, sample = vectors(seed)
        G, c = torch.cov(sample.T, correction=0), queries.mean(dim=0)
        sums, norm = gain_sums(queries, sample, a), cov_norm(queries, G, c, a)
        found.append(Cell(
            seed, float(sums.k2_half.mean()), r2(norm, sums.kl), r2(norm, sums.klr), r2(centered_norm(queries, c, a), sums.kl)
        ))  # fmt: skip
    return found


def vectors_checks() -> list[Check]:
    """Part B; every figure is the worst of the seeds whose mean k2/2 is up to 1.5 nats, or above it."""
    calm_checks, hot_checks = [], []
    for a in SCALES:
        every = cells(a)
        calm = [cell for cell in every if cell.k2_half <= SMALL_K2_HALF]
        hot = [cell for cell in every if cell.k2_half > SMALL_K2_HALF]
        if calm:
            reach = f"mean k2/2 {max(cell.k2_half for cell in calm):.2f} nats, log N {math.log(SAMPLE):.1f}"
            calm_checks.append(Check(
                name=f"B scale {a:g}, {reach}: R^2 of kl on the norm (baseline: on the centred norm)",
                figure=min(cell.kl for cell in calm), relation=">=", threshold=0.98,
                baseline=max(cell.plain for cell in calm), seeds=tuple(cell.seed for cell in calm),
            ))  # fmt: skip
        if hot:
            reach = f"mean k2/2 {min(cell.k2_half for cell in hot):.2f} nats"
            hot_checks.append(Check(
                name=f"B scale {a:g}, {reach}: R^2 of kl on the norm is below that of klr (baseline: of klr)",
                figure=max(cell.kl for cell in hot), relation="<", threshold=min(cell.klr for cell in hot),
                baseline=min(cell.klr for cell in hot), seeds=tuple(cell.seed for cell in hot),
            ))  # fmt: skip
    return [*calm_checks, *hot_checks]


def checks() -> list[Check]:
    """All parts."""
    return [check for part in PARTS for check in part()]


PARTS: tuple[Callable[[], list[Check]], ...] = (vectors_checks, numerics_checks, scene_checks, emoji_checks)
"""Functions of no arguments; the first one's first check is the headline."""


PROOF = Proof(
    system="information-gain",
    claim="The covariance-weighted norm of an embedding follows its information gain with an R^2 of 0.98 to 1.00",
    checks=checks,
    quick=False,
    note="The claim holds in one regime: mean k2/2 up to about 1.5 nats. Above it kl runs into log N and the higher cumulants, "
    "and the R^2 falls (0.94 at 3 nats, 0.82 at 9). An R^2 near 1 says little without mean k2/2 and log N beside it. Part D "
    "shows the mechanism, not any icon: placeholders rank lowest where they recur in training with arbitrary captions, as on "
    "the web; to a model that has never met them they are pictures like others (baseline). The first run trains five models.",
)
