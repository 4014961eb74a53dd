"""Forgetting persons, not classes: NoMUS ranks retraining above the original, and what each method leaves to the loss attack.

Digits as subjects (`efface.lab.identities`), and where `EFFACE_DATA` has the ORL faces, faces of which the task asks whether they
are mirrored. Fine-tuning is the benchmark's (2 passes, SGD 0.001), advanced NegGrad, which is gradient difference with the
retain rows as anchor, the specification's (6 passes, 0.02), both with batches of 64 and without momentum or decay; CF-k moves
the head alone (k = 1) as fine-tuning moves everything. SCRUB does nothing at the benchmark's rate
and ruins these models at 0.05: its rate and passes are, of twelve pairs (faces: three) tried on seed 0, those with the highest
NoMUS that keep the accuracy within two points; its temperature is the benchmark's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from efface.audit.metrics.identity import NoMUS, badly_trained, nomus
from efface.audit.predictions import predictions_of
from efface.errors import ModelError
from efface.lab.classified import Classified
from efface.lab.emoji import data_folder
from efface.lab.identities import digit_subjects, faces
from efface.lab.unlearn import forgotten
from efface.proofs.proof import Check, Proof
from efface.subjects.predictor import Predictor
from efface.train.engine import isolated_rng

SEEDS = (0, 1, 2, 3, 4)
GAIN = 0.08
NEAR = 0.02
COIN = 0.06

PLAIN: dict[str, Any] = {
    "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "warmup_ratio": 0.0,
    "max_grad_norm": 1e9, "batch_size": 64,
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "finetune": {"learning_rate": 1e-3, "epochs": 2},
    "cf-k": {"learning_rate": 1e-3, "epochs": 2, "k": 1},
    "gradient-difference": {"learning_rate": 0.02, "epochs": 6, "anchor": "retain"},
    "scrub": {"learning_rate": 0.03, "epochs": 10, "forget_epochs": 5},
}
ON_FACES = {**METHODS, "scrub": {"learning_rate": 0.02, "epochs": 6}}

Scores = Mapping[str, NoMUS]
"""By model: `original`, `retrained`, `untrained`, and each method's."""


def score(model: Predictor, lab: Classified, seed: int) -> NoMUS:
    """NoMUS of a model on the lab's sets."""
    assert lab.request.holdout is not None
    return nomus(
        predictions_of(model, lab.request.evaluate["test"], name="test"),
        predictions_of(model, lab.request.forget, name="forget"),
        predictions_of(model, lab.request.holdout, name="unseen"),
        seed=seed,
    )


def untrained(like: Predictor, seed: int) -> Predictor:
    """A model of the same form with fresh weights."""
    with isolated_rng(seed):
        module = like.fresh()
    return Predictor(module.eval(), form=like.form, source="untrained")


def scores(
    world: Callable[[int], Classified], seed: int, methods: Mapping[str, dict[str, Any]] = METHODS
) -> Scores:  # fmt: skip
    """All models of one seed.

    Raises:
        ModelError: the retrained model is not trained to its end.
    """
    lab = world(seed)
    assert lab.request.retain is not None
    kept = [predictions_of(model, lab.request.retain) for model in (lab.original, lab.retrained[0])]
    reason = badly_trained(*kept)
    if reason:
        raise ModelError(f"seed {seed}: {reason}", "a reference", "train it longer")
    found = {
        "original": score(lab.original, lab, seed), "retrained": score(lab.retrained[0], lab, seed),
        "untrained": score(untrained(lab.original, seed), lab, seed),
    }  # fmt: skip
    for name, own in methods.items():
        subject: Any = lab.original
        with forgotten(name, subject, lab.request, **PLAIN, **own, seed=seed) as edited:
            model: Any = edited
            found[name] = score(model, lab, seed)
    return found


def worst(found: list[Scores], figure: Callable[[Scores], float], *, largest: bool = False) -> float:
    """The worst of the seeds."""
    values = [figure(one) for one in found]
    return max(values) if largest else min(values)


def reported(found: list[Scores], world: str, seeds: tuple[int, ...]) -> list[Check]:
    """Means over the seeds: NoMUS of each model (baseline: its task half's accuracy), and both attacks."""
    checks = []
    for name in found[0]:
        own = [one[name] for one in found]
        grouped = [one.grouped for one in own if one.grouped is not None]
        checks += [
            Check(name=f"{world}: NoMUS of {name}, mean (baseline: its accuracy)", relation="reported", seeds=seeds,
                  figure=fmean(one.value.value for one in own), baseline=fmean(one.task.value for one in own)),
            Check(name=f"{world}: attack accuracy on {name}, mean (baseline: by person)", relation="reported", seeds=seeds,
                  figure=fmean(one.attack.accuracy.value for one in own),
                  baseline=fmean(one.accuracy.value for one in grouped)),
        ]  # fmt: skip
    return checks


def judged(found: list[Scores]) -> list[Check]:
    """What the specification asks of the digits."""

    def above(name: str) -> Callable[[Scores], float]:
        return lambda one: one[name].value.value - one["original"].value.value

    return [
        Check(name="digits: NoMUS of the retrained model minus the original's, least of the seeds (baseline: mean)",
              figure=worst(found, above("retrained")), relation=">=", threshold=GAIN,
              baseline=fmean(above("retrained")(one) for one in found), seeds=SEEDS),
        Check(name="digits: distance of fine-tuning's NoMUS to the original's, largest",
              figure=worst(found, lambda one: abs(above("finetune")(one)), largest=True), relation="<=", threshold=NEAR,
              seeds=SEEDS),
        Check(name="digits: NoMUS of advanced NegGrad minus the original's, mean (baseline: least)",
              figure=fmean(above("gradient-difference")(one) for one in found), relation=">", threshold=0.0,
              baseline=worst(found, above("gradient-difference")), seeds=SEEDS),
        Check(name="digits: distance of the attack's accuracy on the retrained model to 0.5, largest",
              figure=worst(found, lambda one: abs(one["retrained"].attack.signed), largest=True), relation="<=",
              threshold=COIN, seeds=SEEDS),
    ]  # fmt: skip


def checks() -> list[Check]:
    """Digits judged, then reported; faces reported."""
    found = [scores(digit_subjects, seed) for seed in SEEDS]
    made = [*judged(found), *reported(found, "digits", SEEDS)]
    if not (data_folder() / "orl_faces").exists():
        sys.stderr.write(f"part faces is left out: no ORL faces in {data_folder() / 'orl_faces'}; set EFFACE_DATA\n")
        return made
    return [*made, *reported([scores(faces, seed, ON_FACES) for seed in SEEDS[:3]], "faces", SEEDS[:3])]


PROOF = Proof(
    system="facial-identity-benchmarks",
    claim="NoMUS ranks a model that never saw the persons to be forgotten above the original, fine-tuning changes nothing, and "
    "gradient difference gains; on the retrained model the loss attack is nearly a coin",
    checks=checks,
    quick=False,
    note="An untrained network scores about half by its forgetting half alone: NoMUS is read with its parts. The faces' label "
    "says whether a picture is mirrored, and is made so that it does not depend on the person. Their model fits its rows to "
    "losses near 1e-5, where gradient difference either does nothing (rates up to 0.3) or ruins it (0.5).",
)
