"""MUSE: PrivLeak tells a member from a model that never knew and from one that was overdone; VerbMem tells memory from chance.

Three parts (arXiv 2407.06460). A, elements: PrivLeak of the model that knows the forget set is near -100, of the retrained
model 0 by definition, after a few steps of gradient ascent between the two, and above 0 (over-unlearned) after gradient
difference and NPO. B, descriptions of data sets: verbatim memory before, of the retrained model, and after gradient ascent
with a retain term. C, elements in four requests one after another: what is kept falls under gradient ascent with each and
stays under exact retraining, which is looked at after two and after four requests.

The specification leaves steps and rates open; those of gradient ascent (A, C) and of part B were chosen on seed 0, the others
are the proof of TOFU's.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from datasets import concatenate_datasets

from efface.audit.benchmarks.muse_sets import SIDES, MuseConfig, sets
from efface.audit.metrics.membership import Floats, min_k, priv_leak
from efface.audit.observe import observe
from efface.audit.run import asked_as
from efface.data.muse import folds
from efface.data.request import Request
from efface.forget.sequence import forget_sequence
from efface.lab.descriptions import descriptions
from efface.lab.facts import PROMPT, WORLDS, fact_model, facts, recall
from efface.lab.people import vocabulary_data
from efface.lab.unlearn import forgotten
from efface.learn.recipes.causal_lm import learn
from efface.proofs.proof import Check, Proof
from efface.proofs.tofu import STEPS
from efface.subjects import CausalLM

SEEDS = (0, 1, 2)
"""Of models and of the order of the rows."""

FEW = {**STEPS, "epochs": 8, "learning_rate": 2e-4}
"""Gradient ascent in part A: 24 steps; the specification's prototype took 25."""

OVERDONE = {"gradient-difference": {}, "npo": {"beta": 0.2}}
TEXTS = {**STEPS, "epochs": 25, "batch_size": 5}
"""Gradient ascent with a retain term in part B: 50 steps."""

CUT = MuseConfig(prompt_tokens=40, continuation_tokens=40)
REQUESTS = 4
EACH: dict[str, Any] = {**STEPS, "epochs": 20, "batch_size": 24, "learning_rate": 1e-4}
"""Gradient ascent in part C: 20 steps for each request."""

CLOSE = 10.0
"""Points of ROUGE-L F1 within which two models count as close in part B."""


def member_scores(subject: CausalLM, request: Request) -> tuple[Floats, Floats]:
    """Min-40 % scores of the suite on forget and holdout texts."""
    parts, found = sets(request, CUT), []
    for side in SIDES:
        rows = parts[f"privleak_{side}"]
        with asked_as(subject, rows.prompt):
            table = observe(subject, rows.data, name=side, generations=False, answers_only=True)
        found.append(min_k(table.select("answer"), CUT.k, min_tokens=1))
    return found[0], found[1]


def leak_checks() -> list[Check]:
    """Part A; every figure is the worst of the seeds."""
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        world = facts("elements", seed)
        clean = member_scores(world.retrained, world.request)

        def leak(subject: CausalLM, world=world, clean=clean) -> float:  # type: ignore[no-untyped-def]
            return priv_leak(*member_scores(subject, world.request), *clean, resamples=2).value

        found.setdefault("retrained", []).append(leak(world.retrained))
        found.setdefault("full", []).append(leak(world.original))
        runs = {"few": ("gradient-ascent", FEW), **{name: (name, {**STEPS, **more}) for name, more in OVERDONE.items()}}
        for name, (method, values) in runs.items():
            with forgotten(method, world.original, world.request, **values, seed=seed) as edited:
                found.setdefault(name, []).append(leak(edited))
    above = [few - full for few, full in zip(found["few"], found["full"], strict=True)]
    return [
        Check(name="A elements: PrivLeak of the model that knows the forget set", figure=max(found["full"]), relation="<",
              threshold=-80, baseline=0.0, seeds=SEEDS),
        Check(name="A elements: PrivLeak of the retrained model", figure=max(map(abs, found["retrained"])), relation="==",
              threshold=0, seeds=SEEDS),
        Check(name="A elements: PrivLeak after a few steps of gradient ascent, minus the original's", figure=min(above),
              relation=">", threshold=0, seeds=SEEDS),
        Check(name="A elements: PrivLeak after a few steps of gradient ascent", figure=max(found["few"]), relation="<",
              threshold=0, seeds=SEEDS),
        Check(name="A elements: PrivLeak after gradient difference", figure=min(found["gradient-difference"]), relation=">",
              threshold=0, seeds=SEEDS),
        Check(name="A elements: PrivLeak after NPO with a retain term", figure=min(found["npo"]), relation=">", threshold=0,
              seeds=SEEDS),
    ]  # fmt: skip


def verbmem(subject: CausalLM, request: Request) -> float:
    """VerbMem of the suite, in percent."""
    rows = sets(request, CUT)["verbmem"]
    assert rows.fitted is not None
    data = rows.fitted(subject, rows.data)
    with asked_as(subject, rows.prompt):
        table = observe(subject, data, name="verbmem", max_new_tokens=CUT.continuation_tokens, answers_only=True)
    return 100 * float(np.mean(table.generated("rougeL_f1_unstemmed")))


def memory_checks() -> list[Check]:
    """Part B; every figure is the worst of the seeds."""
    full, clean, gap, losses = list[float](), list[float](), list[float](), list[float]()
    for seed in SEEDS:
        world = descriptions(seed)
        read = concatenate_datasets([world.request.forget, world.request.retain])
        losses.append(-float(observe(world.original, read, generations=False).select("answer").mean_logp.mean()))
        full.append(verbmem(world.original, world.request))
        clean.append(verbmem(world.retrained, world.request))
        with forgotten("gradient-difference", world.original, world.request, **TEXTS, seed=seed) as edited:
            gap.append(abs(verbmem(edited, world.request) - clean[-1]))
    return [
        Check(name="B descriptions: loss of the model that read all four", figure=max(losses), relation="<", threshold=0.1,
              seeds=SEEDS),
        Check(name="B descriptions: VerbMem of the model that read all four", figure=min(full), relation=">", threshold=90,
              baseline=max(clean), seeds=SEEDS),
        Check(name="B descriptions: VerbMem of the retrained model", figure=max(clean), relation="<", threshold=50, seeds=SEEDS),
        Check(name="B descriptions: VerbMem after gradient ascent with a retain term, distance to the retrained model's",
              figure=max(gap), relation="<=", threshold=CLOSE, baseline=min(full) - max(clean), seeds=SEEDS),
    ]  # fmt: skip


def retrained_after(seed: int, requests: list[Request], count: int) -> CausalLM:
    """A model of the elements trained without the first `count` requests; all of them gone is the world's own twin."""
    if count == len(requests):
        return fact_model("elements", seed, retrained=True)
    world = facts("elements", seed)
    assert world.request.retain is not None
    assert world.background is not None
    gone, left = requests[:count], requests[count:]
    config = WORLDS["elements"].config.model_copy(update={"seed": seed})
    return learn(
        [world.request.retain, world.background, *(request.forget for request in left)], world.folder / f"without-{count}",
        config, prompt=PROMPT, tokenizer_data=[*(request.forget for request in gone), *vocabulary_data(world.request)],
        label=f"elements: without {count} requests",
    )  # fmt: skip


def sequence_checks() -> list[Check]:
    """Part C; every figure is the worst of the seeds."""
    rises, lost, moved = list[float](), list[float](), list[float]()
    for seed in SEEDS:
        world = facts("elements", seed)
        keep = world.request.evaluate["retain"]
        requests = [Request(forget=part, retain=world.request.retain) for part in folds(world.request.forget, REQUESTS)]
        start = recall(world.original, keep)
        curve, done = [start], []
        edit = forget_sequence(world.original, requests, "gradient-ascent", **EACH, seed=seed)
        for step in edit.steps:
            step.apply(world.original)
            done.append(step)
            curve.append(recall(world.original, keep))
        for step in reversed(done):
            step.remove(world.original)
        rises.append(max(after - before for before, after in pairwise(curve)))
        lost.append(curve[0] - curve[-1])
        moved += [abs(recall(retrained_after(seed, requests, count), keep) - start) for count in (2, REQUESTS)]
    return [
        Check(name="C elements, four requests: largest rise of retain accuracy from one to the next, gradient ascent",
              figure=max(rises), relation="<=", threshold=0, seeds=SEEDS),
        Check(name="C elements, four requests: change of retain accuracy under exact retraining (baseline: gradient ascent)",
              figure=max(moved), relation="<=", threshold=0.02, baseline=min(lost), seeds=SEEDS),
    ]  # fmt: skip


def checks() -> list[Check]:
    """All parts."""
    return [*leak_checks(), *memory_checks(), *sequence_checks()]


PROOF = Proof(
    system="muse",
    claim="PrivLeak is near -100 for the model that knows the forget set, 0 for the retrained one, and positive where a method "
    "overdoes it; verbatim memory falls to the retrained model's; utility falls with each request unless one retrains",
    checks=checks,
    quick=False,
    note="Steps and rates of gradient ascent and of part B were chosen on seed 0. Exact retraining is looked at after two and "
    "after four requests. VerbMem rests on ten pieces of one text. The first run trains fifteen models; later ones take them "
    "from the cache.",
)
