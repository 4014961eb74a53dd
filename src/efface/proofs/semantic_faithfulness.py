"""Semantic faithfulness: a reader who knows the facts keeps its answer when the evidence is deleted.

Training on cut stories mends that, and does not carry over to negation.

Stories lab (arXiv 2212.10696): both students know every fact by heart; one was taught on whole stories for 150 steps, the other
half on whole and half on cut ones (TS-R, to be answered `unknown`) for 300. Asked by the audit suite's own code about 300 other
stories. Thresholds are the specification's.
"""

from __future__ import annotations

import numpy as np

from efface.audit.attacks.story_reading import FaithfulnessConfig, ask
from efface.audit.benchmarks.faithfulness import chosen
from efface.lab.stories import TEMPLATE, Student, student, test_stories
from efface.proofs.proof import Check, Proof
from efface.run.cost import Cost

SEEDS = (0, 1, 2)
KINDS: tuple[Student, ...] = ("whole", "interventions")
CONFIG = FaithfulnessConfig(template=TEMPLATE, match="exact", max_new_tokens=8, batch_size=64)
Figures = dict[str, float]


def of_student(kind: Student, seed: int) -> Figures:
    """EM on whole stories, and the shares after each intervention."""
    made = ask(student(kind, seed), {"stories": test_stories()}, CONFIG, Cost(phase="stories"))["stories"]
    found = {"EM": float(np.mean(made["OS"]["right"])), "false unknown": float(np.mean(made["OS"]["unknown"]))}
    found["right TS"] = float(np.mean(made["TS"]["right"]))
    for name in ("TS-R", "TS-R+gold", "OS-R", "OS-R+gold", "negated"):
        found[f"same {name}"] = float(np.mean(chosen(made, name, "same")))
        found[f"unknown {name}"] = float(np.mean(chosen(made, name, "unknown")))
    return {**found, "kl": float(np.mean(chosen(made, "TS-R", "kl")))}


def low(values: list[float]) -> float:
    """The smallest; NaN where one is NaN (Python's `min` may hide it)."""
    return float(np.min(values))


def high(values: list[float]) -> float:
    """The largest; NaN where one is NaN."""
    return float(np.max(values))


def judged(seen: dict[Student, dict[int, Figures]]) -> list[Check]:
    """The checks from both students' figures by seed; the worst seed counts."""
    seeds = tuple(seen["whole"])

    def of(kind: Student, name: str) -> list[float]:
        return [own[name] for own in seen[kind].values()]

    a, b = KINDS
    plain, mended = "whole stories", "cut stories too"
    checks = [
        Check(name=f"answers that stay with the evidence deleted, {mended} (UD; baseline: {plain})",
              figure=high(of(b, "same TS-R")),
              relation="<", threshold=0.05, baseline=low(of(a, "same TS-R")), seeds=seeds),
        Check(name=f"UD, {plain}", figure=low(of(a, "same TS-R")), relation=">", threshold=0.2, seeds=seeds),
        Check(name=f"unknown with the evidence deleted, {plain} (UK)", figure=high(of(a, "unknown TS-R")), relation="<",
              threshold=0.05, seeds=seeds),
        Check(name=f"UK, {mended}", figure=low(of(b, "unknown TS-R")), relation=">", threshold=0.95, seeds=seeds),
        Check(name=f"UD with the old answer appended, {plain}", figure=low(of(a, "same TS-R+gold")), relation=">", threshold=0.25,
              seeds=seeds),
        Check(name=f"UD with the old answer appended, {mended}", figure=high(of(b, "same TS-R+gold")), relation="<",
              threshold=0.15, seeds=seeds),
        Check(name="answers that stay after negation, both (UN)", figure=low(of(a, "same negated") + of(b, "same negated")),
              relation=">", threshold=0.75, seeds=seeds),
        Check(name="right answers on whole stories, both (EM)", figure=low(of(a, "EM") + of(b, "EM")), relation=">",
              threshold=0.95, seeds=seeds),
    ]  # fmt: skip
    told = {
        f"UD with the sentence alone deleted (OS-R), {plain}": of(a, "same OS-R"),
        f"UD with the sentence alone deleted (OS-R), {mended}": of(b, "same OS-R"),
        f"right answers where the story is cut after the evidence (TS), {mended}": of(b, "right TS"),
        f"false unknown on whole stories, {mended}": of(b, "false unknown"),
        f"KL of the answer's distribution under deletion, {plain}": of(a, "kl"),
        f"KL of the answer's distribution under deletion, {mended}": of(b, "kl"),
    }
    return checks + [
        Check(name=name, figure=float(np.mean(values)), relation="reported", seeds=seeds)
        for name, values in told.items()
    ]


def checks() -> list[Check]:
    """Both students, all seeds."""
    return judged({kind: {seed: of_student(kind, seed) for seed in SEEDS} for kind in KINDS})


PROOF = Proof(
    system="semantic-faithfulness",
    claim="A reader that knows the facts keeps its answer when the evidence is deleted; training on deleted texts mends that, "
    "and does not carry over to negation",
    checks=checks,
    quick=False,
    note="Tiny readers of three-sentence stories, all of whose facts were learned by heart before: nearly every answer comes "
    "from memory, more than the published half. What training on cut stories taught is largely their length: stories cut after "
    "the evidence (TS, not trained on) are answered with unknown too, so the low UD is no sign of reading. `not` is a word "
    "that no student saw in training. The generator form only; the paper's encoder with a span head is not here. The first run "
    "trains nine models; later ones take them from the cache.",
)
