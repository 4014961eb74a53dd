"""A second deletion by dampening against the first, on one model and one training set: prints seconds and rows looked at.

The first request takes gradients of its forget set and of all data; what all data gave is cached, whatever the split, so that
a later request on the same model and data takes gradients of its forget set alone. `gradients` is the time in the two
importances, `whole` that of the fit: it has fixed parts besides (reading and hashing rows, the edit's own files).

    python benchmarks/second_deletion.py [--rows 1258] [--network mlp|conv] [--rounds 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

os.environ["EFFACE_CACHE"] = tempfile.mkdtemp(prefix="efface-bench-")

from efface.data.request import Request
from efface.forget.edits import ssd
from efface.forget.method import find_method
from efface.lab.classified import digit_rows, labelled
from efface.subjects.factory import FactoryForm
from efface.subjects.predictor import Predictor
from efface.train import gradient_stats

LABELS = tuple(str(i) for i in range(10))
ARGUMENTS: dict[str, dict[str, Any]] = {
    "mlp": {"inputs": 64, "outputs": 10},
    "conv": {"channels": 1, "side": 8, "outputs": 10},
}
SIZES = (10, 30, 100, 300)
"""Rows of a second request."""


class Watch:
    """Counts rows whose gradients are taken, and seconds in importances."""

    def __init__(self) -> None:
        self.rows, self.seconds = 0, 0.0
        inner, importance = gradient_stats.stacked, ssd.importance

        def stacked(subject: Any, rows: Sequence[Any]) -> Any:
            self.rows += len(rows)
            return inner(subject, rows)

        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            found = importance(*args)
            self.seconds += time.perf_counter() - start
            return found

        gradient_stats.stacked = stacked
        ssd.importance = timed  # type: ignore[assignment]


def once(subject: Predictor, request: Request, watch: Watch) -> dict[str, float]:
    """Rows looked at, seconds in importances and of the whole fit."""
    method = find_method("ssd")
    watch.rows, watch.seconds = 0, 0.0
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        method.fit(
            subject, request, method.configure({"alpha": 1.5}), work=Path(folder) / "work", out=Path(folder) / "edit"
        )
    whole = time.perf_counter() - start
    return {
        "forget": len(request.forget),
        "rows": watch.rows,
        "gradients": watch.seconds,
        "whole": whole,
    }


def main() -> None:
    """Time a first request and later ones of several sizes, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1258, help="rows of the digits' training set")
    parser.add_argument("--network", choices=sorted(ARGUMENTS), default="conv")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="ssd selects ", category=UserWarning)
    data = digit_rows(0)[0].select(range(arguments.rows))
    if arguments.network == "conv":
        pictures = torch.tensor(data["features"]).view(-1, 1, 8, 8).numpy()
        data = labelled(pictures, data["label"], data["id"], LABELS)
    form = FactoryForm(
        factory=f"efface.subjects.networks:{arguments.network}", arguments=ARGUMENTS[arguments.network], labels=LABELS
    )
    torch.manual_seed(0)
    subject = Predictor(form.build().eval(), form=form)
    watch = Watch()

    def request(rows: Sequence[int]) -> Request:
        gone = set(rows)
        return Request(data.select(sorted(gone)), data.select([i for i in range(len(data)) if i not in gone]))

    sizes = [size for size in SIZES if size < len(data) // 2]
    once(subject, request(range(sizes[0])), watch)  # warm
    runs: dict[str, list[dict[str, float]]] = {}
    for number in range(arguments.rounds):
        os.environ["EFFACE_CACHE"] = tempfile.mkdtemp(prefix="efface-bench-")
        first = range(number * 7, number * 7 + sizes[-2])
        runs.setdefault(f"first, {sizes[-2]} rows", []).append(once(subject, request(first), watch))
        for size in sizes:
            rows = range(len(data) - size - number, len(data) - number)
            runs.setdefault(f"second, {size} rows", []).append(once(subject, request(rows), watch))
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {platform.machine()}, {threads} threads; {arguments.network}, "
          f"{subject.n_parameters:,} weights, {len(data)} rows in all; median of {arguments.rounds}\n")  # fmt: skip
    print("| request | rows with gradients | gradients, s | whole, s | gradients: first / this | whole: first / this |")
    print("|---|---|---|---|---|---|")
    middle = {
        name: {key: statistics.median(run[key] for run in found) for key in found[0]} for name, found in runs.items()
    }
    start = next(iter(middle.values()))
    for name, found in middle.items():
        expected = found["forget"] + (len(data) if name.startswith("first") else 0)
        assert found["rows"] == expected, "a later request must look at its forget set alone"
        print(f"| {name} | {found['rows']:.0f} | {found['gradients']:.3f} | {found['whole']:.3f} | "
              f"{start['gradients'] / found['gradients']:.1f} | {start['whole'] / found['whole']:.1f} |")  # fmt: skip
    if arguments.json:
        settings = {"network": arguments.network, "rows": len(data), "threads": threads, "torch": torch.__version__}
        arguments.json.write_text(
            json.dumps({"settings": settings, "requests": middle}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
