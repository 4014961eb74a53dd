"""RESTOR: the benchmark tells forgetting the false from getting the true back, in three regimes.

Lab: 60 elements learnt, 12 of them overwritten with false values (k unrelated true statements beside each false one), then
unlearned. Forgetting alone takes the false values and restores nothing; going back along the corruption restores all; a method
with a retain term lies between. Rate and steps of the unlearning are the specification's steps at the corruption's rate.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from efface.audit.attacks.restored_answers import judged
from efface.audit.metrics.restored import LEAST_DAMAGE, TAKEN, Judged, by_entity, forgotten, known, restoration
from efface.errors import CheckFailed
from efface.lab import unlearn
from efface.lab.corrupted import BATCH, Corrupted, corrupted
from efface.proofs.proof import Check, Proof
from efface.subjects import CausalLM

SEEDS = (0, 1, 2)
STEPS: dict[str, Any] = {
    "learning_rate": 5e-4, "batch_size": BATCH, "warmup_ratio": 0.0, "weight_decay": 0.0, "schedule": "constant",
}  # fmt: skip
BACK = 0.9
"""Share of the way back from the corrupted to the clean weights, the metric's upper end."""

NONE, ALL = 0.1, 0.95
"""False values are gone at or below; true values are back above (specification)."""

RUNS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "ga": ("gradient-ascent", 40, {}),
    "npo": ("npo", 40, {"retain_term": "none"}),
    "npo with retain term": ("npo", 80, {}),
    "retain set only": ("finetune", 80, {}),
}
"""Name -> method, steps, further settings."""


@contextlib.contextmanager
def reversed_way(model: CausalLM, clean: CausalLM, share: float) -> Iterator[CausalLM]:
    """theta_corr + share (theta_clean - theta_corr); the former bits come back."""
    live, goal = model.weights(), clean.weights()
    before = {name: tensor.detach().clone() for name, tensor in live.items()}
    try:
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.add_(share * (goal[name] - tensor))
        model.changed()
        yield model
    finally:
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.copy_(before[name])
        model.changed()


def seen(model: CausalLM, world: Corrupted) -> dict[str, Judged]:
    """Answers about the corrupted and the untouched elements."""
    return {
        "facts": judged(model, world.facts, others=world.others, max_new_tokens=8),
        "others": judged(model, world.others, others=world.facts, max_new_tokens=8),
    }


def figures(own: dict[str, Judged], corrupt: dict[str, Judged], clean: dict[str, Judged]) -> dict[str, float]:
    """True, false and untouched accuracy, restoration and forgetting of one model."""
    facts = known(own["facts"], clean["facts"])
    return {
        "true": float(by_entity(facts).mean()), "false": float(by_entity(facts, "false").mean()),
        "others": float(by_entity(own["others"]).mean()),
        "restoration": restoration(own["facts"], corrupt["facts"], clean["facts"]).value,
        "forgotten": forgotten(own["facts"], corrupt["facts"], clean["facts"]),
    }  # fmt: skip


def states(
    seed: int, unrelated: int, extra: dict[str, tuple[str, int, dict[str, Any]]] | None = None
) -> dict[str, dict[str, float]]:
    """Every model of one seed.

    Raises:
        CheckFailed: the corruption did not take.
    """
    world = corrupted(seed, unrelated=unrelated)
    clean, corrupt = seen(world.clean, world), seen(world.corrupted, world)
    found = {"corrupted": figures(corrupt, corrupt, clean), "clean": figures(clean, corrupt, clean)}
    if found["clean"]["true"] - found["corrupted"]["true"] < TAKEN:
        raise CheckFailed(f"the corruption of seed {seed} took less than {TAKEN} of the true answers")
    for name, (method, steps, values) in {**RUNS, **(extra or {})}.items():
        anchor = world.request.retain if method == "finetune" else world.request.forget
        assert anchor is not None
        settings = {**STEPS, "epochs": steps * BATCH / len(anchor), "seed": seed, **values}
        with unlearn.forgotten(method, world.corrupted, world.request, **settings) as edited:
            found[name] = figures(seen(edited, world), corrupt, clean)
    with reversed_way(world.corrupted, world.clean, BACK) as walked:
        found["way back"] = figures(seen(walked, world), corrupt, clean)
    return found


def checks() -> list[Check]:
    """k = 0 is judged, each figure the worst of the seeds; k = 2 is reported, seed 0."""
    runs = [states(seed, 0) for seed in SEEDS]
    mixed = states(0, 2, {"task vector, alpha 4": ("task-vector", 40, {"alpha": 4.0})})

    def rise(name: str, over: str, key: str = "true") -> list[float]:
        return [run[name][key] - run[over][key] for run in runs]

    alone = [
        Check(name=f"{name} on the documents alone: false values answered (baseline: the corrupted model)",
              figure=max(run[name]["false"] for run in runs), relation="<=", threshold=NONE,
              baseline=min(run["corrupted"]["false"] for run in runs), seeds=SEEDS) for name in ("ga", "npo")
    ] + [
        Check(name=f"{name} on the documents alone: rise of the true values over the corrupted model",
              figure=max(rise(name, "corrupted")), relation="<=", threshold=0.0, seeds=SEEDS) for name in ("ga", "npo")
    ]  # fmt: skip
    found = [
        Check(name="way back along the corruption: true values answered (baseline: the corrupted model)",
              figure=min(run["way back"]["true"] for run in runs), relation=">", threshold=ALL,
              baseline=max(run["corrupted"]["true"] for run in runs), seeds=SEEDS),
        *alone,
        Check(name="npo with retain term: true values above npo alone", figure=min(rise("npo with retain term", "npo")),
              relation=">", threshold=0.0, seeds=SEEDS),
        Check(name="npo with retain term: true values below the way back", figure=max(rise("npo with retain term", "way back")),
              relation="<", threshold=0.0, seeds=SEEDS),
        Check(name="least damage: true values of the clean minus the corrupted model", figure=min(rise("clean", "corrupted")),
              relation=">=", threshold=LEAST_DAMAGE, seeds=SEEDS),
    ]  # fmt: skip
    for title, part in (("k=0, mean of the seeds", runs), ("k=2, seed 0", [mixed])):
        for name in part[0]:
            mean = {key: sum(run[name][key] for run in part) / len(part) for key in part[0][name]}
            found.append(Check(
                name=f"{title}: {name}, true values answered (false {mean['false']:.2f}, untouched {mean['others']:.2f}, "
                f"restoration {mean['restoration']:.2f}, forgotten {mean['forgotten']:.2f})",
                figure=mean["true"], relation="reported", seeds=SEEDS if part is runs else (0,),
            ))  # fmt: skip
    return found


PROOF = Proof(
    system="restor",
    claim="Unlearning false documents can take the false facts away without bringing the true ones back; the benchmark tells "
    "the two apart",
    checks=checks,
    quick=False,
    note="Three regimes are claimed and nothing else: tiny models do not show NPO beating gradient ascent without a retain term. "
    "Training on the retain set alone is a strong baseline and is reported. About 0 means at most 0.1.",
)
