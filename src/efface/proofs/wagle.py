"""WAGLE: of a twentieth of the weights, the ones it chooses forget more than random ones, and its last choices hardly at all.

On the capitals world, NPO with a retain term, the same steps for every mask. Retain rows are the anchor, so that a step has 32
of them beside the six capitals. The model is the GPT-2 build: it reproduces the specification's figures, where the small Llama
is moved so far by a step that every mask has forgotten everything long before the last one.
"""

from __future__ import annotations

from efface.lab.facts import answer_probability, fact_model, first_token_accuracy, of_form, split
from efface.lab.unlearn import forgotten
from efface.proofs.proof import Check, Proof

SEEDS = (0, 1, 2)
STEPS = 150
BATCH = 32
DENSITY = 0.05
MASKS = ("wagle", "random", "reverse", "snip")

TRAINING = {
    "loss": "npo", "beta": 0.5, "learning_rate": 1e-3, "weight_decay": 0.0, "warmup_ratio": 0.0, "schedule": "constant",
    "anchor": "retain", "batch_size": BATCH,
}  # fmt: skip


def figures(seed: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Forget probability in the three forms, and retain accuracy, by mask; `dense` has none."""
    request, _, forms = split("capitals")
    assert request.retain is not None
    model = fact_model("capitals", seed, build="gpt2")
    epochs = STEPS * BATCH / len(request.retain)
    forget: dict[str, list[float]] = {}
    retain: dict[str, float] = {}
    runs: dict[str, dict[str, str | float]] = {mask: {"mask": mask, "density": DENSITY} for mask in MASKS}
    runs["dense"] = {"density": 1.0}
    for name, values in runs.items():
        with forgotten("wagle", model, request, **TRAINING, **values, epochs=epochs, seed=seed) as edited:
            forget[name] = [answer_probability(edited, of_form(forms, form)) for form in range(3)]
            retain[name] = first_token_accuracy(edited, request.evaluate["retain"])
    return forget, retain


def checks() -> list[Check]:
    """Every figure is the worst over seeds and forms."""
    found = [figures(seed) for seed in SEEDS]

    def gap(upper: str, lower: str) -> float:
        return min(u - x for forget, _ in found for u, x in zip(forget[upper], forget[lower], strict=True))

    kept = [retain[mask] for _, retain in found for mask in ("wagle", "random", "reverse")]
    return [
        Check(name="forget probability, density 0.05: random mask minus WAGLE (baseline: plain |theta g_f| in its place)",
              figure=gap("random", "wagle"), relation=">", threshold=0.0, baseline=gap("random", "snip"), seeds=SEEDS),
        Check(name="forget probability, density 0.05: lowest scores minus random mask",
              figure=gap("reverse", "random"), relation=">", threshold=0.0, seeds=SEEDS),
        Check(name="retain accuracy, density 0.05, all masks (baseline: the dense model)", figure=min(kept), relation=">=",
              threshold=0.98, baseline=min(retain["dense"] for _, retain in found), seeds=SEEDS),
    ]  # fmt: skip


PROOF = Proof(
    system="wagle",
    claim="the weights that WAGLE scores highest are those that forget: at 5 % density they forget more than random ones, the "
    "lowest-scored hardly, at no cost to the retain set",
    checks=checks,
    quick=False,
    note="A tiny model: no gain in utility over the dense run and none over plain |theta g_f| shows here; both stand beside "
    "the figures as baselines.",
)
