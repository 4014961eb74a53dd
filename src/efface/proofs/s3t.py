"""S3T: deletions last as long as the closed form says, more orders last longer and serve better, and it is exact.

Parts of the specification: A, the simulator against E = m L H_{m min(B, L)}; B, digits in 4 shards of 4 slices with 1, 2
and 4 orders; C, what is served after a deletion against a run that never saw the slice; D, orders by matching.
"""

from __future__ import annotations

import numpy as np
import torch

from efface.lab.sliced_digits import (
    digit_plan,
    digit_rows,
    ensemble_accuracy,
    requests_until_failure,
    stage_logp,
    train_digits,
)
from efface.numerics.slice_orders import (
    expected_requests,
    matching_orders,
    rotations,
    simulate_failure,
    simulate_prefix,
)
from efface.proofs.proof import Check, Proof

SEEDS = (0, 1, 2)
SHARDS, SLICES, BUDGET = 4, 4, 4
RUNS = 200
"""Streams of requests a seed; no training, so more than the calibration's 20 cost nothing."""
AT = (5, 10, 20)
RATES = (0.4, 0.3, 0.2, 0.1)


def simulator_checks() -> list[Check]:
    """Part A: 2000 runs a seed, the mean over the seeds (at B = 1 the standard error of 2000 runs alone is 1.4 %)."""
    found = []
    for budget in range(1, 5):
        runs = [simulate_failure(3, rotations(4, budget), runs=2000, seed=seed) for seed in SEEDS]
        wanted = expected_requests(3, 4, budget)
        found.append(
            Check(name=f"A requests until failure, m=3, L=4, B={budget}: distance from {wanted:.2f}, relative",
                  figure=abs(float(np.mean(runs)) / wanted - 1), relation="<=", threshold=0.02, seeds=SEEDS)
        )  # fmt: skip
    return found


def digits_checks() -> list[Check]:
    """Parts B and C; every figure is the worst of the seeds.

    Stages do not depend on the budget, so those of B=4 hold the stages of B=1, and every budget meets the same requests.
    """
    longer: list[float] = []
    better: dict[int, list[float]] = {t: [] for t in AT}
    baseline: dict[int, list[float]] = {t: [] for t in AT}
    differing = compared = 0
    for seed in SEEDS:
        world = digit_rows(seed)
        plan = digit_plan(world, shards=SHARDS, slices=SLICES, budget=BUDGET, seed=seed)
        stages = train_digits(world, plan, seed=seed)
        logp = stage_logp(world, stages)
        rng = np.random.default_rng(seed)
        streams = [
            np.stack([rng.integers(0, SHARDS, 1000), rng.integers(0, SLICES, 1000)], axis=1) for _ in range(RUNS)
        ]
        lasts: dict[int, list[int]] = {}
        accuracy: dict[int, list[list[float]]] = {}
        for budget in (1, 2, 4):
            orders = [rotations(SLICES, budget)] * SHARDS
            played = [requests_until_failure(orders, stream, AT) for stream in streams]
            lasts[budget] = [failed for failed, _ in played]
            accuracy[budget] = [[ensemble_accuracy(s, logp, world.test_labels) for s in seen] for _, seen in played]
        longer.append(float(np.mean(lasts[4]) / np.mean(lasts[1])))
        for index, t in enumerate(AT):
            one, four = (float(np.mean([run[index] for run in accuracy[budget]])) for budget in (1, 4))
            better[t].append(four - one)
            baseline[t].append(one)
        # part C: a run that never had the rows of one slice
        place = (seed % SHARDS, (seed + 1) % SLICES)
        gone = {name for name, where in plan.places.items() if where == place}
        plan.delete(min(gone))
        without = type(world)(
            {name: row for name, row in world.pixels.items() if name not in gone},
            {name: label for name, label in world.labels.items() if name not in gone},
            world.test, world.test_labels, world.mix,
        )  # fmt: skip
        fresh = train_digits(without, plan, seed=seed)
        for node, stage in fresh.items():
            pairs = list(zip(stage.tensors(), stages[node].tensors(), strict=True))
            compared += len(pairs)
            differing += sum(not torch.equal(ours, theirs) for ours, theirs in pairs)
    return [
        Check(name="B digits: requests until failure with 4 orders, over those with 1", figure=min(longer), relation=">=",
              threshold=1.4, baseline=1.0, seeds=SEEDS),
        *(Check(name=f"B digits: accuracy with 4 orders minus with 1, after {t} deletions (baseline: with 1)",
                figure=min(better[t]), relation=">=", threshold=0.0, baseline=min(baseline[t]), seeds=SEEDS) for t in AT),
        Check(name="C digits: tensors of live stages that differ from a run without the slice", figure=float(differing),
              relation="==", threshold=0.0, seeds=SEEDS),
        Check(name="C digits: tensors of live stages that were compared", figure=float(compared), relation=">",
              threshold=0.0, seeds=SEEDS),
    ]  # fmt: skip


def matching_checks() -> list[Check]:
    """Part D."""
    chosen = matching_orders(RATES)
    distinct = sum(len({order[position] for order in chosen}) for position in range(len(RATES)))
    gain, base = [], []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        ours = simulate_prefix(chosen, RATES, requests=20, runs=2000, seed=seed).mean()
        random = [
            simulate_prefix([tuple(rng.permutation(4).tolist()) for _ in range(4)], RATES, requests=20, runs=2000, seed=seed)
            .mean()
            for _ in range(50)
        ]  # fmt: skip
        base.append(float(np.mean(random)))
        gain.append(float(ours - np.mean(random)))
    return [
        Check(name="D matching: different slices over the four positions, of 16", figure=float(distinct), relation="==",
              threshold=16.0),
        Check(name="D matching: mean live prefix over 20 requests minus that of 4 random orders (baseline: theirs)",
              figure=min(gain), relation=">", threshold=0.0, baseline=max(base), seeds=SEEDS),
    ]  # fmt: skip


def checks() -> list[Check]:
    """All parts; the headline is how much longer more orders last."""
    return [*digits_checks(), *simulator_checks(), *matching_checks()]


PROOF = Proof(
    system="s3t",
    claim="A deletion that switches off later layers is exact, and training several orders of the slices keeps the system "
    "alive longer and more accurate, as the closed form says",
    checks=checks,
    quick=False,
    note="The accuracy of a system with no live shard counts as chance. The acceptance test on a language model, every tensor "
    "equal, is tests/forget/test_s3t.py.",
)
