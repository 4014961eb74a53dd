"""Saliency masks of ten densities: one selection for all of them against two full argsorts a threshold, and bytes on disk.

The published code (generate_mask.py of Unlearn-Saliency) concatenates all scores and, for each of its thresholds 0.1 to 1.0,
takes `argsort` of the scores, `argsort` of that for the ranks, and stores a float mask a weight. Three tables, measured side
by side in one run on one machine, on random scores cut up as a network's tensors are:
  time     seconds for all masks: `WeightMask.several` against the argsorts, and the share of the two argsorts in theirs
  disk     bytes of the ten files: packed bits against float32 masks
  same     entries in which the masks of both sides differ; none but at equal scores

    python benchmarks/mask_selection.py [--weights 1000000 11000000] [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from efface.train.weight_mask import WeightMask

DENSITIES = tuple(i / 10 for i in range(1, 11))
GOAL_TIME, GOAL_DISK = 10.0, 32.0


def scores_of(weights: int, seed: int) -> dict[str, Tensor]:
    """About as many scores as asked for in tensors from a bias to a large matrix; |gradients| of many sizes."""
    generator = torch.Generator().manual_seed(seed)
    side = max(8, int((weights / 12) ** 0.5))
    shapes = [(side, side)] * 11 + [(side,)] * 11
    rest = weights - sum(side * side + side for _ in range(11))
    found = {}
    for i, shape in enumerate([*shapes, (max(1, rest),)]):
        value = torch.randn(shape, generator=generator)
        found[f"layer{i}.weight"] = (value * 10.0 ** -(i % 5)).abs()
    return found


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Wall-clock seconds of one call, and what it gave."""
    start = time.perf_counter()
    value = work()
    return time.perf_counter() - start, value


def ours(scores: dict[str, Tensor]) -> list[WeightMask]:
    """All masks from one selection."""
    return WeightMask.several(scores, DENSITIES)


def argsorts(scores: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Two argsorts a threshold, and float masks."""
    found = []
    for density in DENSITIES:
        flat = -torch.cat([score.flatten() for score in scores.values()])
        count = int(len(flat) * density)
        ranks = torch.argsort(torch.argsort(flat))
        masks, start = {}, 0
        for name, score in scores.items():
            part = torch.zeros_like(ranks[start : start + score.numel()])
            part[ranks[start : start + score.numel()] < count] = 1
            masks[name] = part.float().reshape(score.shape)
            start += score.numel()
        found.append(masks)
    return found


def measure(weights: int, rounds: int) -> dict[str, Any]:
    """One row: the best of the rounds, neither side always first."""
    scores = scores_of(weights, 0)
    total = sum(score.numel() for score in scores.values())
    times: dict[str, list[float]] = {"ours": [], "argsorts": []}
    for turn in range(rounds):
        jobs: list[tuple[str, Callable[[dict[str, Tensor]], Any]]] = [("ours", ours), ("argsorts", argsorts)]
        for name, work in jobs if turn % 2 else reversed(jobs):
            spent, found = seconds(lambda work=work: work(scores))
            times[name].append(spent)
            if turn == rounds - 1 and name == "ours":
                packed = found
            elif turn == rounds - 1:
                floats = found
    differ = sum(
        int((mask.masks[name] != (other[name] > 0)).sum())
        for mask, other in zip(packed, floats, strict=True) for name in scores
    )  # fmt: skip
    small, large = sizes(packed, floats)
    best = {name: min(values) for name, values in times.items()}
    return {
        "weights": total, **best, "faster": best["argsorts"] / best["ours"],
        "worst_faster": min(a / b for a, b in zip(times["argsorts"], times["ours"], strict=True)),
        "differ": differ, "packed_bytes": small, "float_bytes": large, "smaller": large / small,
        "all_ours": times["ours"], "all_argsorts": times["argsorts"],
    }  # fmt: skip


def sizes(packed: list[WeightMask], floats: list[dict[str, Tensor]]) -> tuple[int, int]:
    """Bytes of all files: packed, and as float32."""
    small = large = 0
    with tempfile.TemporaryDirectory(prefix="efface-masks-") as folder:
        for mask, other in zip(packed, floats, strict=True):
            small += mask.save(Path(folder) / "packed.safetensors").stat().st_size
            save_file({name: tensor.contiguous() for name, tensor in other.items()}, Path(folder) / "float.safetensors")
            large += (Path(folder) / "float.safetensors").stat().st_size
    return small, large


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, nargs="*", default=[1_000_000, 11_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, best of {arguments.rounds} rounds")
    rows = [measure(weights, arguments.rounds) for weights in arguments.weights]
    print("\n| weights | one selection, s | argsorts, s | times faster (goal 10) | worst round | packed, MB | float32, MB "
          "| times smaller (goal 32) | masks differ in |\n" + "|---" * 9 + "|")  # fmt: skip
    for row in rows:
        cells = [
            f"{row['weights']:,}", f"{row['ours']:.2f}", f"{row['argsorts']:.2f}", f"{row['faster']:.1f}",
            f"{row['worst_faster']:.1f}", f"{row['packed_bytes'] / 1e6:.2f}", f"{row['float_bytes'] / 1e6:.1f}",
            f"{row['smaller']:.2f}", f"{row['differ']}",
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |")
    missed = [row["weights"] for row in rows if row["faster"] < GOAL_TIME or row["smaller"] < GOAL_DISK]
    print(f"\ngoals {'met at every size' if not missed else f'not met at {missed} weights'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
