"""ROCR: one closed-form change redirects a country in every form of question; training on one form does not reach the others.

Capitals world, France to Germany, layer 0, keys over the nine form and relation contexts (arXiv 2506.07795). The baselines
see France's capital in the question form only, as far as they forget: NPO with a retain term at high beta, and plain ascent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from datasets import Dataset

from efface.audit.benchmarks.form_bias import Floats, form_bias, item_scores
from efface.data.columns import canonical
from efface.data.request import Request
from efface.forget.method import find_method
from efface.lab.facts import WORLDS, answer_probability, fact_model, fact_rows, first_token_accuracy, of_form, split
from efface.lab.unlearn import forgotten
from efface.proofs.proof import Check, Proof
from efface.subjects import CausalLM
from efface.subjects.hooks import value_matrix

SEEDS = (0, 1, 2)
NAME, OTHER = "france", "germany"
FORMS = ("question", "statement", "terse")
TEMPLATES = tuple(
    question.format(relation=relation, name="{subject}")
    for question in WORLDS["capitals"].questions for relation in ("capital", "region", "currency")
)  # fmt: skip
EDIT: dict[str, Any] = {"layers": "0", "templates": TEMPLATES, "projector": "none"}
EDITS: dict[str, dict[str, Any]] = {
    "rocr, lambda 1": {"ridge": 1.0},
    "rocr, lambda 0.1": {"ridge": 0.1},
    "rocr, lambda 0.01": {"ridge": 0.01},
    "rocr, lambda 1, projector": {"ridge": 1.0, "projector": "absolute"},
    "rocr, lambda 0.01, projector": {"ridge": 0.01, "projector": "absolute"},
}
TRAINED: dict[str, dict[str, Any]] = {"npo": {"beta": 5.0}, "gradient-ascent": {}}
STEPS: dict[str, Any] = {
    "learning_rate": 3e-4, "epochs": 60, "batch_size": 1, "warmup_ratio": 0.0, "weight_decay": 0.0, "schedule": "constant",
}  # fmt: skip
"""Sixty steps, as in the proof of NPO."""


def asked(answer: str | None = None) -> Dataset:
    """France's capital in the three forms, with its own answer or another one."""
    rows = [row for row in fact_rows(WORLDS["capitals"]) if row["id"].startswith(f"{NAME}/capital/")]
    return canonical([{**row, "answer": answer or row["answer"]} for row in rows], "asked")


def others() -> Dataset:
    """Every fact of every other country, in all forms."""
    return canonical([row for row in fact_rows(WORLDS["capitals"]) if not row["id"].startswith(f"{NAME}/")], "others")


def one_form() -> Request:
    """Forget France's capital in the question form; keep everything but its other forms."""
    rows = fact_rows(WORLDS["capitals"])
    keep = [row for row in rows if not row["id"].startswith(f"{NAME}/capital/")]
    forget = [row for row in rows if row["id"] == f"{NAME}/capital/0"]
    return Request.from_rows(forget, keep)


def by_form(subject: CausalLM, data: Dataset) -> list[float]:
    """Probability of the first answer token in each form."""
    return [answer_probability(subject, of_form(data, form)) for form in range(len(FORMS))]


def items(subject: CausalLM) -> dict[str, Floats]:
    """Scores of France's capital by form, as the audit takes them."""
    return {name: item_scores(subject, of_form(asked(), form)) for form, name in enumerate(FORMS)}


@dataclass
class Seen:
    """What one edit does, by seed: smallest fall, best redirection, worst other country, form bias, seconds, rank."""

    fall: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    rank: list[float] = field(default_factory=list)


def see(seen: Seen, model: CausalLM, before: Mapping[str, Floats], start: list[float]) -> None:
    """Add an edited model's figures."""
    new, rest = asked("berlin"), others()
    seen.fall.append(min(s - e for s, e in zip(start, by_form(model, asked()), strict=True)))
    seen.first.append(max(first_token_accuracy(model, of_form(new, form)) for form in range(len(FORMS))))
    seen.kept.append(min(first_token_accuracy(model, of_form(rest, form)) for form in range(len(FORMS))))
    seen.spread.append(form_bias(before, items(model)).spread.value)


def redirected(model: CausalLM, before: Mapping[str, Floats], start: list[float], values: dict[str, Any]) -> Seen:
    """One redirection of one model."""
    base, _, _ = split("capitals")
    request, seen = replace(base, concepts={NAME: OTHER}), Seen()
    weight, clock = value_matrix(model.model, 0).detach().clone(), time.process_time()
    with forgotten("rocr", model, request, **{**EDIT, **values}) as edited:
        seen.seconds.append(time.process_time() - clock)
        delta = (value_matrix(edited.model, 0).detach() - weight).double()
        found = torch.linalg.svdvals(delta)
        seen.rank.append(float((found > 1e-4 * found[0]).sum()))
        see(seen, edited, before, start)
    return seen


def checks() -> list[Check]:
    """Every figure is the worst of the seeds."""
    find_method("rocr")  # reads the catalog, which is no part of an edit's time
    seen: dict[str, list[Seen]] = {}
    untouched: list[float] = []
    for seed in SEEDS:
        model = fact_model("capitals", seed)
        before, start = items(model), by_form(model, asked())
        untouched += [abs(one.change.value) for one in form_bias(before, items(model)).forms.values()]
        for name, values in EDITS.items():
            seen.setdefault(name, []).append(redirected(model, before, start, values))
        for method, values in TRAINED.items():
            one = Seen()
            with forgotten(method, model, one_form(), **STEPS, **values, seed=seed) as edited:
                see(one, edited, before, start)
            seen.setdefault(method, []).append(one)

    def worst(name: str, key: str, pick: Callable[[list[float]], float]) -> float:
        return pick([getattr(one, key)[0] for one in seen[name]])

    main, guarded = "rocr, lambda 1", "rocr, lambda 1, projector"
    return [
        Check(name="probability of the true capital: smallest fall over the forms", figure=worst(main, "fall", min),
              relation=">", threshold=0.0, baseline=worst("npo", "fall", min), seeds=SEEDS),
        Check(name="the redirected capital is the first choice in at least one form (1 = yes)",
              figure=worst(main, "first", min), relation=">=", threshold=1.0, seeds=SEEDS),
        Check(name="accuracy on all other countries, worst form", figure=worst(main, "kept", min), relation=">=",
              threshold=0.98, baseline=worst("npo", "kept", min), seeds=SEEDS),
        Check(name="the same with the projector", figure=worst(guarded, "kept", min), relation=">=", threshold=0.98,
              seeds=SEEDS),
        Check(name="with the projector: smallest fall over the forms", figure=worst(guarded, "fall", min), relation=">",
              threshold=0.0, seeds=SEEDS),
        Check(name="processor seconds of the fit", figure=max(worst(name, "seconds", max) for name in EDITS), relation="<",
              threshold=5.0, seeds=SEEDS),
        Check(name="numerical rank of the change", figure=max(worst(name, "rank", max) for name in EDITS), relation="==",
              threshold=1.0, seeds=SEEDS),
        Check(name="audit of an untouched model: largest relative change of a form", figure=max(untouched), relation="==",
              threshold=0.0, seeds=SEEDS),
        *(Check(name=f"form bias of {name} (smallest fall {worst(name, 'fall', min):.2f}, others {worst(name, 'kept', min):.2f})",
                figure=worst(name, "spread", max), relation="reported", seeds=SEEDS) for name in seen),
    ]  # fmt: skip


PROOF = Proof(
    system="rocr",
    claim="A closed-form edit of one weight matrix lowers the forgotten answer in every form of question within seconds and "
    "leaves other subjects alone",
    checks=checks,
    quick=False,
    note="One country, one relation, three forms. At lambda 1 without the projector the redirection is judged; with the "
    "published projector it is weaker here, and only falls and other countries are judged. Rows of form bias are reported, "
    "not judged: the specification sets no threshold. The edited model says false things, and the facts are in its weights.",
)
