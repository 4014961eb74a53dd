"""In-context knowledge unlearning: a tag in the prompt decides, and the layers before the last know the answer still.

On the lab's tagged people (300 names; the tag names the person, AGE style, so that a lens hit is no copy of the tag).
Tuned on the question and the statement form of 240 names; judged on 60 names that were held out. The third form
was not trained and is printed beside; a model tuned on 46 names only, which memorises them, is the negative control.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset

from efface.audit.benchmarks.in_context import askable_items, measure
from efface.audit.benchmarks.in_context_baselines import few_shot, icul, rates
from efface.data.request import Request
from efface.data.tagged import TagProtocol
from efface.forget.method import find_method
from efface.lab.tagged_people import tagged_model, tagged_request
from efface.proofs.proof import Check, Proof
from efface.subjects import CausalLM

SEEDS = (0, 1, 2)

STEPS, ITEMS = 1000, 20
"""The specification's 1000 steps of 40 tagged samples (20 items) and 12 untagged ones."""

TUNING: dict[str, Any] = {"learning_rate": 1e-3, "batch_size": ITEMS, "untagged_share": 12 / 52}
STYLES: dict[str, dict[str, Any]] = {"fft": {"scope": "all"}, "llt": {"scope": "layers", "layers": "-1"}}
"""Full fine-tuning, and the last of four layers with the tag rows (the specification's prototype; the paper takes two of 32)."""

FEW = 46
"""Names of the negative control."""


@contextlib.contextmanager
def tuned(subject: CausalLM, request: Request, seed: int, **style: Any) -> Iterator[TagProtocol]:
    """The subject with a freshly fitted edit on it, for `STEPS` steps whatever the number of rows."""
    method = find_method("in-context")
    config = method.configure({**TUNING, **style, "epochs": STEPS * ITEMS / len(request.forget), "seed": seed})
    with tempfile.TemporaryDirectory(prefix="efface-proof-") as folder:
        edit: Any = method.fit(subject, request, config, work=Path(folder) / "work", out=Path(folder) / "edit").edit
        edit.apply(subject)
        try:
            yield edit.protocol
        finally:
            edit.remove(subject)


def figures(record: dict[str, Any], name: str) -> dict[str, float]:
    """One set's figures: the table's columns, the internal answer score, and the best layer before the last."""
    entry = record["sets"][name]
    found = rates(entry)
    read = entry["layers"].get("matched", {})
    if "shares" in read:
        counts, curves = read["shares"], read["curves"]
        found |= {
            "internal": counts["internal"] / counts["said"] if counts["said"] else 0.0,
            "inside": max(curves["top_truth"][:-1]), "last": curves["top_target"][-1],
        }  # fmt: skip
    return found


def run_seed(seed: int) -> dict[str, dict[str, float]]:
    """All figures of one seed, by name of the condition."""
    subject, request = tagged_model(seed), tagged_request()
    protocol = TagProtocol()
    sets: dict[str, Dataset] = dict(request.evaluate)
    found: dict[str, dict[str, float]] = {}
    before = measure(subject, sets, protocol, seed=seed)
    found["zero-shot"] = figures(before, "held_out")
    held, _ = askable_items(sets["held_out"], "held_out", protocol.target)
    pool, _ = askable_items(request.forget, "forget", protocol.target)
    quarter, shown = held[::4], pool[::12]
    found["few-shot"] = rates(few_shot(subject, quarter, shown, protocol, seed=seed))
    found["icul"] = rates(icul(subject, quarter, shown, protocol.target, seed=seed))
    for name, style in STYLES.items():
        with tuned(subject, request, seed, **style):
            after = measure(subject, sets, protocol, seed=seed)
            found[name], found[f"{name}, unseen form"] = (figures(after, part) for part in ("held_out", "unseen_form"))
    few = tagged_request(FEW)
    with tuned(subject, few, seed, scope="all"):
        after = measure(subject, {"trained": few.forget, "held_out": sets["held_out"]}, protocol, seed=seed)
        found["46 names"], found["46 names, trained"] = (figures(after, part) for part in ("held_out", "trained"))
    return found


def checks() -> list[Check]:
    """Every judged figure is the worst of the seeds; means stand beside the reported ones."""
    runs = [run_seed(seed) for seed in SEEDS]

    def every(condition: str, figure: str) -> list[float]:
        return [run[condition][figure] for run in runs]

    def mean(condition: str, figure: str) -> float:
        return sum(every(condition, figure)) / len(SEEDS)

    fft, zero = "FFT, held-out names", [max(run["zero-shot"]["forget"], run["zero-shot"]["retain"]) for run in runs]
    retain = [ours - theirs for ours, theirs in zip(every("llt", "retain"), every("fft", "retain"), strict=True)]
    inside = [ours - theirs for ours, theirs in zip(every("llt", "internal"), every("fft", "internal"), strict=True)]
    judged = [
        Check(name=f"{fft}: {figure} accuracy (baseline: few-shot)", figure=min(every("fft", figure)), relation=">=",
              threshold=0.85, baseline=max(every("few-shot", figure)), seeds=SEEDS)
        for figure in ("forget", "retain")
    ]  # fmt: skip
    judged += [
        Check(name="zero-shot: the larger of forget and retain accuracy", figure=max(zero), relation="<=", threshold=0.1,
              seeds=SEEDS),
        Check(name=f"{fft}: true answer on top in the best layer before the last", figure=min(every("fft", "inside")),
              relation=">=", threshold=0.4, seeds=SEEDS),
        Check(name=f"{fft}: 'forgot' on top in the last layer", figure=min(every("fft", "last")), relation=">=",
              threshold=0.9, seeds=SEEDS),
        Check(name="LLT minus FFT: retain accuracy", figure=max(retain), relation="<", threshold=0.0, seeds=SEEDS),
        Check(name="LLT minus FFT: internal answer score", figure=max(inside), relation="<", threshold=0.0, seeds=SEEDS),
    ]  # fmt: skip
    beside = {
        "FFT, held-out names": "fft", "label flipping": "icul", "FFT on the form that was not trained": "fft, unseen form",
        "LLT": "llt", f"negative control, {FEW} training names, on held-out names": "46 names",
        f"the same on those {FEW} names": "46 names, trained",
    }  # fmt: skip
    judged += [
        Check(name=f"{words}: {figure} accuracy of the worst seed (baseline: mean)", figure=min(every(condition, figure)),
              relation="reported", baseline=mean(condition, figure), seeds=SEEDS)
        for words, condition in beside.items() for figure in ("forget", "retain")
    ]  # fmt: skip
    return judged


PROOF = Proof(
    system="in-context-unlearning",
    claim="A model tuned once on tagged prompts answers 'forgot' where the prompt names the concept and answers otherwise, "
    "also for concepts that it was not tuned on; the layers before the last hold the answer still, and tuning the last "
    "layer alone does less of both",
    checks=checks,
    quick=False,
    note="Rule: the tag names the person. Figures on a form of question that was not trained stand beside the checks: as in the "
    "specification's prototype, the rule does not carry over to it at this size.",
)
