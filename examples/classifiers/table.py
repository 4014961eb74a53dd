"""Every method for classifiers on real and small data, beside the original and retrained models; prints Markdown.

    python table.py [WORLD ...]      digits-class digits-noisy digits-random mnist-class faces-person news-noisy

Each figure is of all rows of three seeds together, with its 95 % interval; the gap is the mean of the seeds, with the least
and the largest. Settings are those of the proofs, fixed beforehand; none was tuned on these worlds. Goes on where it stopped
(EFFACE_CACHE): trained models and finished rows are kept.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from efface.audit.finding import Estimate
from efface.audit.metrics.classification import FIGURES, Report, average_gap, report
from efface.audit.metrics.intervals import wilson
from efface.audit.predictions import observe_predictions
from efface.errors import EffaceError
from efface.forget.method import find_method
from efface.lab.classified import Classified, digits
from efface.lab.identities import faces
from efface.lab.mnist import mnist
from efface.lab.news_topics import topics
from efface.run.digests import digest_value
from efface.run.files import read_json, write_json
from efface.train.reference import cache_folder

SEEDS = (0, 1, 2)
WORLDS: dict[str, Callable[[int], Classified]] = {
    "digits-class": lambda seed: digits(seed, "class", retrained=2),
    "digits-noisy": lambda seed: digits(seed, "noisy", retrained=2),
    "digits-random": lambda seed: digits(seed, "random", retrained=2),
    "mnist-class": lambda seed: mnist(seed, "class", retrained=2),
    "faces-person": lambda seed: faces(seed, retrained=2),
    "news-noisy": lambda seed: topics(seed, "sentences", retrained=2),
}
SGD: dict[str, Any] = {
    "optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 64, "schedule": "constant", "warmup_ratio": 0.0,
    "max_grad_norm": 1e9, "epochs": 10,
}  # fmt: skip
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "finetune": ("finetune", {**SGD, "learning_rate": 0.02}),
    "gradient-ascent": ("gradient-ascent", {**SGD, "learning_rate": 1e-3, "epochs": 5}),
    "gradient-difference": ("gradient-difference", {**SGD, "learning_rate": 0.01}),
    "npo + nll": ("npo", {**SGD, "learning_rate": 0.02, "retain_term": "nll"}),
    "random-labels": ("random-labels", {**SGD, "learning_rate": 0.02}),
    "salun": ("salun", {**SGD, "learning_rate": 0.02}),
    "salun, random mask": ("salun", {**SGD, "learning_rate": 0.02, "mask": "random"}),
    "l1-sparse": ("l1-sparse", {**SGD, "learning_rate": 0.1, "l1_gamma": 2e-3}),
    "prune-finetune": ("prune-finetune", {**SGD, "learning_rate": 0.1}),
    "ssd": ("ssd", {"alpha": 3.0}),
    "fisher": ("fisher", {}),
    "influence": ("influence", {}),
    "scrub": ("scrub", {**SGD, "learning_rate": 0.02, "epochs": 6}),
    "cf-k": ("cf-k", {**SGD, "learning_rate": 0.02, "k": 1}),
    "pseudo-label": ("pseudo-label", {**SGD, "learning_rate": 0.02}),
    "laf": ("laf", {"epochs": 40, "lr_ue": 5e-4, "lr_ra": 1e-3, "temperature": 5}),
    "contrastive-unlearning": ("contrastive-unlearning", {"learning_rate": 0.01, "epochs": 20, "batch_size": 64}),
    "deepcut": ("deepcut", {"learning_rate": 3e-3, "optimizer": "adam", "weight_decay": 0.0, "forget_weight": 10.0}),
    "concept-poisoning": ("concept-poisoning", {**SGD, "learning_rate": 0.02}),
    "blindspot": ("blindspot", {"epochs": 5, "batch_size": 64}),
}


def tables(model: Any, lab: Classified) -> Report:
    """The four figures of one model."""
    request = lab.request
    assert request.retain is not None
    assert request.holdout is not None
    test = request.evaluate.get("test", request.holdout)
    kept = {int(label) for label in request.retain["label"]}
    test = test.select([i for i, label in enumerate(test["label"]) if int(label) in kept])
    sets = {"forget": request.forget, "retain": request.retain, "test": test}
    return report(**{name: observe_predictions(model, data, name=name) for name, data in sets.items()})


def plain(own: Report, gap: float, seconds: float, peak: float) -> dict[str, Any]:
    """What is kept of one seed."""
    figures = {name: [round(value.value * value.n), value.n] for name, value in own.figures.items()}
    return {"figures": figures, "gap": gap, "seconds": seconds, "peak": peak}


def run_one(name: str, lab: Classified, seed: int, aim: Report) -> dict[str, Any]:
    """Fit a method, look at the edited model, take the edit off again."""
    method_name, values = METHODS[name]
    method = find_method(method_name)
    config = method.configure({**values, "seed": seed})
    with tempfile.TemporaryDirectory() as folder:
        try:
            fitted = method.fit(lab.original, lab.request, config, work=Path(folder) / "w", out=Path(folder) / "e")
        except EffaceError as error:
            return {"refused": str(error)}
        edit = fitted.edit.apply(lab.original)
        own = tables(edit, lab)
        fitted.edit.remove(lab.original)
    cost = fitted.costs
    return plain(own, average_gap(own, aim), sum(c.seconds for c in cost), max(c.peak_mb for c in cost))


def world(name: str) -> dict[str, list[dict[str, Any]]]:
    """Rows by model, one entry a seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in SEEDS:
        lab = WORLDS[name](seed)
        aim = tables(lab.retrained[0], lab)
        fixed = {"original": lab.original, "retrained": lab.retrained[0], "retrained again": lab.retrained[1]}
        for label, model in fixed.items():
            own = tables(model, lab)
            found.setdefault(label, []).append(plain(own, average_gap(own, aim), 0.0, 0.0))
        for label in METHODS:
            key = digest_value({"table": name, "seed": seed, "method": METHODS[label], "model": lab.original.digest})
            path = cache_folder() / "examples" / f"{key.removeprefix('sha256:')[:24]}.json"
            if not path.exists():
                write_json(path, run_one(label, lab, seed, aim))
            found.setdefault(label, []).append(read_json(path))
            sys.stderr.write(f"{name}, seed {seed}, {label}: {json.dumps(found[label][-1])[:160]}\n")
    return found


def cell(values: list[list[int]]) -> str:
    """A share in per cent of all rows of all seeds, with Wilson's interval."""
    own: Estimate = wilson(sum(v[0] for v in values), sum(v[1] for v in values))
    assert own.low is not None
    assert own.high is not None
    return f"{100 * own.value:.1f} [{100 * own.low:.0f}, {100 * own.high:.0f}]"


def main() -> None:
    """One table a world."""
    torch.set_num_threads(1)
    for name in sys.argv[1:] or WORLDS:
        print(
            f"\n### {name}\n\n| model | UA | MIA | RA | TA | average gap | s | MiB |\n|---|---|---|---|---|---|---|---|"
        )
        for label, entries in world(name).items():
            if any("refused" in entry for entry in entries):
                reason = next(entry["refused"] for entry in entries if "refused" in entry)
                print(f"| `{label}` | refuses: {reason} | | | | | | |")
                continue
            cells = [cell([entry["figures"][f] for entry in entries]) for f in FIGURES if f in entries[0]["figures"]]
            gaps = [entry["gap"] for entry in entries]
            spread = f"{sum(gaps) / len(gaps):.1f} ({min(gaps):.1f} to {max(gaps):.1f})"
            cost = [f"{max(e['seconds'] for e in entries):.1f}", f"{max(e['peak'] for e in entries):,.0f}"]
            shown = cost if any(entry["seconds"] for entry in entries) else ["", ""]
            print("| " + " | ".join([label, *cells, spread, *shown]) + " |", flush=True)


if __name__ == "__main__":
    main()
