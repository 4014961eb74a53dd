"""LAF: without any label it forgets a class about as well as retraining does, at little cost to the rest.

The digits' classifier (64-128-64-10) forgets the class 3. Settings are the specification's trial: 40 passes, rates 5e-4 and
1e-3 (the published ones are too small for so small a net), tau 5. Labels: the same fit on rows whose labels are nonsense must
give the same bits.
"""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from efface.audit.metrics.classification import Report, average_gap, report
from efface.audit.predictions import predictions_of
from efface.data.request import Request
from efface.lab.classified import Classified, digits
from efface.lab.unlearn import forgotten
from efface.proofs.proof import Check, Proof
from efface.subjects.predictor import Predictor

SEEDS = (0, 1, 2)
TRAINING = {"epochs": 40, "lr_ue": 5e-4, "lr_ra": 1e-3, "temperature": 5}
RUNS: dict[str, dict[str, float | bool | str]] = {
    "laf": {},
    "alignment": {"lr_ue": 0},
    "unlearning": {"lr_ra": 0, "stop_below": 0},
    "official": {"official": True},
    "on retain": {"vae_on": "retain"},
    "repaired": {"repair": True},
}
HARDER = {"vae_epochs": 100, "lr_ue": 1.5e-3, "lr_ra": 3e-3, "stop_below": 0}
"""For wrong labels, chosen on seed 0: ten passes over so few rows leave h_f saturated, and rates three times as large."""


def nonsense(data: Dataset, seed: int) -> Dataset:
    """The rows with labels that say nothing, most of them of no class."""
    labels = np.random.default_rng(seed).integers(-1000, 1000, len(data))
    return data.remove_columns("label").add_column("label", labels.tolist())


def scored(model: Predictor, request: Request) -> Report:
    """UA, MIA, RA and TA of a model."""
    assert request.retain is not None
    assert request.holdout is not None
    forget, retain, test = (predictions_of(model, part) for part in (request.forget, request.retain, request.holdout))
    return report(forget, retain, test)


def percent(found: Report, retrained: Report) -> dict[str, float]:
    """Three figures of a model in percent, and its average gap to the retrained one."""
    return {**{name: 100 * found[name] for name in ("UA", "RA", "TA")}, "gap": average_gap(found, retrained)}


def figures(seed: int) -> dict[str, dict[str, float]]:
    """`percent` of each run, of the original model and of wrong labels as the forget set; and whether labels were used."""
    world = digits(seed)
    retrained = scored(world.retrained[0], world.request)
    found = {"original": percent(scored(world.original, world.request), retrained)}
    bits = {}
    for name, values in RUNS.items():
        with forgotten("laf", world.original, world.request, **{**TRAINING, **values}, seed=seed) as model:
            found[name] = percent(scored(model, world.request), retrained)
            bits[name] = model.digest
    assert world.request.retain is not None
    blind = Request(forget=nonsense(world.request.forget, seed), retain=nonsense(world.request.retain, seed + 1))
    with forgotten("laf", world.original, blind, **TRAINING, seed=seed) as model:
        found["laf"]["label"] = float(model.digest != bits["laf"])
    return found | noisy(digits(seed, "noisy"), seed)


def noisy(world: Classified, seed: int) -> dict[str, dict[str, float]]:
    """`percent` where a tenth of the rows had wrong labels and is to be forgotten."""
    request = world.request
    retrained = scored(world.retrained[0], request)
    found = {"noisy original": percent(scored(world.original, request), retrained)}
    for name, values in {"noisy": {}, "noisy, harder": HARDER}.items():
        with forgotten("laf", world.original, request, **{**TRAINING, **values}, seed=seed) as model:
            found[name] = percent(scored(model, request), retrained)
    return found


def checks() -> list[Check]:
    """Judged figures are the worst of the seeds."""
    found = [figures(seed) for seed in SEEDS]

    def least(run: str, figure: str) -> float:
        return min(one[run][figure] for one in found)

    def most(run: str, figure: str) -> float:
        return max(one[run][figure] for one in found)

    ratio = max(one["laf"]["gap"] / one["unlearning"]["gap"] for one in found)
    judged = [
        Check(name="UA, class 3, no labels (baseline: the original model)", figure=least("laf", "UA"), relation=">=",
              threshold=95.0, baseline=most("original", "UA"), seeds=SEEDS),
        Check(name="RA (baseline: the original model)", figure=least("laf", "RA"), relation=">=", threshold=97.0,
              baseline=least("original", "RA"), seeds=SEEDS),
        Check(name="fits whose bits depend on the labels", figure=sum(one["laf"]["label"] for one in found), relation="==",
              threshold=0.0, seeds=SEEDS),
        Check(name="average gap as a share of that of the unlearning loss alone", figure=ratio, relation="<=",
              threshold=1 / 3, seeds=SEEDS),
    ]  # fmt: skip

    def told(name: str, figure: float, baseline: float | None = None) -> Check:
        return Check(name=name, figure=figure, relation="reported", baseline=baseline, seeds=SEEDS)

    words = {
        "laf": "LAF", "alignment": "alignment loss alone", "unlearning": "unlearning loss alone",
        "official": "autoencoders as released", "on retain": "h on retain rows", "repaired": "LAF+R",
    }  # fmt: skip
    for run, word in words.items():
        judged.append(
            told(f"{word}: largest average gap (baseline: the original's)", most(run, "gap"), most("original", "gap"))
        )
        judged.append(told(f"{word}: least TA (baseline: the original's)", least(run, "TA"), least("original", "TA")))
        if run != "laf":
            judged.append(told(f"{word}: least UA", least(run, "UA")))
            judged.append(told(f"{word}: least RA", least(run, "RA")))
    for run, word in {"noisy": "", "noisy, harder": ", autoencoders of 100 passes and three times the rates"}.items():
        what = f"a tenth with wrong labels to forget{word}"
        for figure, worst in {"gap": most, "UA": least, "TA": least}.items():
            title = f"{what}: {'largest average' if figure == 'gap' else 'least'} {figure} (baseline: the original's)"
            judged.append(told(title, worst(run, figure), worst("noisy original", figure)))
    return judged


PROOF = Proof(
    system="laf",
    claim="without any label, LAF forgets a class about as well as retraining, at little cost to the other classes",
    checks=checks,
    quick=False,
    note="The autoencoders add nothing here: the alignment loss alone forgets as much, and the unlearning loss alone forgets "
    "hardly anything at these rates. Rows with wrong labels, the paper's strongest case, are not forgotten at these settings.",
)
