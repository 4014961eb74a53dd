"""Information gain's cost: the norm against its bare matrix product, kl's memory against the dense form, and the sample size.

Three tables, measured side by side in one run on one machine:
  norm     `cov_norm` of many embeddings against the matrix product U G that it contains, same dtype, same blocks
  memory   peak memory of `gain_sums` against the dense form that holds B x N, at B = N, each in a process of its own
  sample   seconds of both for a fixed number of queries as the sample grows, given the sample's statistics

    python benchmarks/information_gain.py [--rows 1000000] [--side 2048 4096 ...] [--sample 1000 ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efface.measure.gain import cov_norm, gain_sums
from efface.numerics.moments import Moments
from efface.run.cost import measure_cost, peak_mb

SCALE = 30.0
BLOCK = 65_536
CHUNK = 1024
"""Rows of one product, on both sides."""

SAMPLE_BLOCK = 65_536


def unit(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """[n, d] random unit rows."""
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return rows.div_(rows.norm(dim=1, keepdim=True))


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def norm_rows(rows: int, d: int, rounds: int) -> list[dict[str, Any]]:
    """cov_norm against the bare product; blocks are made anew, so that memory stays small."""
    found = []
    for dtype in (torch.float64, torch.float32):
        sample = unit(4 * d, d, 1)
        moments = Moments.of(sample)
        G = torch.from_numpy(moments.covariance()).to(dtype)
        c = torch.from_numpy(moments.centre).to(dtype)
        buffer = torch.empty(CHUNK, d, dtype=dtype)

        def bare(block: Tensor, G: Tensor = G, buffer: Tensor = buffer) -> None:
            for start in range(0, len(block), CHUNK):
                part = block[start : start + CHUNK]
                torch.mm(part, G, out=buffer[: len(part)])

        def ours(block: Tensor, G: Tensor = G, c: Tensor = c, dtype: torch.dtype = dtype) -> None:
            cov_norm(block, G, c, SCALE, chunk=CHUNK, dtype=dtype)

        warm = unit(CHUNK, d, 0, dtype)
        bare(warm)
        ours(warm)
        totals: dict[str, list[float]] = {"bare": [], "cov_norm": []}
        for _ in range(rounds):
            spent = {"bare": 0.0, "cov_norm": 0.0}
            for index, start in enumerate(range(0, rows, BLOCK)):
                block = unit(min(BLOCK, rows - start), d, index, dtype)
                jobs = [("bare", bare), ("cov_norm", ours)]
                for name, work in jobs if index % 2 else reversed(jobs):  # neither always comes first
                    spent[name] += seconds(lambda work=work, block=block: work(block))
            for name, value in spent.items():
                totals[name].append(value)
        best = {name: min(values) for name, values in totals.items()}
        found.append({
            "rows": rows, "d": d, "dtype": str(dtype).removeprefix("torch."), **best, "ratio": best["cov_norm"] / best["bare"],
        })  # fmt: skip
    return found


def dense(queries: Tensor, sample: Tensor) -> Tensor:
    """kl by the whole B x N matrix, as the official code does."""
    scores = SCALE * queries @ sample.T
    weights = torch.softmax(scores, dim=1)
    return (weights * scores).sum(dim=1) - (torch.logsumexp(scores, dim=1) - math.log(len(sample)))


def memory_child(kind: str, side: int, d: int) -> dict[str, Any]:
    """Seconds and peak MiB above the inputs, in this process."""
    queries, sample = unit(side, d, 0), unit(side, d, 1)
    (dense if kind == "dense" else lambda u, v: gain_sums(u, v, SCALE).kl)(queries[:64], sample[:64])
    with measure_cost("start"):
        pass
    before = peak_mb()
    with measure_cost(kind) as cost:
        values = dense(queries, sample) if kind == "dense" else gain_sums(queries, sample, SCALE).kl
    return {"seconds": cost.seconds, "mib": cost.peak_mb - before, "mean": float(values.mean())}


def memory_rows(sides: list[int], d: int) -> list[dict[str, Any]]:
    """Tiled against dense, each in its own process; both must give one number."""
    found = []
    for side in sides:
        row: dict[str, Any] = {"side": side, "d": d}
        for kind in ("tiled", "dense"):
            words = [sys.executable, __file__, "--child", kind, str(side), str(d)]
            done = subprocess.run(words, capture_output=True, text=True)
            if done.returncode:
                row |= {f"{kind}_seconds": None, f"{kind}_mib": None, f"{kind}_mean": None}
                continue
            child = json.loads(done.stdout.splitlines()[-1])
            row |= {f"{kind}_{key}": value for key, value in child.items()}
        if row["dense_mean"] is not None:
            assert abs(row["tiled_mean"] - row["dense_mean"]) < 1e-9, "both sides must give the same number"
        found.append(row)
    return found


def sample_rows(sizes: list[int], queries: int, d: int, kl_limit: int) -> list[dict[str, Any]]:
    """The norm given the sample's statistics, and kl over the sample itself; `None` where kl was left out."""
    u = unit(queries, d, 0)
    found = []
    for n in sizes:
        moments, begun = Moments.empty(d), time.perf_counter()
        for index, start in enumerate(range(0, n, SAMPLE_BLOCK)):
            block = unit(min(SAMPLE_BLOCK, n - start), d, index + 1, torch.float32)
            moments.update(block, keys=[""] * len(block))
        gathered = time.perf_counter() - begun
        G, c = torch.from_numpy(moments.covariance()), torch.from_numpy(moments.centre)
        norm = min(seconds(lambda G=G, c=c: cov_norm(u, G, c, SCALE)) for _ in range(5))
        kl = None
        if n <= kl_limit:
            sample = unit(n, d, 1, torch.float32)
            kl = seconds(lambda sample=sample: gain_sums(u, sample, SCALE))
        found.append({"n": n, "queries": queries, "d": d, "norm": norm, "kl": kl, "statistics_once": gathered})
    return found


def show(value: Any, digits: int) -> str:
    """A cell."""
    return "-" if value is None else f"{value:.{digits}f}" if isinstance(value, float) else f"{value:,}"


def table(title: str, rows: list[dict[str, Any]], columns: dict[str, tuple[str, int]]) -> str:
    """Markdown; `columns` gives heading and digits of each key."""
    lines = [
        f"\n### {title}\n",
        "| " + " | ".join(head for head, _ in columns.values()) + " |",
        "|---" * len(columns) + "|",
    ]
    for row in rows:
        cells = [
            row[key] if isinstance(row[key], str) else show(row[key], digits) for key, (_, digits) in columns.items()
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]]) -> str:
    """Seconds against the sample's size as SVG, both axes logarithmic: the norm is flat, kl grows with N."""
    points = {
        name: [(row["n"], row[name]) for row in rows if row[name]] for name in ("norm", "kl")
    }  # fmt: skip
    every = [y for line in points.values() for _, y in line]
    low, high = math.floor(math.log10(min(every))), math.ceil(math.log10(max(every)))
    left, right = math.log10(rows[0]["n"]), math.log10(rows[-1]["n"])

    def x(n: float) -> float:
        return 70 + 430 * (math.log10(n) - left) / (right - left)

    def y(seconds: float) -> float:
        return 270 - 240 * (math.log10(seconds) - low) / (high - low)

    out = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 330" font-family="sans-serif" font-size="13">',
        "<title>Seconds to score, against the size of the sample</title>",
        '<rect width="640" height="330" fill="#fff"/>',
    ]
    for power in range(low, high + 1):
        out.append(f'<path d="M70 {y(10**power):.1f}H500" stroke="#ddd"/>')
        out.append(f'<text x="62" y="{y(10**power) + 4:.1f}" text-anchor="end" fill="#555">{10**power:g} s</text>')
    for row in rows:
        out.append(f'<text x="{x(row["n"]):.1f}" y="292" text-anchor="middle" fill="#555">{row["n"]:,}</text>')
    out.append('<text x="285" y="318" text-anchor="middle" fill="#555">rows of the sample, N</text>')
    words = {"norm": ("cov_norm", "#0a6b5e"), "kl": ("kl", "#a84a00")}
    for name, line in points.items():
        label, colour = words[name]
        path = " L".join(f"{x(n):.1f} {y(value):.1f}" for n, value in line)
        out.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        out += [f'<circle cx="{x(n):.1f}" cy="{y(value):.1f}" r="4" fill="{colour}"/>' for n, value in line]
        end = line[-1]
        shown = f"{label}, {end[1]:.3g} s"
        out.append(f'<text x="{x(end[0]) + 10:.1f}" y="{y(end[1]) + 5:.1f}" fill="{colour}">{shown}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--d", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, nargs="*", default=[2048, 4096, 8192, 16384])
    parser.add_argument("--sample", type=int, nargs="*", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--kl-limit", type=int, default=1_000_000, help="largest sample for which kl is timed")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--plot", type=Path, default=None, help="SVG of the cost against the size of the sample")
    parser.add_argument("--child", nargs=3, default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, side, d = arguments.child
        print(json.dumps(memory_child(kind, int(side), int(d))))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, best of {arguments.rounds} rounds")
    found = {
        "norm": norm_rows(arguments.rows, arguments.d, arguments.rounds),
        "memory": memory_rows(arguments.side, 256),
        "sample": sample_rows(arguments.sample, arguments.queries, arguments.d, arguments.kl_limit),
        "threads": torch.get_num_threads(),
    }
    print(table("The norm against the matrix product it contains", found["norm"], {
        "rows": ("rows", 0), "d": ("d", 0), "dtype": ("dtype", 0), "bare": ("bare product, s", 2),
        "cov_norm": ("cov_norm, s", 2), "ratio": ("ratio", 3),
    }))  # fmt: skip
    print(table("kl at B = N: peak memory above the inputs", found["memory"], {
        "side": ("B = N", 0), "tiled_mib": ("tiled, MiB", 0), "dense_mib": ("dense, MiB", 0),
        "tiled_seconds": ("tiled, s", 2), "dense_seconds": ("dense, s", 2),
    }))  # fmt: skip
    print(table("Cost against the size of the sample", found["sample"], {
        "n": ("N", 0), "queries": ("queries", 0), "norm": ("norm, s", 4), "kl": ("kl, s", 3),
        "statistics_once": ("statistics, once, s", 2),
    }))  # fmt: skip
    if arguments.plot:
        arguments.plot.write_text(plot(found["sample"]), encoding="utf-8")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
