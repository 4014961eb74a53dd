"""Mean squared gradients of single rows: many at once against one row at a time, in one run; prints the ratio.

At once: linear layers by sums of outer products, all other weights by vmap.

The one-row loop is what published code for Fisher information, influence and per-sample dampening does: a forward and a
backward pass for a batch of one row, and a sum of squares for every parameter. Both sides give the same numbers; the script
checks it. Rounds alternate between the two, so that a busy machine slows both.

    python benchmarks/sample_gradients.py [--rows 1258] [--rounds 5] [--numbers 134217728] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from efface.lab.classified import digit_rows, labelled
from efface.subjects.factory import FactoryForm
from efface.subjects.predictor import Predictor
from efface.train import gradient_stats
from efface.train.gradient_stats import answer_gradients

LABELS = tuple(str(i) for i in range(10))
NETWORKS: dict[str, FactoryForm] = {
    "MLP 64-128-64-10": FactoryForm(
        factory="efface.subjects.networks:mlp", arguments={"inputs": 64, "outputs": 10}, labels=LABELS
    ),
    "convolutions 16-32 on 8 x 8": FactoryForm(
        factory="efface.subjects.networks:conv", arguments={"channels": 1, "side": 8, "outputs": 10}, labels=LABELS
    ),
    "convolutions 8-16 on 8 x 8, 32 features": FactoryForm(
        factory="efface.subjects.networks:conv", labels=LABELS,
        arguments={"channels": 1, "side": 8, "outputs": 10, "widths": [8, 16], "features": 32},
    ),
}  # fmt: skip


def one_by_one(subject: Predictor, rows: list[Any]) -> dict[str, Tensor]:
    """A backward pass a row."""
    model = subject.model
    batches = [subject.batch([row]) for row in rows]
    found = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for batch in batches:
        model.zero_grad()
        cross_entropy(model(batch["inputs"]["x"]), batch["target"]).backward()  # type: ignore[index,call-overload]
        for name, p in model.named_parameters():
            if p.grad is not None:
                found[name] += p.grad.data.clone().pow(2)
    model.zero_grad()
    return {name: value / len(rows) for name, value in found.items()}


def at_once(subject: Predictor, rows: list[Any]) -> dict[str, Tensor]:
    """What dampening calls."""
    return answer_gradients(subject, rows, power=2, per="sample", weighting="equal", cache=False).tensors


def timed(work: Callable[[], dict[str, Tensor]]) -> tuple[float, dict[str, Tensor]]:
    """Seconds and result."""
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def main() -> None:
    """Time both sides in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1258, help="rows of the digits' training set")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--numbers", type=int, default=gradient_stats.SAMPLE_NUMBERS, help="gradients held at once")
    arguments = parser.parse_args()
    gradient_stats.SAMPLE_NUMBERS = arguments.numbers
    data = digit_rows(0)[0].select(range(arguments.rows))
    flat = torch.tensor(data["features"])
    pictures = labelled(flat.view(-1, 1, 8, 8).numpy(), data["label"], data["id"], LABELS)
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {platform.machine()}, {threads} threads, {arguments.rows} rows, best of "
          f"{arguments.rounds}, {arguments.numbers:,} numbers at once\n")  # fmt: skip
    print("| network | weights | one by one, s | at once, s | ratio | largest difference |\n|---|---|---|---|---|---|")
    entries = []
    for name, form in NETWORKS.items():
        torch.manual_seed(0)
        subject = Predictor(form.build().eval(), form=form)
        rows = subject.encode_rows(pictures if "conv" in form.factory else data)
        one_by_one(subject, rows[:8])
        at_once(subject, rows[:8])
        seconds: dict[str, list[float]] = {"slow": [], "fast": []}
        for _ in range(arguments.rounds):
            taken, slow = timed(lambda s=subject, r=rows: one_by_one(s, r))  # type: ignore[misc]
            seconds["slow"].append(taken)
            taken, fast = timed(lambda s=subject, r=rows: at_once(s, r))  # type: ignore[misc]
            seconds["fast"].append(taken)
        off = max(float((fast[key] - slow[key]).abs().max() / slow[key].abs().max()) for key in slow)
        assert off < 1e-4, "both sides must give the same numbers"
        a, b = (min(seconds[side]) for side in ("slow", "fast"))
        entries.append({"network": name, "weights": subject.n_parameters, "loop_s": a, "at_once_s": b, "ratio": a / b})
        print(f"| {name} | {subject.n_parameters:,} | {a:.3f} | {b:.3f} | {a / b:.1f} | {off:.0e} |", flush=True)
    if arguments.json:
        settings = {
            "rows": arguments.rows,
            "numbers": arguments.numbers,
            "threads": threads,
            "torch": torch.__version__,
        }
        arguments.json.write_text(
            json.dumps({"settings": settings, "rows": entries}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
