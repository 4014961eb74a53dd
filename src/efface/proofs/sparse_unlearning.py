"""Sparse unlearning: an l1 penalty while fine-tuning, or pruning before it, forgets what plain fine-tuning does not.

On the digits: a class, and rows whose labels were wrong. Fine-tuning, l1-sparse and pruned fine-tuning take the same 10 epochs
of SGD at 0.1, momentum 0.9, decay 5e-4; batches of 128, for which fine-tuning has the specification's average gap on seed 0
(40 and 4; with 64 it is 31 and 2.4, with 256 43 and 9). The sparse models are, as in the paper, trained on all rows under the
mask before they forget (20 epochs, with which the share of wrong labels that the 90 % sparse model does not fit is nearest to
the specification's on seed 0); what pruning alone forgets stands beside. alpha of the influence step is, for each solver, the
best of a grid on seed 0, which is chosen while the proof runs and judged on every seed as it comes; the grids lie about the
best decade there. What the best alpha of each seed would give, which takes the retrained model to find, stands beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import concatenate_datasets

from efface.audit.metrics.classification import FIGURES, Report, average_gap, report
from efface.audit.predictions import predictions_of
from efface.data.request import Request
from efface.lab.classified import TASKS, Classified, Task, digits
from efface.lab.unlearn import forgotten
from efface.proofs.proof import Check, Proof

SEEDS = (0, 1, 2)
TASK_NAMES = TASKS[:2]
"""A class, and wrong labels."""

TRAINING: dict[str, Any] = {
    "learning_rate": 0.1, "epochs": 10, "batch_size": 128, "optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4,
    "schedule": "constant", "warmup_ratio": 0.0, "max_grad_norm": 1e9,
}  # fmt: skip
REFIT = 20
WEAK, STRONG = 5e-4, 2e-3
"""gamma: the published one, and the one that is judged."""

SPARSE = (0.9, 0.95)
EXACT, PUBLISHED = "influence, exact solve", "influence, published recursion"
INFLUENCE: dict[str, dict[str, Any]] = {EXACT: {"solver": "exact", "damping": 1e-3}, PUBLISHED: {"solver": "repo"}}
ALPHAS = {EXACT: (0.3, 0.35, 0.4, 0.45, 0.5), PUBLISHED: (20.0, 25.0, 30.0, 35.0, 40.0)}
"""Of the influence step; which one is judged is decided on the first seed."""

Table = dict[str, Report]
"""By model: UA, MIA, RA, TA."""


def scores(model: Any, request: Request, seed: int) -> Report:
    """UA, MIA, RA and TA of a classifier."""
    sets = {"forget": request.forget, "retain": request.retain, "test": request.holdout}
    return report(*(predictions_of(model, data, name=name) for name, data in sets.items()), seed=seed)


def before(world: Classified, seed: int) -> Table:
    """The rows that every table begins with; the second retrained model is the noise floor."""
    models = {
        "retrained": world.retrained[0],
        "retrained, another seed": world.retrained[1],
        "original": world.original,
    }
    return {name: scores(model, world.request, seed) for name, model in models.items()}


def figures(task: Task, seed: int) -> Table:
    """The table of one task and seed."""
    world = digits(seed, task, retrained=2)
    request = world.request
    original: Any = world.original
    assert request.retain is not None
    assert request.holdout is not None
    found = before(world, seed)
    runs: dict[str, tuple[str, dict[str, Any]]] = {
        "fine-tuning": ("finetune", {}), f"l1-sparse, gamma {WEAK:g}": ("l1-sparse", {"l1_gamma": WEAK}),
        f"l1-sparse, gamma {STRONG:g}": ("l1-sparse", {"l1_gamma": STRONG}),
        f"{SPARSE[-1]:.0%} pruned, no refit, fine-tuned": ("prune-finetune", {"sparsity": SPARSE[-1]}),
    }  # fmt: skip
    for name, (method, values) in runs.items():
        with forgotten(method, original, request, **TRAINING, **values, seed=seed) as edited:
            found[name] = scores(edited, request, seed)
    everything = Request(forget=request.holdout, retain=concatenate_datasets([request.forget, request.retain]))
    for sparsity in SPARSE:
        values = {**TRAINING, "sparsity": sparsity, "seed": seed}
        with forgotten("prune-finetune", original, everything, **{**values, "epochs": REFIT}) as sparse:
            found[f"{sparsity:.0%} pruned, refitted on all rows"] = scores(sparse, request, seed)
        with forgotten("prune-finetune", original, request, **values, refit_epochs=REFIT) as edited:
            found[f"{sparsity:.0%} pruned, refitted, fine-tuned"] = scores(edited, request, seed)
    return found


def influences(seed: int) -> dict[str, dict[float, Report]]:
    """Of the class task, by solver and alpha."""
    world = digits(seed, "class", retrained=2)
    original: Any = world.original
    found: dict[str, dict[float, Report]] = {}
    for name, values in INFLUENCE.items():
        found[name] = {}
        for alpha in ALPHAS[name]:
            with forgotten("influence", original, world.request, **values, alpha=alpha, seed=seed) as edited:
                found[name][alpha] = scores(edited, world.request, seed)
    return found


def gap(table: Table, name: str) -> float:
    """Average gap to the retrained model, points."""
    return average_gap(table[name], table["retrained"])


def reported(tables: Mapping[Task, Sequence[Table]], seeds: tuple[int, ...]) -> list[Check]:
    """The table of every task: means over the seeds in per cent, the retrained model's beside them; no thresholds."""
    found = []
    for task, each in tables.items():
        for name in (row for row in each[0] if row != "retrained"):
            for figure in FIGURES:
                mean, aim = (
                    100 * float(np.mean([table[row][figure] for table in each])) for row in (name, "retrained")
                )
                found.append(Check(name=f"{task}, {name}: {figure}, % (baseline: retrained)", figure=mean, relation="reported",
                                   baseline=aim, seeds=seeds))  # fmt: skip
            gaps = [gap(table, name) for table in each]
            found.append(Check(name=f"{task}, {name}: average gap, points (baseline: the worst seed's)", relation="reported",
                               figure=float(np.mean(gaps)), baseline=max(gaps), seeds=seeds))  # fmt: skip
    return found


def checks() -> list[Check]:
    """The worst of seeds and tasks, then the tables."""
    tables = {task: [figures(task, seed) for seed in SEEDS] for task in TASK_NAMES}
    every = [table for each in tables.values() for table in each]
    strong, weak = f"l1-sparse, gamma {STRONG:g}", f"l1-sparse, gamma {WEAK:g}"
    sparse = f"{SPARSE[-1]:.0%} pruned, refitted, fine-tuned"

    def above(name: str) -> float:
        return min(100 * (table[name]["UA"] - table["fine-tuning"]["UA"]) for table in every)

    steps = [influences(seed) for seed in SEEDS]
    gaps = [
        {
            name: {alpha: average_gap(own, table["retrained"]) for alpha, own in each.items()}
            for name, each in step.items()
        }
        for table, step in zip(tables["class"], steps, strict=True)
    ]
    alpha = {name: min(each, key=each.__getitem__) for name, each in gaps[0].items()}
    for table, step in zip(tables["class"], steps, strict=True):
        table |= {name: each[alpha[name]] for name, each in step.items()}

    def scanned(name: str) -> float:
        return max(min(own[name].values()) for own in gaps)

    return [
        Check(name=f"UA of l1-sparse (gamma {STRONG:g}) minus fine-tuning's, points (baseline: gamma {WEAK:g})",
              figure=above(strong), relation=">=", threshold=10, baseline=above(weak), seeds=SEEDS),
        Check(name=f"RA of l1-sparse (gamma {STRONG:g}), % (baseline: fine-tuning)", relation=">=", threshold=98, seeds=SEEDS,
              figure=100 * min(table[strong]["RA"] for table in every),
              baseline=100 * min(table["fine-tuning"]["RA"] for table in every)),
        Check(name="UA of fine-tuning at 95 % sparsity minus the dense model's, points", figure=above(sparse), relation=">",
              threshold=0, baseline=above(f"{SPARSE[0]:.0%} pruned, refitted, fine-tuned"), seeds=SEEDS),
        Check(name=f"average gap of influence by the exact damped solve, class, points; alpha {alpha[EXACT]:g} "
              f"(baseline: the published recursion, {alpha[PUBLISHED]:g})",
              figure=max(gap(table, EXACT) for table in tables["class"]), relation="<", threshold=1,
              baseline=max(gap(table, PUBLISHED) for table in tables["class"]), seeds=SEEDS),
        Check(name="the same with the best alpha of the grid for each seed, which needs the retrained model", relation="reported",
              figure=scanned(EXACT), baseline=scanned(PUBLISHED), seeds=SEEDS),
        *reported(tables, SEEDS),
    ]  # fmt: skip


PROOF = Proof(
    system="sparse-unlearning",
    claim="fine-tuning on the rest forgets more with an l1 penalty, or at 95 % sparsity, than without; and influence needs the "
    "inverse that the published recursion does not compute",
    checks=checks,
    quick=False,
    note="A tiny network: part of what sparse models forget, they lose by pruning alone; that row stands beside. UA is no "
    "better for being higher; the retrained model's stands beside each figure.",
)
