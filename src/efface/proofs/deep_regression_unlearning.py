"""Deep regression unlearning: predictions about the forgotten patients come near those of a model that never saw them.

On the diabetes regressors, the lowest quarter of the targets to be forgotten. Every method trains 20 passes of Adam at the
rate and batch of the original (1e-3, 32); Blindspot's proxy trains 10 from fresh weights at the paper's rate of 0.01. Figures are
in units of the data, on the forget rows, against the retrained model; each is the worst of the seeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

from efface.audit.attacks.predictor_relearning import RelearnTimeConfig, aim, relearn_time
from efface.audit.metrics.regression import distance, loss_attack, mae
from efface.audit.predictions import predictions_of
from efface.lab.classified import Classified, diabetes
from efface.lab.unlearn import forgotten
from efface.proofs.proof import Check, Proof
from efface.subjects.predictor import Predictor

SEEDS = (0, 1, 2)
EPOCHS = 20
PROXY_EPOCHS = 10
METHODS = ("finetune", "gaussian-amnesiac", "blindspot")
RETAIN_STATS = "gaussian-amnesiac of the retain set's statistics"
"""Reported beside them: in the specification's trial it halved W1 and left the paired difference; in this world it does not."""
W1_RATIO = 0.5
ERROR_RATIO = 1.15

TRAINING: dict[str, Any] = {
    "optimizer": "adam", "learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0, "schedule": "constant",
    "max_grad_norm": 1e9, "batch_size": 32, "epochs": EPOCHS,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {"blindspot": {"proxy_epochs": PROXY_EPOCHS}}
"""The proxy's rate is the method's default, the paper's 0.01."""
ATTACK = RelearnTimeConfig(learning_rate=1e-3, batch_size=32)


@dataclass(frozen=True)
class Seen:
    """Of one model, the first three in units of the data.

    Attributes:
        w1: Wasserstein-1 distance to the retrained model's predictions on the forget rows.
        paired: mean difference from them row by row.
        error: mean absolute error on the retain-test rows.
        member: share of the forget rows that the loss attack calls members.
        steps: to relearn; infinity where that was not reached.
    """

    w1: float
    paired: float
    error: float
    member: float = 0.0
    steps: float = 0.0


def seen(model: Predictor, lab: Classified, bound: float) -> Seen:
    """The figures of one model."""
    request, scale = lab.request, lab.scale
    assert request.retain is not None
    assert request.holdout is not None
    forget, retain, test = (predictions_of(model, part) for part in (request.forget, request.retain, request.holdout))
    apart = distance(forget, predictions_of(lab.retrained[0], request.forget), scale=scale)
    error = mae(predictions_of(model, request.evaluate["retain_test"]), scale=scale).value
    steps = relearn_time(model, request, bound, ATTACK)["steps"]
    member = loss_attack(retain, test, forget).member.value
    return Seen(apart.wasserstein, apart.paired.value, error, member, float("inf") if steps is None else float(steps))


def figures(seed: int) -> dict[str, Seen]:
    """By method, and of the `original` and the `retrained` model."""
    lab = diabetes(seed)
    bound = aim(lab.original, lab.request, ATTACK)
    found = {"original": seen(lab.original, lab, bound), "retrained": seen(lab.retrained[0], lab, bound)}
    runs = {name: (name, OWN.get(name, {})) for name in METHODS}
    runs[RETAIN_STATS] = ("gaussian-amnesiac", {"stats_from": "retain"})
    for name, (method, own) in runs.items():
        with forgotten(method, lab.original, lab.request, **TRAINING, **own, seed=seed) as edited:
            found[name] = seen(edited, lab, bound)
    return found


def checks() -> list[Check]:
    """The worst of the seeds throughout."""
    runs = [figures(seed) for seed in SEEDS]

    def ratio(name: str) -> float:
        return max(run[name].w1 / run["finetune"].w1 for run in runs)

    def worst(name: str, what: str) -> float:
        return float(max(getattr(run[name], what) for run in runs))

    def member_gap(name: str) -> float:
        return max(abs(run[name].member - run["retrained"].member) for run in runs)

    def index(name: str) -> list[tuple[str, float]]:
        """The anamnesis index that is furthest from one, of the seeds that have one."""
        pairs = [(run[name].steps, run["retrained"].steps) for run in runs]
        found = [ours / theirs for ours, theirs in pairs if isfinite(ours) and isfinite(theirs) and theirs > 0]
        if not found:
            return []
        seeds = "" if len(found) == len(runs) else f" of {len(found)} seeds (others: not reached)"
        return [(f"anamnesis index, {name}, furthest from 1{seeds}", max(found, key=lambda value: abs(value - 1)))]

    error = max(run[name].error / run["original"].error for run in runs for name in ("gaussian-amnesiac", "blindspot"))
    margin = max(run["blindspot"].paired - run["gaussian-amnesiac"].paired for run in runs)
    judged = [
        Check(name="W1 to the retrained model on the forget rows: Blindspot / fine-tuning (baseline: original / fine-tuning)",
              figure=ratio("blindspot"), relation="<=", threshold=W1_RATIO, baseline=ratio("original"), seeds=SEEDS),
        Check(name="W1 to the retrained model on the forget rows: Gaussian amnesiac / fine-tuning",
              figure=ratio("gaussian-amnesiac"), relation="<=", threshold=W1_RATIO, baseline=ratio("original"), seeds=SEEDS),
        Check(name="paired difference from the retrained model: Blindspot minus Gaussian amnesiac", figure=margin, relation="<",
              threshold=0.0, baseline=worst("gaussian-amnesiac", "paired"), seeds=SEEDS),
        Check(name="retain-test error: larger of both methods / original", figure=error, relation="<=", threshold=ERROR_RATIO,
              baseline=max(run["finetune"].error / run["original"].error for run in runs), seeds=SEEDS),
    ]  # fmt: skip
    reported = [
        *((f"{what} to the retrained model, {name}", worst(name, key)) for name in ("original", *METHODS, RETAIN_STATS)
          for what, key in (("W1", "w1"), ("paired difference", "paired"))),
        *((f"share of the forget rows called members, distance to the retrained model's, {name}", member_gap(name))
          for name in ("original", *METHODS)),
        *(row for name in METHODS for row in index(name)),
    ]  # fmt: skip
    return judged + [Check(name=name, figure=value, relation="reported", seeds=SEEDS) for name, value in reported]


PROOF = Proof(
    system="deep-regression-unlearning",
    claim="A regressor that matches a briefly trained model without the forget set comes nearer to retraining than fine-tuning "
    "does, and row by row nearer than one that learns random targets",
    checks=checks,
    quick=False,
    note="442 patients, an MLP. The Wasserstein distance ignores which row a prediction belongs to, so the paired difference "
    "stands beside it; the membership attack and the anamnesis index are reported, not tested.",
)
