"""TOFU: forget quality tells models apart that know the forget set from models that never saw it.

On the elements: the retrained model is its own reference (p = 1), the original is far from it, and NPO with a retain
term comes back by ten orders of magnitude without losing the retained facts (arXiv 2401.06121; npo: 2404.05868).
Truth ratios: the question of form 0, the answer of form 2 as the paraphrase, five wrong answers; 8 elements x 4 relations.
"""

from __future__ import annotations

from efface.audit.metrics.tofu import TruthRatio, forget_quality, truth_ratio
from efface.audit.observe import observe
from efface.lab.facts import facts, of_form, recall
from efface.lab.unlearn import forgotten
from efface.proofs.proof import Check, Proof
from efface.subjects import CausalLM

SEEDS = (0, 1, 2)
"""Of the order of the rows while unlearning; the two models have seed 0."""

STEPS = {
    "learning_rate": 3e-4,
    "epochs": 27,
    "batch_size": 32,
    "warmup_ratio": 0.0,
    "weight_decay": 0.0,
    "schedule": "constant",
}
"""81 steps; the specification's prototype took 80 at 5e-4."""


def checks() -> list[Check]:
    """All comparisons; figures over several seeds are the worst of them."""
    world = facts("elements", 0)
    questions, keep = of_form(world.request.forget, 0), world.request.evaluate["retain"]

    def ratios(model: CausalLM) -> TruthRatio:
        return truth_ratio(observe(model, questions, name="elements", generations=False))

    reference = ratios(world.retrained)
    itself = forget_quality(ratios(world.retrained), reference)
    full = forget_quality(ratios(world.original), reference)
    raised: dict[str, list[float]] = {"npo": [], "gradient-difference": []}
    kept: dict[str, list[float]] = {"npo": [], "gradient-difference": []}
    for seed in SEEDS:
        for name, values in (("npo", {"beta": 0.2}), ("gradient-difference", {})):
            with forgotten(name, world.original, world.request, **STEPS, **values, seed=seed) as edited:
                raised[name].append(forget_quality(ratios(edited), reference).log10_p - full.log10_p)
                kept[name].append(recall(edited, keep))
    other = "baseline: gradient difference"
    return [
        Check(name=f"orders of magnitude by which NPO + retain raises p ({other})", figure=min(raised["npo"]), relation=">",
              threshold=10, baseline=max(raised["gradient-difference"]), seeds=SEEDS),
        Check(name=f"retain accuracy after NPO + retain ({other})", figure=min(kept["npo"]), relation=">", threshold=0.9,
              baseline=max(kept["gradient-difference"]), seeds=SEEDS),
        Check(name="p of the retrained model against itself", figure=itself.p, relation="==", threshold=1.0),
        Check(name="p of the original model", figure=full.p, relation="<", threshold=1e-10),
    ]  # fmt: skip


PROOF = Proof(
    system="tofu",
    claim="Forget quality is 1 for the retrained model, vanishes for the model that knows the forget set, and rises by "
    "orders of magnitude after unlearning while the retained facts stay",
    checks=checks,
    quick=False,
    note="p depends on n = 32 and is not to be compared with TOFU's own splits. Retain accuracy is that of the rows that the "
    "retain term saw; known elements that no request names lose more. "
    "The first run trains two models; later ones take them from the cache.",
)
