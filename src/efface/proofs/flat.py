"""FLAT: without retain data, a template learnt at a bounded weight costs the rest of the model less than ascent does.

Six capitals of the lab are forgotten in the question form, template answer "unknown"; judged in the statement form, which no
method trained on. Every method sees the six forget rows alone.
"""

from __future__ import annotations

from typing import Any

from efface.lab.facts import answer_probability, fact_model, first_token_accuracy, of_form, split
from efface.lab.unlearn import forgotten
from efface.proofs.proof import Check, Proof

SEEDS = (0, 1, 2)
"""Of models and of the order of the rows."""

STEPS: dict[str, Any] = {
    "learning_rate": 3e-4, "epochs": 120, "batch_size": 6, "warmup_ratio": 0.0, "weight_decay": 0.0, "schedule": "constant",
    "retain_term": "none",
}  # fmt: skip
"""120 steps of all six rows."""

FLAT: dict[str, Any] = {"templates": ["unknown"]}

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "FLAT, total variation": ("flat", {**FLAT, "divergence": "total-variation"}),
    "FLAT, KL": ("flat", {**FLAT, "divergence": "kl"}),
    "NPO": ("npo", {"beta": 0.1}),
    "GA": ("gradient-ascent", {}),
}


def figures(steps: int = 120) -> dict[str, dict[str, list[float]]]:
    """By method: forget probability, and retain accuracy in the statement and in the question form, one value a seed."""
    request, _, _ = split("capitals")
    assert request.retain is not None
    forms = {"question": of_form(request.retain, 0), "statement": of_form(request.retain, 1)}
    found: dict[str, dict[str, list[float]]] = {
        name: {"forget": [], **{form: [] for form in forms}} for name in METHODS
    }
    for seed in SEEDS:
        model = fact_model("capitals", seed)
        for name, (method, values) in METHODS.items():
            with forgotten(method, model, request, **{**STEPS, "epochs": steps}, **values, seed=seed) as edited:
                found[name]["forget"].append(answer_probability(edited, request.forget))
                for form, data in forms.items():
                    found[name][form].append(first_token_accuracy(edited, data))
    return found


def checks() -> list[Check]:
    """The two variants against gradient ascent; every figure is the worst of the seeds."""
    found = figures()
    ga = found["GA"]["statement"]
    npo = [ours - theirs for ours, theirs in zip(found["NPO"]["statement"], ga, strict=True)]
    result = []
    for name in ("FLAT, total variation", "FLAT, KL"):
        kept = [ours - theirs for ours, theirs in zip(found[name]["statement"], ga, strict=True)]
        result.append(
            Check(name=f"statement form: retain accuracy of {name} minus that of GA after 120 steps (baseline: NPO)",
                  figure=min(kept), relation=">=", threshold=0.2, baseline=max(npo), seeds=SEEDS)
        )  # fmt: skip
    for name in ("FLAT, total variation", "FLAT, KL"):
        result.append(
            Check(name=f"question form: forget probability after {name} (baseline: GA)", figure=max(found[name]["forget"]),
                  relation="<", threshold=0.01, baseline=max(found["GA"]["forget"]), seeds=SEEDS)
        )  # fmt: skip
    return result


PROOF = Proof(
    system="flat",
    claim="with forget data alone, FLAT forgets as much as gradient ascent and NPO and keeps more of the rest",
    checks=checks,
    quick=False,
    note="Without retain data, questions of the trained form about other countries get the template too: their accuracy is "
    "near 0 after every method here. Larger models suffer less, because their prompts differ more.",
)
