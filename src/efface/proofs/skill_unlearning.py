"""Skill unlearning: a box in key space stops unseen sums and lets words pass; shifting neurons hurts sums more than words.

A tiny decoder that adds two digits modulo ten and turns words round (`lab/skills`). Both methods of arXiv 2503.21730 are shown 60
sums and 400 words, and tested on the 40 other sums and 200 other words. The box has the paper's layer, the last, and its alpha
is calibrated on the 400 words at half a per cent; nothing was chosen on a seed. The other layers and widths are reported. So is
a second world, whose prompts carry marks of their skill: it was added after the first was seen not to hold, and is not judged.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset

from efface.data.columns import canonical
from efface.forget.guards.abstention import Abstention
from efface.forget.guards.key_space import KeySpaceConfig, calibrated_alpha, key_box
from efface.lab.facts import recall
from efface.lab.skills import Skills, skill_model, skills
from efface.lab.unlearn import forgotten
from efface.proofs.proof import Check, Proof
from efface.subjects import CausalLM
from efface.subjects.guarded import bare
from efface.subjects.hooks import Site, layers_of
from efface.subjects.neuron_statistics import prompt_keys

SEEDS = (0, 1, 2)
FALSE_ALARMS = 0.005
"""Well below the 2 % that is judged: 200 words are few."""

PLACES = {"box": False, "marked box": True}
WIDTHS = (1.0, 1.4, 2.0)
SHARE = 0.3
ADJUSTED: dict[str, tuple[str, dict[str, Any]]] = {
    "neuron adjust": ("neuron-adjust", {"share": SHARE}),
    "pruning": ("selective-pruning", {"share": SHARE}),
    "neuron adjust, signed": ("neuron-adjust", {"share": SHARE, "select": "signed"}),
    "neuron adjust, standardised": ("neuron-adjust", {"share": SHARE, "select": "standardised"}),
    "neuron adjust, 3 %": ("neuron-adjust", {"share": 0.03}),
}
Figures = dict[str, list[float]]


def refused(subject: CausalLM, data: Dataset) -> float:
    """Share of rows whose generated answer is the refusal, and nothing else."""
    refusal = Abstention.of(subject, KeySpaceConfig().refusal).tokens[:-1].tolist()
    return float(
        np.mean([ids == refusal for ids in subject.generate_all(subject.encode_prompts(data), max_new_tokens=12)])
    )


def behind_junk(data: Dataset) -> Dataset:
    """The same questions behind two letters that mean nothing there."""
    return canonical([{**row, "question": f"q z {row['question']}"} for row in data], "behind junk")


def box_figures(model: CausalLM, world: Skills, found: Figures, place: str) -> None:
    """What the guard does on one model, as it would be used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "key-space: the box stops")  # how much it stops is what is measured
        with forgotten("key-space", model, world.request, false_alarms=FALSE_ALARMS) as edited:
            found.setdefault(f"{place}/sums", []).append(refused(edited, world.sums))
            found.setdefault(f"{place}/words", []).append(refused(edited, world.words))
            found.setdefault(f"{place}/junk", []).append(refused(edited, behind_junk(world.sums)))
            found.setdefault(f"{place}/scored", []).append(recall(edited, world.sums))
            with bare(edited) as weights:
                found.setdefault(f"{place}/weights", []).append(recall(weights, world.sums))


def curve(model: CausalLM, world: Skills, found: Figures, place: str) -> None:
    """Shares of sums and words inside the box, for every layer at every width and at the calibrated one."""
    assert world.request.retain is not None
    sets = {"probes": world.request.forget, "kept": world.request.retain, "sums": world.sums, "words": world.words}
    for layer in range(len(layers_of(model.model))):
        keys = {
            name: prompt_keys(model, model.encode_prompts(data), Site("keys", layer)) for name, data in sets.items()
        }
        box = key_box(keys["probes"])
        own = calibrated_alpha(box.distances(keys["kept"]), FALSE_ALARMS, KeySpaceConfig().widest)
        found.setdefault(f"{place}/{layer}/alpha", []).append(own)
        for width, alpha in (("calibrated", own), *((f"alpha {width:g}", width) for width in WIDTHS)):
            for name in ("sums", "words"):
                inside = float((box.distances(keys[name]) < alpha).float().mean())
                found.setdefault(f"{place}/{layer}/{width}/{name}", []).append(inside)


def adjusted_figures(model: CausalLM, world: Skills, found: Figures) -> None:
    """Accuracy on both skills under each way of changing neurons, and the fall on sums beyond the fall on words."""
    before = {"sums": recall(model, world.sums), "words": recall(model, world.words)}
    for name, values in before.items():
        found.setdefault(f"before/{name}", []).append(values)
    for name, (method, settings) in ADJUSTED.items():
        with forgotten(method, model, world.request, **settings) as edited:
            sums, words = recall(edited, world.sums), recall(edited, world.words)
        found.setdefault(f"{name}/sums", []).append(sums)
        found.setdefault(f"{name}/words", []).append(words)
        found.setdefault(f"{name}/beyond", []).append((before["sums"] - sums) - (before["words"] - words))


def checks() -> list[Check]:
    """Judged figures are the worst of the seeds."""
    found: Figures = {}
    for place, marked in PLACES.items():
        world = skills(marked=marked)
        for seed in SEEDS:
            model = skill_model(seed, marked=marked)
            box_figures(model, world, found, place)
            curve(model, world, found, place)
            if not marked:
                adjusted_figures(model, world, found)

    def told(name: str, figure: str, pick: Callable[[Sequence[float]], float] = min) -> Check:
        return Check(name=name, figure=pick(found[figure]), relation="reported", seeds=SEEDS)

    def mean(values: Sequence[float]) -> float:
        return float(np.mean(values))

    depth = len(layers_of(model.model))
    lead = [ours - theirs for ours, theirs in zip(found["neuron adjust/beyond"], found["pruning/beyond"], strict=True)]
    return [
        Check(name="box, last layer: share of unseen sums that are refused", figure=min(found["box/sums"]), relation=">=",
              threshold=0.85, seeds=SEEDS),
        Check(name="box, last layer: share of unseen words that are refused", figure=max(found["box/words"]), relation="<=",
              threshold=0.02, seeds=SEEDS),
        Check(name="neuron adjust, 30 %: fall on sums minus fall on words (baseline: pruning)",
              figure=min(found["neuron adjust/beyond"]), relation=">", threshold=0.0, baseline=max(found["pruning/beyond"]),
              seeds=SEEDS),
        Check(name="neuron adjust, 30 %: the same minus that of pruning, seed by seed", figure=min(lead), relation=">",
              threshold=0.0, seeds=SEEDS),
        *(told(f"accuracy on {skill} before", f"before/{skill}") for skill in ("sums", "words")),
        *(told(f"{name}{', 30 %' if '%' not in name else ''}: accuracy on {skill}, mean", f"{name}/{skill}", mean)
          for name in ADJUSTED for skill in ("sums", "words")),
        told("marked box, last layer: share of unseen sums that are refused", "marked box/sums"),
        told("marked box, last layer: share of unseen words that are refused", "marked box/words", max),
        *(told(f"{place}: {what}", f"{place}/{figure}", pick) for place in PLACES for what, figure, pick in (
            ("accuracy on sums by score table, largest", "scored", max),
            ("accuracy on sums of the weights alone", "weights", min),
            ("share of sums behind two junk letters that are refused", "junk", min),
        )),
        *(told(f"{place}, layer {layer}: calibrated alpha, smallest", f"{place}/{layer}/alpha")
          for place in PLACES for layer in range(depth)),
        *(told(f"{place}, layer {layer}, {width}: {skill} in the box, worst", f"{place}/{layer}/{width}/{skill}", pick)
          for place in PLACES for layer in range(depth)
          for width in ("calibrated", *(f"alpha {width:g}" for width in WIDTHS))
          for skill, pick in (("sums", min), ("words", max))),
    ]  # fmt: skip


PROOF = Proof(
    system="skill-unlearning",
    claim="Abstaining inside the forget skill's box in key space stops most of its unseen prompts and almost none of another "
    "skill's; shifting neurons to the retain distribution harms the forget skill more than the other, and more than pruning",
    checks=checks,
    quick=False,
    note="Two skills of one tiny decoder; 400 prompts calibrate the box. Judged: the last layer (the paper's), where the prompts "
    "of both skills end in one token. Other layers, fixed widths and a world whose prompts carry marks of their skill are "
    "reported. Neurons are adjusted at 30 % as in the specification; the paper's 3 % is reported.",
)
