"""Who's Harry Potter: labels that a model without the text would give forget it, at less cost than ascent.

Two parts. Capitals: six capitals in all three forms, without anchors. Books (needs `EFFACE_DATA`): a word-level model of two
plays forgets one of them with the names of its characters as anchors; beside it each half of the method alone.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from efface.data.request import Request
from efface.lab.books import ANCHORS, books, giveaway, perplexity
from efface.lab.emoji import data_folder
from efface.lab.facts import answer_probability, fact_model, first_token_accuracy, of_form, split
from efface.lab.unlearn import forgotten
from efface.proofs.proof import Check, Proof

SEEDS = (0, 1, 2)
"""Of models and of the order of the rows."""

STEPS: dict[str, Any] = {
    "learning_rate": 3e-4, "epochs": 40, "batch_size": 18, "warmup_ratio": 0.0, "weight_decay": 0.0, "schedule": "constant",
    "retain_term": "none",
}  # fmt: skip
"""Forty steps of all eighteen rows."""

WHP: dict[str, Any] = {"alpha": 5.0, "reinforce_learning_rate": 1e-3, "reinforce_epochs": 40}

BOOKS: dict[str, Any] = {
    "learning_rate": 3e-4, "epochs": 20, "batch_size": 16, "retain_term": "nll", "warmup_ratio": 0.0, "weight_decay": 0.0,
    "schedule": "constant",
    "alpha": 5.0, "reinforce_learning_rate": 1e-3, "reinforce_epochs": 3, "block_tokens": 90,
}  # fmt: skip


def capitals_request() -> Request:
    """All three forms of the six capitals are to be forgotten."""
    request, _, forms = split("capitals")
    return dataclasses.replace(request, forget=forms, sources={})


def capitals_figures() -> dict[str, list[tuple[float, float]]]:
    """By method: the highest forget probability and the lowest retain accuracy of the three forms, a pair a seed."""
    request = capitals_request()
    assert request.retain is not None
    forms = [(of_form(request.forget, form), of_form(request.retain, form)) for form in range(3)]
    found: dict[str, list[tuple[float, float]]] = {"who-is-harry-potter": [], "gradient-ascent": []}
    for seed in SEEDS:
        model = fact_model("capitals", seed)
        for name, values in (("who-is-harry-potter", WHP), ("gradient-ascent", {})):
            with forgotten(name, model, request, **STEPS, **values, seed=seed) as edited:
                figures = [
                    (answer_probability(edited, gone), first_token_accuracy(edited, kept)) for gone, kept in forms
                ]
            found[name].append((max(p for p, _ in figures), min(a for _, a in figures)))
    return found


def capitals_checks() -> list[Check]:
    """Every judged figure is the worst of the seeds."""
    found = capitals_figures()
    ours, ga = found["who-is-harry-potter"], found["gradient-ascent"]
    return [
        Check(name="capitals: retain accuracy of the worst form (baseline: gradient ascent)", figure=min(a for _, a in ours),
              relation=">=", threshold=0.9, baseline=max(a for _, a in ga), seeds=SEEDS),
        Check(name="capitals: forget probability of the worst form (baseline: gradient ascent)", figure=max(p for p, _ in ours),
              relation="<", threshold=0.02, baseline=max(p for p, _ in ga), seeds=SEEDS),
        Check(name="capitals: retain accuracy minus gradient ascent's", relation=">", threshold=0.0, seeds=SEEDS,
              figure=min(mine - theirs for (_, mine), (_, theirs) in zip(ours, ga, strict=True))),
        Check(name="capitals: forget probability of the worst form, mean of the seeds", relation="reported", seeds=SEEDS,
              figure=sum(p for p, _ in ours) / len(ours)),
    ]  # fmt: skip


def books_figures(seed: int) -> dict[str, tuple[float, float]]:
    """By part of the method: the fall of the give-away probability, and the change of the kept play's perplexity."""
    known = books(seed)
    start, level = giveaway(known.model, known), perplexity(known.model, known)
    found = {}
    with tempfile.TemporaryDirectory(prefix="efface-proof-") as folder, warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # a half of the method alone may change few labels: that is its figure
        path = Path(folder) / "anchors.json"
        path.write_text(json.dumps(ANCHORS), encoding="utf-8")
        parts: dict[str, dict[str, Any]] = {
            "both": {"anchors": str(path)}, "reinforced alone": {}, "anchors alone": {"anchors": str(path), "alpha": 0.0},
        }  # fmt: skip
        for name, values in parts.items():
            with forgotten(
                "who-is-harry-potter", known.model, known.request, **{**BOOKS, **values}, seed=seed
            ) as edited:
                fall, change = 1 - giveaway(edited, known) / start, abs(perplexity(edited, known) / level - 1)
            found[name] = (fall, change)
    return found


def books_checks() -> list[Check]:
    """Every figure is the worst of the seeds; the baselines are the halves of the method. Without the data: none."""
    if not (data_folder() / "shakespeare" / "input.txt.gz").is_file():
        sys.stderr.write(f"part books is left out: no plays in {data_folder() / 'shakespeare'}; set EFFACE_DATA\n")
        return []
    found = [books_figures(seed) for seed in SEEDS]
    halves = ("reinforced alone", "anchors alone")
    result = [
        Check(name="books: fall of the probability of give-away names on 30 prompts (baseline: the better half of the method)",
              figure=min(each["both"][0] for each in found), relation=">=", threshold=0.8,
              baseline=max(each[half][0] for each in found for half in halves), seeds=SEEDS),
        Check(name="books: change of the perplexity on the kept play", figure=max(each["both"][1] for each in found),
              relation="<", threshold=0.05, baseline=max(each[half][1] for each in found for half in halves), seeds=SEEDS),
    ]  # fmt: skip
    return result


def checks() -> list[Check]:
    """Both parts."""
    return [*capitals_checks(), *books_checks()]


PROOF = Proof(
    system="who-is-harry-potter",
    claim="fine-tuning on generic labels forgets the text and keeps the rest, where gradient ascent at the same level does not; "
    "both sources of the labels are needed",
    checks=checks,
    quick=False,
    note="Forgetting is approximate, as the paper's title says: such models are known to leak under adversarial prompting and in "
    "other languages, which this proof does not attack.",
)
