"""Peak memory and time of contrastive losses, forward and backward, by batch size: ours against dense torch and two peers.

Every case runs in a fresh process: unit embeddings are made, libraries warmed on a small batch, the resident peak of the
first full run is taken over the resident size before it, then the median time of further runs. All cases of a task get
the same inputs, and their losses must agree to five digits. A size that would exceed the free memory is not run; what it
would need is extrapolated from the growth between the last two sizes that ran.

    python benchmarks/contrastive_losses.py [--sizes 1024,2048] [--most-gb 16] [--dim 256] [--scale 20] [--cases TEXT]
        [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from efface.learn.objectives.clip import clip
from efface.learn.objectives.nt_xent import nt_xent
from efface.run.cost import peak_mb

SIZES = (1024, 2048, 4096, 8192, 16384, 32768)
OURS = "efface (tiled)"
SMALL = (128, 256)
"""Added for cases of cubic memory, and for ours beside them: a size that fits, and the growth."""
BUDGET, MOST = 20.0, 5  # seconds and runs of one timing
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours_clip(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE, tiled."""
    return clip(a, b, scale)


def dense_clip(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """One product, cross-entropy on its rows and on its columns."""
    s, target = scale * a @ b.T, torch.arange(len(a))
    return (cross_entropy(s, target) + cross_entropy(s.T, target)) / 2


def dense_clip_lse(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """One product, log-sum-exp of its rows and of its columns."""
    s = scale * a @ b.T
    return ((s.logsumexp(1) + s.logsumexp(0)) / 2 - s.diagonal()).mean()


def mnrl_clip(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """sentence-transformers, symmetric."""
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.util import dot_score

    both = ("query_to_doc", "doc_to_query")
    loss = MultipleNegativesRankingLoss(
        torch.nn.Identity(),
        scale=float(scale),
        similarity_fct=dot_score,
        directions=both,
        partition_mode="per_direction",
    )
    return loss.compute_loss_from_embeddings([a, b], torch.empty(0))


def cached_mnrl_clip(rows: int) -> Loss:
    """sentence-transformers, symmetric, a few rows of the matrix at a time with a backward pass each."""

    def run(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
        from sentence_transformers.util import dot_score

        both = ("query_to_doc", "doc_to_query")
        loss = CachedMultipleNegativesRankingLoss(
            torch.nn.Sequential(torch.nn.Identity()), scale=float(scale), similarity_fct=dot_score, directions=both,
            partition_mode="per_direction", mini_batch_size=rows,
        )  # fmt: skip
        return loss.calculate_loss([[a], [b]], with_backward=True)

    return run


def ours_nt_xent(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """NT-Xent over both views, tiled."""
    return nt_xent(a, b, 1 / float(scale))


def dense_nt_xent(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """The 2B x 2B matrix with its diagonal masked in place, cross-entropy on its rows."""
    z = torch.cat([a, b])
    s = (scale * z @ z.T).fill_diagonal_(-math.inf)
    return cross_entropy(s, torch.arange(len(z)).roll(len(a)))


def dense_nt_xent_lse(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """The same matrix, log-sum-exp of its rows."""
    z = torch.cat([a, b])
    s = (scale * z @ z.T).fill_diagonal_(-math.inf)
    return (s.logsumexp(1) - scale * (a * b).sum(1).repeat(2)).mean()


def pml_nt_xent(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """pytorch-metric-learning."""
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    return SelfSupervisedLoss(NTXentLoss(temperature=1 / float(scale)))(a, b)


CASES: dict[str, dict[str, tuple[Loss, int]]] = {
    "CLIP": {
        OURS: (ours_clip, 1),
        "dense torch, cross_entropy": (dense_clip, 2),
        "dense torch, logsumexp": (dense_clip_lse, 2),
        "sentence-transformers MNRL": (mnrl_clip, 2),
        "sentence-transformers cached MNRL, 32 rows": (cached_mnrl_clip(32), 1),
        "sentence-transformers cached MNRL, 512 rows": (cached_mnrl_clip(512), 1),
    },
    "NT-Xent": {
        OURS: (ours_nt_xent, 1),
        "dense torch, cross_entropy": (dense_nt_xent, 2),
        "dense torch, logsumexp": (dense_nt_xent_lse, 2),
        "pytorch-metric-learning": (pml_nt_xent, 3),
    },
}
"""Task and case -> the loss, and the power of B that its memory is expected to follow (used before two sizes have run)."""


def inputs(size: int, dim: int, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Paired unit embeddings [B, D] whose pairs are alike, and the scale."""
    generator = torch.Generator().manual_seed(0)
    first = normalize(torch.randn(size, dim, generator=generator), dim=1)
    second = normalize(first + 2 * normalize(torch.randn(size, dim, generator=generator), dim=1), dim=1)
    return first.requires_grad_(), second.requires_grad_(), torch.tensor(scale)


def step(loss: Loss, a: Tensor, b: Tensor, scale: Tensor) -> float:
    """Forward and backward; the loss."""
    a.grad = b.grad = None
    value = loss(a, b, scale)
    if value.requires_grad:
        value.backward()
    assert a.grad is not None
    assert b.grad is not None
    return float(value.detach())


def tangent_norm(x: Tensor) -> float:
    """Norm of the gradient along the sphere: a peer that normalises once more has no other part."""
    unit, grad = x.detach(), x.grad
    assert grad is not None
    return float((grad - (grad * unit).sum(1, keepdim=True) * unit).norm())


def resident_mb() -> float:
    """Resident memory now, after the peak is set back to it (Linux); elsewhere the peak so far."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_mb()


def run_case(task: str, name: str, size: int, dim: int, scale: float) -> dict[str, float]:
    """In this process: peak MiB over the inputs, median seconds, the loss and the norm of its gradient along the sphere."""
    warnings.simplefilter("ignore")
    loss = CASES[task][name][0]
    step(loss, *inputs(64, dim, scale))
    a, b, factor = inputs(size, dim, scale)
    base = resident_mb()
    value = step(loss, a, b, factor)
    peak = peak_mb() - base
    norm = math.hypot(tangent_norm(a), tangent_norm(b))
    seconds: list[float] = []
    while len(seconds) < MOST and sum(seconds) < BUDGET:
        start = time.perf_counter()
        step(loss, a, b, factor)
        seconds.append(time.perf_counter() - start)
    return {"peak_mib": peak, "seconds": statistics.median(seconds), "loss": value, "gradient_norm": norm}


def available_mb() -> float:
    """Memory that can be had now, in MiB."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable"):
                return int(line.split()[1]) / 1024
    return math.inf


def forecast(size: int, ran: list[tuple[int, float]], power: int) -> float:
    """MiB at `size` from the growth between the last two (size, MiB) that ran; 0 where nothing ran."""
    if not ran:
        return 0.0
    last, peak = ran[-1]
    # below 100 MiB, fixed costs hide the growth
    known = len(ran) > 1 and ran[-2][1] > 100
    growth = math.log(peak / ran[-2][1]) / math.log(last / ran[-2][0]) if known else power
    return peak * (size / last) ** growth


def fresh(task: str, name: str, size: int, dim: int, scale: float) -> dict[str, float] | None:
    """`run_case` in a process of its own; None where it ran out of memory."""
    one = json.dumps({"task": task, "name": name, "size": size, "dim": dim, "scale": scale})
    done = subprocess.run([sys.executable, __file__, "--one", one], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return result
    if done.returncode < 0 or "not enough memory" in done.stderr or "can't allocate memory" in done.stderr:
        return None
    raise SystemExit(f"{task}, {name}, {size}:\n{done.stderr}")


def row(entry: dict[str, Any], reference: dict[int, dict[str, float]]) -> str:
    """One line of the table; ratios are over ours at the same size."""
    ours, start = reference.get(entry["size"]), f"| {entry['task']} | {entry['case']} | {entry['size']:,} |"
    if "peak_mib" not in entry:
        return f"{start} would need about {entry['would_need_mib'] / 1024:,.0f} GB | | | |"
    ratios = ""
    if ours is not None and ours is not entry:
        ratios = f"{entry['peak_mib'] / ours['peak_mib']:.1f} | {entry['seconds'] / ours['seconds']:.2f}"
    return f"{start} {entry['peak_mib']:,.0f} | {entry['seconds']:.3f} | {ratios or '1 | 1'} |"


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=lambda text: [int(part) for part in text.split(",")], default=list(SIZES))
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--scale", type=float, default=20.0, help="one over the temperature")
    parser.add_argument("--tasks", default="", help="only tasks whose name contains this")
    parser.add_argument("--cases", default="", help="beside ours, only cases whose task and name contain this")
    parser.add_argument("--most-gb", type=float, default=64.0, help="larger cases are extrapolated, not run")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run_case(**json.loads(arguments.one))))
        return
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {platform.machine()}, {threads} threads, D = {arguments.dim}, float32\n")
    print("| task | case | B | peak MiB | seconds | memory / ours | time / ours |\n|---|---|---|---|---|---|---|")
    entries: list[dict[str, Any]] = []
    for task, every in CASES.items():
        if arguments.tasks.lower() not in task.lower():
            continue
        cases = {
            name: power for name, (_, power) in every.items()
            if name == OURS or arguments.cases.lower() in f"{task} {name}".lower()
        }  # fmt: skip
        cubic = [name for name, power in cases.items() if power == 3]
        ran: dict[str, list[tuple[int, float]]] = {name: [] for name in cases}
        reference: dict[int, dict[str, float]] = {}
        for size in sorted(
            {*arguments.sizes, *(SMALL if cubic else ())}
        ):  # size by size: what is compared runs in turn
            for name, power in cases.items():
                if size not in arguments.sizes and name not in (OURS, *cubic):
                    continue
                entry: dict[str, Any] = {"task": task, "case": name, "size": size}
                need = forecast(size, ran[name], power)
                fits = need < min(0.85 * available_mb(), 1024 * arguments.most_gb)
                result = fresh(task, name, size, arguments.dim, arguments.scale) if fits else None
                entry.update(result or {"would_need_mib": need})
                if result:
                    ran[name].append((size, result["peak_mib"]))
                    same = reference.setdefault(size, entry)
                    assert abs(same["loss"] - result["loss"]) < 1e-5 * max(1, abs(same["loss"])), "not the same loss"
                    assert abs(same["gradient_norm"] / result["gradient_norm"] - 1) < 1e-4, "not the same gradient"
                entries.append(entry)
                print(row(entry, reference), flush=True)
    if arguments.json:
        settings = {"dim": arguments.dim, "scale": arguments.scale, "threads": threads, "torch": torch.__version__}
        arguments.json.write_text(
            json.dumps({"settings": settings, "rows": entries}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
