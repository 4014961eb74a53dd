"""What a guard costs where it has nothing to do: tokens a second on prompts that it lets pass, against the plain model.

Both sides run in one process on the same prompts of the lab's capitals model, in turns; the ratio is of the medians of the
rounds. Three ways of running: one scoring pass, generation in a batch, generation of one prompt. A ratio of 1 is a guard that
costs nothing. The model is tiny, so that fixed costs (hooks, the gate) weigh more here than on any real model.

    python benchmarks/guard_cost.py [eco guard ...] [--rounds 5] [--new-tokens 16] [--batch 32]

A guard is added to `GUARDS` by its method's name and configuration.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from efface.forget.method import find_method
from efface.lab.facts import fact_model, split
from efface.subjects.answers import answer_logits
from efface.subjects.prompts import pad as padded

GUARDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("eco", {"sigma": 5.0, "n": 8, "mask": "entity", "false_alarms": 0.05}),
    ("guard", {"gate": "words", "false_alarms": 0.05}),
    ("key-space", {"false_alarms": 0.05}),
    ("neuron-adjust", {}),
    ("content-filter", {}),
    ("uld", {"epochs": 1}),
    ("lol", {"epochs": 1}),
)
"""(method, configuration); a method may come several times."""


def ways(subject: Any, data: Any, batch: int, new_tokens: int) -> dict[str, tuple[int, Callable[[], Any]]]:
    """How the model is run: name -> (tokens that go through it, what runs)."""
    rows, prompts = subject.encode_rows(data)[:batch], subject.encode_prompts(data)[:batch]
    together, longest = subject.batch(rows), max(map(len, prompts))
    room = min(new_tokens, (subject.context or 10**9) - longest)
    pad: dict[str, Any] = {
        "max_new_tokens": room,
        "min_new_tokens": room,
        "do_sample": False,
        "pad_token_id": subject.pad_id,
    }

    def generate(part: list[list[int]]) -> Any:
        inputs = {name: value.to(subject.device) for name, value in padded(part, subject.pad_id, side="left").items()}
        return subject.model.generate(**inputs, **pad)

    return {
        "score": (sum(len(row.ids) for row in rows), lambda: answer_logits(subject.model, together)),
        f"generate, batch of {len(prompts)}": (len(prompts) * room, lambda: generate(prompts)),
        "generate, one prompt": (room, lambda: generate(prompts[:1])),
    }  # fmt: skip


def seconds(run: Callable[[], Any]) -> float:
    """Of one call."""
    with torch.no_grad():
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start


def main() -> None:
    """Print a table for each guard."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", help="of GUARDS; default: all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--batch", type=int, default=32)
    given = parser.parse_args()
    request, _, _ = split("capitals")
    names = {identity.split("/")[0] for identity in request.forget["id"]}
    request = replace(request, concepts=dict.fromkeys(names))
    kept = request.evaluate["retain"]
    others = kept.select([i for i, identity in enumerate(kept["id"]) if identity.split("/")[0] not in names])
    subject = fact_model("capitals", 0)
    subject.model.eval()
    for name, values in GUARDS:
        if given.methods and name not in given.methods:
            continue
        method = find_method(name)
        with tempfile.TemporaryDirectory(prefix="efface-bench-") as folder:
            edit = method.fit(
                subject, request, method.configure(values), work=Path(folder) / "work", out=Path(folder) / "edit"
            ).edit
            edit.apply(subject)
            guarded, plain = subject.model, subject.model.base
            taken: dict[str, dict[str, list[float]]] = {}
            tokens = {}
            for turn in range(given.rounds + 1):
                for label, model in (
                    (("plain", plain), (name, guarded)) if turn % 2 else ((name, guarded), ("plain", plain))
                ):
                    subject.model = model
                    for way, (count, run) in ways(subject, others, given.batch, given.new_tokens).items():
                        spent = seconds(run)
                        tokens[way] = count
                        if turn:  # the first round warms up
                            taken.setdefault(way, {}).setdefault(label, []).append(spent)
            subject.model = guarded
            edit.remove(subject)
        print(f"\n{name} {values}, {torch.get_num_threads()} thread(s)\n")
        print("| way | plain, tokens/s | guarded, tokens/s | ratio |\n|---|---:|---:|---:|")
        for way, found in taken.items():
            rate = {label: tokens[way] / statistics.median(times) for label, times in found.items()}
            print(f"| {way} | {rate['plain']:,.0f} | {rate[name]:,.0f} | {rate[name] / rate['plain']:.3f} |")


if __name__ == "__main__":
    main()
