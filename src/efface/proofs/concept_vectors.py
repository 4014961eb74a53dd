"""Concept vectors: noise in the value vectors that write a concept removes it; training to the same answers leaves them be.

Elements world, concept = a block (s, p, d, f): facts whose answer is that letter (arXiv 2406.11614). The 576 value vectors are
ranked by mean k_j (E (w * v_j))[letter] over the concept's prompts, and the top 32 replaced by noise of the same size.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from datasets import Dataset

from efface.audit.metrics.concept_vectors import capture, intrinsic
from efface.data.columns import canonical
from efface.data.request import Request
from efface.forget.edits.needle import Needle, NeedleConfig
from efface.forget.method import find_method
from efface.lab.facts import WORLDS, fact_model, fact_rows, first_token_accuracy, split
from efface.lab.unlearn import forgotten
from efface.measure.value_vectors import Place
from efface.proofs.proof import Check, Proof
from efface.subjects import CausalLM

SEEDS = (0, 1, 2, 3, 4)
BLOCKS = "spdf"
COUNT = 32
NEEDLE = {"count": COUNT, "noise": "replace", "scale": 1.0, "relative": True}
BATCH = 32
TRAINED = {
    "learning_rate": 3e-4, "beta": 0.5, "batch_size": BATCH, "warmup_ratio": 0.0, "weight_decay": 0.0, "schedule": "constant",
}  # fmt: skip
STEPS = 150


def trained_rows() -> Dataset:
    """Every row that the original model was trained on."""
    request, background, forms = split("elements")
    assert request.retain is not None
    assert background is not None
    known = {*request.retain["id"], *background["id"], *forms["id"]}
    return canonical([row for row in fact_rows(WORLDS["elements"]) if row["id"] in known], "elements")


def parts(data: Dataset, block: str) -> tuple[Dataset, Dataset, Dataset]:
    """Rows of the concept, of the other blocks, and of the other relations."""
    relations = [identity.split("/")[1] for identity in data["id"]]
    letters = [answer.split()[0] for answer in data["answer"]]
    own = [r == "block" and a == block for r, a in zip(relations, letters, strict=True)]
    other = [r == "block" and a != block for r, a in zip(relations, letters, strict=True)]
    rest = [r != "block" for r in relations]
    found = [data.select([i for i, yes in enumerate(flags) if yes]) for flags in (own, other, rest)]
    return found[0], found[1], found[2]


def random_vectors(subject: CausalLM, chosen: list[Place], seed: int) -> str:
    """As many vectors drawn from all others."""
    from efface.subjects.hooks import layers_of, value_matrix

    places = [
        Place(layer, j) for layer in range(len(layers_of(subject.model)))
        for j in range(value_matrix(subject.model, layer).shape[1])
    ]  # fmt: skip
    pool = [place for place in places if place not in set(chosen)]
    picked = np.random.default_rng(seed).choice(len(pool), len(chosen), replace=False)
    return ",".join(f"{pool[i].layer}:{pool[i].dim}" for i in sorted(picked))


def checks() -> list[Check]:
    """Means over five seeds, as the specification's prototype gives them."""
    data = trained_rows()
    falls: dict[str, list[float]] = {block: [] for block in BLOCKS}
    others, rests, drops, trained, cosines = [], [], [], [], []
    for seed in SEEDS:
        model = fact_model("elements", seed)
        for block in BLOCKS:
            own, other, rest = parts(data, block)
            request = Request(forget=own, retain=rest)
            start = first_token_accuracy(model, own)
            config = NeedleConfig.parse(NEEDLE)
            places = Needle.places(model, request, config)
            with forgotten("needle", model, request, **NEEDLE, seed=seed) as edited:
                falls[block].append(start - first_token_accuracy(edited, own))
                others.append(first_token_accuracy(edited, other))
                rests.append(first_token_accuracy(edited, rest))
            with forgotten(
                "needle", model, request, **NEEDLE, seed=seed, vectors=random_vectors(model, places, seed)
            ) as edited:
                drops.append(start - first_token_accuracy(edited, own))
            accuracy, cosine = by_training(model, request, places, seed)
            trained.append(accuracy)
            cosines.append(cosine)
    means = {block: float(np.mean(found)) for block, found in falls.items()}
    return [
        Check(name="concepts of four whose accuracy falls by more than 0.5 (mean of the seeds): "
              + ", ".join(f"{block} {fall:.2f}" for block, fall in means.items()),
              figure=float(sum(fall > 0.5 for fall in means.values())), relation=">=", threshold=3.0, seeds=SEEDS),
        Check(name="accuracy on the other blocks", figure=float(np.mean(others)), relation=">=", threshold=0.9, seeds=SEEDS),
        Check(name="accuracy on the other relations", figure=float(np.mean(rests)), relation=">=", threshold=0.98,
              seeds=SEEDS),
        Check(name="fall of the concept with as many random vectors", figure=float(np.mean(drops)), relation="<=",
              threshold=0.02, baseline=float(np.mean(list(means.values()))), seeds=SEEDS),
        Check(name="accuracy on the concept after NPO, worst run", figure=max(trained), relation="<", threshold=0.1,
              seeds=SEEDS),
        Check(name="mean cosine of the located vectors before and after NPO, worst run", figure=min(cosines), relation=">",
              threshold=0.98, seeds=SEEDS),
    ]  # fmt: skip


def by_training(model: CausalLM, request: Request, places: list[Place], seed: int) -> tuple[float, float]:
    """Accuracy on the concept and mean cosine of the vectors after 150 steps of NPO with a retain term."""
    method = find_method("npo")
    epochs = STEPS * min(BATCH, len(request.forget)) / len(request.forget)
    config = method.configure({**TRAINED, "epochs": epochs, "seed": seed})
    before = capture(model, places)
    with tempfile.TemporaryDirectory(prefix="efface-proof-") as folder:
        edit = method.fit(model, request, config, work=Path(folder) / "work", out=Path(folder) / "edit").edit
        edit.apply(model)
        try:
            after = capture(model, places, before=before)
            accuracy = first_token_accuracy(model, request.forget)
        finally:
            edit.remove(model)
    return accuracy, float(intrinsic(before, after).cosine.mean())


PROOF = Proof(
    system="concept-vectors",
    claim="Ruining the few value vectors that write a concept removes it and nothing else, while unlearning by training "
    "changes the answers and leaves those vectors as they were",
    checks=checks,
    quick=False,
    note="Small models spread a concept over tens of vectors: 32 of 576 here, one in the paper's 7B models. 'No drop' of the "
    "random vectors is read as at most 0.02. NPO's learning rate is not in the specification.",
)
