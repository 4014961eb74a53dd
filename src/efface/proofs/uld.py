"""ULD: taking away a small model that knows only the forget set forgets it, and costs the retained facts nothing.

The lab's capitals: six of them in three forms, an assistant of two of the four layers, all of it trained in 200 steps at 1e-3
with w = 5 against every retained row, as in the specification; what it leaves open (batch, schedule, warm-up, decay) has the
method's defaults and one batch of all 18 rows. Nothing was tuned.
"""

from __future__ import annotations

import copy
import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from efface.data.request import Request
from efface.forget.edit import Edit
from efface.forget.guards.logit_ensemble import Ensemble, LogitEnsemble
from efface.forget.method import find_method
from efface.lab.facts import answer_probability, fact_model, first_token_accuracy, of_form, split
from efface.lab.unlearn import forgotten
from efface.proofs.npo import STEPS as GRADIENT_DIFFERENCE
from efface.proofs.proof import Check, Proof
from efface.proofs.who_is_harry_potter import capitals_request
from efface.subjects import CausalLM

SEEDS = (0, 1, 2)
"""Of models and of the order of the rows."""

ULD: dict[str, Any] = {
    "assistant_layers": 2, "scope": "all", "learning_rate": 1e-3, "epochs": 200, "batch_size": 18, "forget_copies": 1,
    "wrong_answers": 0, "retain_rows": "all", "retain_weight": 5.0, "alpha": 1.0, "rho": 0.01,
}  # fmt: skip
"""Two hundred steps of all eighteen rows beside as many retained ones."""

OFFSET: dict[str, Any] = {
    "mode": "offset", "assistant_layers": 2, "scope": "all", "learning_rate": 1e-3, "epochs": 60, "batch_size": 18, "alpha": 1.0,
}  # fmt: skip
"""The baseline of the same code; reported only."""

ALPHAS = (0.0, 0.5, 0.8, 1.0)
FILTERS = (None, 0.01)


@dataclass(frozen=True)
class Figures:
    """One seed.

    Attributes:
        forget: (alpha, filter) -> probability of the forgotten capital in each of the three forms.
        retain: the same for the accuracy on the retained facts.
        exact: largest difference of a logit between the base and the pair at alpha 0.
        changed: tensors of the base that differ after fitting, applying and removing.
        assistant: NLL on the forget rows and flatness on the retained ones.
        difference: forget probability and retain accuracy of gradient difference after 60 steps, in the question form.
        offset: the worst form of the offset baseline: forget probability, retain accuracy.
    """

    forget: dict[tuple[float, float | None], list[float]]
    retain: dict[tuple[float, float | None], list[float]]
    exact: float
    changed: int
    assistant: dict[str, float]
    difference: tuple[float, float]
    offset: tuple[float, float]


def by_form(subject: CausalLM, request: Request) -> tuple[list[float], list[float]]:
    """Forget probability and retain accuracy in each form."""
    assert request.retain is not None
    gone = [answer_probability(subject, of_form(request.forget, form)) for form in range(3)]
    return gone, [first_token_accuracy(subject, of_form(request.retain, form)) for form in range(3)]


def pair_figures(subject: CausalLM, request: Request, seed: int) -> dict[str, Any]:
    """One assistant, taken away at every strength with and without the filter."""
    before = {name: tensor.clone() for name, tensor in subject.weights().items()}
    forget: dict[tuple[float, float | None], list[float]] = {}
    retain: dict[tuple[float, float | None], list[float]] = {}
    method = find_method("uld")
    with tempfile.TemporaryDirectory(prefix="efface-proof-") as folder:
        config = method.configure({**ULD, "seed": seed})
        fitted = method.fit(subject, request, config, work=Path(folder) / "work", out=Path(folder) / "edit")
        edit = Edit.load(Path(folder) / "edit")
        batch = subject.batch(subject.encode_rows(request.forget))
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with subject.evaluating() as model:
            plain = model(**inputs).logits
        edit.apply(subject)
        pair, base = subject.model, subject.model.base
        exact = 0.0
        try:
            for rho in FILTERS:
                for alpha in ALPHAS:
                    rule = Ensemble(combine="difference", alpha=alpha, rho=rho, layers=2)
                    subject.model = LogitEnsemble(base, copy.deepcopy(pair.assistant), rule).eval()
                    subject.changed()
                    forget[alpha, rho], retain[alpha, rho] = by_form(subject, request)
                    if alpha == 0:
                        with subject.evaluating() as model:
                            exact = max(exact, float((model(**inputs).logits - plain).abs().max()))
        finally:
            subject.model = pair
            subject.changed()
        edit.remove(subject)
    changed = sum(not torch.equal(before[name], tensor) for name, tensor in subject.weights().items())
    found = fitted.edit.facts.config["assistant"]
    return {"forget": forget, "retain": retain, "exact": exact, "changed": changed, "assistant": found}


def seed_figures(seed: int) -> Figures:
    """Everything of one seed."""
    subject, request = fact_model("capitals", seed), capitals_request()
    ours = pair_figures(subject, request, seed)
    plain, _, _ = split("capitals")
    with forgotten("gradient-difference", subject, plain, **GRADIENT_DIFFERENCE, seed=seed) as edited:
        difference = (
            answer_probability(edited, plain.forget), first_token_accuracy(edited, plain.evaluate["retain"])
        )  # fmt: skip
    with forgotten("uld", subject, request, **OFFSET, seed=seed) as edited:
        gone, kept = by_form(edited, request)
    return Figures(**ours, difference=difference, offset=(max(gone), min(kept)))


def rises(found: Figures, rho: float | None) -> float:
    """The largest change of the forget probability from one strength to the next, in any form; negative where it falls."""
    steps = itertools.pairwise(ALPHAS)
    return max(
        after - before
        for low, high in steps
        for before, after in zip(found.forget[low, rho], found.forget[high, rho], strict=True)
    )


def checks() -> list[Check]:
    """Every judged figure is that of the worst form of the worst seed."""
    found = [seed_figures(seed) for seed in SEEDS]

    def forget(alpha: float, rho: float | None) -> float:
        return max(max(each.forget[alpha, rho]) for each in found)

    def retain(alpha: float, rho: float | None) -> float:
        return min(min(each.retain[alpha, rho]) for each in found)

    strongest = (1.0, 0.01)
    result = [
        Check(name="forget probability at alpha 1 with filter 0.01 (baseline: the base)", figure=forget(*strongest), relation="<",
              threshold=0.1, baseline=min(min(each.forget[0.0, 0.01]) for each in found), seeds=SEEDS),
        Check(name="retain accuracy at alpha 1 with filter 0.01 (baseline: gradient difference at step 60)",
              figure=retain(*strongest), relation=">=", threshold=0.99, baseline=max(each.difference[1] for each in found),
              seeds=SEEDS),
        Check(name="retain accuracy minus that of gradient difference at step 60", relation=">", threshold=0.0, seeds=SEEDS,
              figure=min(min(each.retain[strongest]) - each.difference[1] for each in found)),
        Check(name="change of the forget probability from one alpha to the next, with filter", relation="<", threshold=0.0,
              figure=max(rises(each, 0.01) for each in found), seeds=SEEDS),
        Check(name="change of the forget probability from one alpha to the next, without filter", relation="<", threshold=0.0,
              figure=max(rises(each, None) for each in found), seeds=SEEDS),
        Check(name="alpha 0: largest difference of a logit from the base", figure=max(each.exact for each in found),
              relation="==", threshold=0.0, seeds=SEEDS),
        Check(name="tensors of the base that changed", figure=float(sum(each.changed for each in found)), relation="==",
              threshold=0.0, seeds=SEEDS),
    ]  # fmt: skip
    for rho in FILTERS:
        for alpha in ALPHAS[1:]:
            where = f"alpha {alpha:g}, {'no filter' if rho is None else f'filter {rho:g}'}"
            result.append(
                Check(name=f"forget probability, {where}", figure=forget(alpha, rho), relation="reported", seeds=SEEDS)
            )
            result.append(
                Check(name=f"retain accuracy, {where}", figure=retain(alpha, rho), relation="reported", seeds=SEEDS)
            )
    for name, figure in (
        ("the assistant's NLL on the forget rows (wanted < 0.1)", max(each.assistant["forget_nll"] for each in found)),
        ("the assistant's entropy on the retained rows / log V (wanted > 0.95)",
         min(each.assistant["retain_flatness"] for each in found)),
        ("gradient difference at step 60: forget probability, question form", max(each.difference[0] for each in found)),
        ("offset baseline: forget probability", max(each.offset[0] for each in found)),
        ("offset baseline: retain accuracy", min(each.offset[1] for each in found)),
    ):  # fmt: skip
        result.append(Check(name=name, figure=figure, relation="reported", seeds=SEEDS))
    return result


PROOF = Proof(
    system="uld",
    claim="taking away the logits of a small assistant that knows only the forget set forgets it and leaves the retained facts "
    "as they were, where gradient difference pays for it; no weight of the model changes",
    checks=checks,
    quick=False,
    note="Four layers and answers of one or two words: with so few tokens the filter at 0.01 keeps the likeliest token and those "
    "with a hundredth of its probability. The knowledge stays in the weights: whoever has the model alone has it.",
)
