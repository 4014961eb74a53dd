"""GA-alignment: three terms keep what ascent alone destroys, and random answers make it forget sooner.

Two parts. Capitals: six capitals are forgotten in the question form with all three terms, with two, and with ascent alone.
News (needs `EFFACE_DATA`): a small language model of two sections of AG News forgets one of them, and a classifier of the
continuations counts how often it still writes about it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from efface.forget.method import find_method
from efface.lab.emoji import data_folder
from efface.lab.facts import answer_probability, fact_model, first_token_accuracy, split
from efface.lab.news import news_figures
from efface.proofs.proof import Check, Proof
from efface.subjects import CausalLM

SEEDS = (0, 1, 2)
"""Of models and of the order of the rows."""

STEPS: dict[str, Any] = {
    "learning_rate": 3e-4, "batch_size": 32, "warmup_ratio": 0.0, "weight_decay": 0.0, "schedule": "constant",
}  # fmt: skip
"""100 steps; with a retain term the fixture's 32 retain rows a step beside the six capitals in turn."""
TURNS = 100

FORGET_LEVEL = 0.02

VARIANTS: dict[str, dict[str, Any]] = {
    "GA+random+KL": {},
    "GA+KL": {"random_weight": 0.0},
    "GA": {"random_weight": 0.0, "retain_term": "none", "batch_size": 6},
}


def run(model: CausalLM, seed: int, values: dict[str, Any]) -> tuple[float, float, int]:
    """Forget probability and retain accuracy (question form) after 100 steps, and the steps until the forget level.

    The number of steps is one more than were made where the level was never reached.
    """
    request, _, _ = split("capitals")
    assert request.retain is not None
    method = find_method("ga-alignment")
    kept = values.get("retain_term") != "none"
    length = {"anchor": "retain", "epochs": TURNS * 32 / len(request.retain)} if kept else {"epochs": TURNS}
    with tempfile.TemporaryDirectory(prefix="efface-proof-") as folder:
        config = method.configure({**STEPS, **length, **values, "seed": seed})
        fitted = method.fit(model, request, config, work=Path(folder) / "work", out=Path(folder) / "edit")
        before = [row["forget_p"] for row in fitted.log]  # entry t: after t steps
        fitted.edit.apply(model)
        try:
            forget = answer_probability(model, request.forget)
            retain = first_token_accuracy(model, request.evaluate["retain"])
        finally:
            fitted.edit.remove(model)
    reached = next((t for t, p in enumerate([*before, forget]) if p < FORGET_LEVEL), len(before) + 1)
    return forget, retain, reached


def capitals_checks() -> list[Check]:
    """Every judged figure is the worst of the seeds."""
    found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in VARIANTS}
    for seed in SEEDS:
        model = fact_model("capitals", seed)
        for name, values in VARIANTS.items():
            found[name].append(run(model, seed, values))
    three, two, alone = (found[name] for name in VARIANTS)
    gain = [ours[1] - theirs[1] for ours, theirs in zip(three, alone, strict=True)]
    other = [ours[1] - theirs[1] for ours, theirs in zip(two, alone, strict=True)]
    sooner = [theirs[2] - ours[2] for ours, theirs in zip(three, two, strict=True)]
    return [
        Check(name="capitals: retain accuracy of all three terms minus that of GA alone (baseline: GA+KL)", figure=min(gain),
              relation=">=", threshold=0.5, baseline=min(other), seeds=SEEDS),
        Check(name="capitals: forget probability after all three terms (baseline: GA alone)", figure=max(r[0] for r in three),
              relation="<", threshold=FORGET_LEVEL, baseline=max(r[0] for r in alone), seeds=SEEDS),
        Check(name=f"capitals: steps to a forget probability < {FORGET_LEVEL}, GA+KL minus all three", figure=min(sooner),
              relation=">", threshold=0.0, seeds=SEEDS),
        Check(name="the same, mean of the seeds", figure=sum(sooner) / len(sooner), relation="reported", seeds=SEEDS),
    ]  # fmt: skip


def news_checks() -> list[Check]:
    """The audit's part; the worst of the seeds. Without the data: none."""
    if not (data_folder() / "ag_news" / "test.csv.gz").is_file():
        sys.stderr.write(f"part news is left out: no AG News in {data_folder() / 'ag_news'}; set EFFACE_DATA\n")
        return []
    found = [news_figures(seed) for seed in SEEDS]
    return [
        Check(name="news: relative drop of the share of continuations flagged as the forgotten section",
              figure=min(f.drop.value for f in found), relation=">=", threshold=0.5, seeds=SEEDS),
        Check(name="news: perplexity on the kept section's unseen texts, after / before", figure=max(f.perplexity for f in found),
              relation="<", threshold=1.1, seeds=SEEDS),
    ]  # fmt: skip


def checks() -> list[Check]:
    """Both parts."""
    return [*capitals_checks(), *news_checks()]


PROOF = Proof(
    system="ga-alignment",
    claim="ascent, random answers and a KL to the old model together forget as much as ascent alone, keep the rest, and forget "
    "sooner than without the random answers; a classifier then finds the forgotten kind of text at most half as often",
    checks=checks,
    quick=False,
    note="A classifier counts gibberish as harmless, so fluency is measured beside the share: the audit's figures hold the mean "
    "token NLL of the continuations under the model before.",
)
