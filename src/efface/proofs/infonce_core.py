"""The shared contrastive base is exact, and its loss needs memory that grows with B and not with its square.

Exactness is shown against dense plain formulas in float64; memory is the process's peak over what it held before.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor, nn

from efface.learn.objectives.clip import clip
from efface.learn.objectives.nt_xent import nt_xent
from efface.proofs.proof import Check, Proof
from efface.run.cost import measure_cost
from efface.train.engine import isolated_rng
from efface.train.gradient_caching import cached

SEED = 0
SMALL, WIDTH = 50, 16
LARGE = 4096


def unit_rows(rows: int, width: int, seed: int, dtype: torch.dtype) -> Tensor:
    """[rows, width] random directions."""
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=1).to(dtype)


def dense_nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """The plain form: the whole [2B, 2B] matrix."""
    z = torch.cat([first, second])
    s = (z @ z.T / temperature).masked_fill(torch.eye(len(z), dtype=torch.bool), float("-inf"))
    partner = torch.arange(len(z)).roll(len(first))
    return nn.functional.cross_entropy(s, partner)


def dense_clip(first: Tensor, second: Tensor, scale: Tensor) -> Tensor:
    """The plain form: the whole [B, B] matrix, used both ways."""
    s = scale * first @ second.T
    own = torch.arange(len(s))
    return (nn.functional.cross_entropy(s, own) + nn.functional.cross_entropy(s.T, own)) / 2


def gradient_error() -> float:
    """Largest difference of value and gradients between tiled and dense, over every tile size up to beyond B."""
    worst = 0.0
    rows = [unit_rows(SMALL, WIDTH, SEED + i, torch.float64).requires_grad_() for i in range(2)]
    scale = torch.tensor(14.0, dtype=torch.float64, requires_grad=True)

    def pieces(value: Tensor, *at: Tensor) -> list[Tensor]:
        return [value.detach(), *torch.autograd.grad(value, at)]

    a, b = rows
    plain = pieces(dense_nt_xent(a, b, 0.2), a, b), pieces(dense_clip(a, b, scale), a, b, scale)
    for tile in range(1, 2 * SMALL + 4):
        ours = pieces(nt_xent(a, b, 0.2, tile=tile), a, b), pieces(clip(a, b, scale, tile=tile), a, b, scale)
        for one, other in zip(ours, plain, strict=True):
            worst = max(worst, *(float((x - y).abs().max()) for x, y in zip(one, other, strict=True)))
    return worst


def caching_error() -> float:
    """Largest difference of a parameter's gradient between cached and plain chunks, with dropout on."""
    with isolated_rng(SEED):
        encoder = nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.5), nn.Tanh(), nn.Linear(32, WIDTH)).double()
        inputs = torch.randn(24, 8, dtype=torch.float64)

    def gradients(embed: Callable[[], Tensor]) -> list[Tensor]:
        encoder.zero_grad()
        with isolated_rng(SEED + 1):
            rows = nn.functional.normalize(embed(), dim=1)
            nt_xent(rows[:12], rows[12:], 0.2).backward()  # type: ignore[no-untyped-call]
        return [parameter.grad.clone() for parameter in encoder.parameters() if parameter.grad is not None]

    once = gradients(lambda: torch.cat([encoder(inputs[i : i + 5]) for i in range(0, 24, 5)]))
    twice = gradients(lambda: cached(lambda part: encoder(part["x"]), {"x": inputs}, 5))
    return max(float((a - b).abs().max()) for a, b in zip(once, twice, strict=True))


def resident_mb() -> float:
    """Memory of this process now, in MiB (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def extra_mb(loss: Callable[[Tensor, Tensor, float], Tensor], rows: int) -> float:
    """Peak memory of one forward and backward pass over what was held before, in MiB, in a fresh process."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_extra_mb, (loss, rows))


def _extra_mb(loss: Callable[[Tensor, Tensor, float], Tensor], rows: int) -> float:
    torch.set_num_threads(1)
    warm = [unit_rows(64, 128, SEED + i, torch.float32).requires_grad_() for i in range(2)]
    loss(warm[0], warm[1], 0.1).backward()  # type: ignore[no-untyped-call]
    views = [unit_rows(rows, 128, SEED + i, torch.float32).requires_grad_() for i in range(2)]
    gc.collect()
    before = resident_mb()
    with measure_cost("loss") as cost:
        loss(views[0], views[1], 0.1).backward()  # type: ignore[no-untyped-call]
    return max(cost.peak_mb - before, 0.1)


def checks() -> list[Check]:
    """Exactness first, then memory."""
    ours = [extra_mb(nt_xent, rows) for rows in (LARGE, 2 * LARGE)]
    dense = extra_mb(dense_nt_xent, LARGE)
    return [
        Check(name="largest error of tiled values and gradients, every tile size (float64)", figure=gradient_error(),
              relation="<=", threshold=1e-10, seeds=(SEED,)),
        Check(name="largest error of cached gradients with dropout (float64)", figure=caching_error(), relation="<=",
              threshold=1e-10, seeds=(SEED,)),
        Check(name=f"peak memory of tiled NT-Xent over dense at B = {LARGE}", figure=ours[0] / dense, relation="<=",
              threshold=0.2, baseline=1.0),
        Check(name=f"growth of peak memory from B = {LARGE} to {2 * LARGE} (dense: 4, pytorch-metric-learning: 8)",
              figure=ours[1] / ours[0], relation="<=", threshold=2.5, baseline=4.0),
    ]  # fmt: skip


PROOF = Proof(
    system="infonce-core",
    claim="Tiled log-sum-exp and gradient caching give the exact loss and gradient of a large batch in memory that grows "
    "linearly with it",
    checks=checks,
    note="Equality with pytorch-metric-learning and sentence-transformers, and of two processes with one, are tests "
    "(tests/parity, tests/train/test_gather.py); speed beside them is in docs/results/benchmarks.md. Linux reads the memory.",
)
