"""Tiny CLIP and tiny SigLIP: two-layer towers of width 64 that learn the scenes in about a minute.

`transformers` models of ordinary configuration, so whatever loads a CLIP loads these. A patch is 16 pixels wide: one
patch a cell. The figures of merit are functions of embeddings, and a caption counts as right when it states the facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from efface.catalog import Card
from efface.errors import InputError
from efface.lab.scene_texts import COLOUR_WORDS, LENGTH, NEGATIVES, NUMBERS, hard_negatives, scene_tokenizer
from efface.lab.scenes import SIDE, SceneSet, as_dataset, scene_set
from efface.learn.run import learn
from efface.learn.starts import StartConfig, new_dual_encoder
from efface.run.digests import digest_value
from efface.subjects.dual_encoder import DualEncoder
from efface.train.reference import cache_folder

CARD = Card(
    name="tiny-clip",
    system="tiny-multimodal-testbed",
    title="Tiny CLIP of digit scenes",
    summary="Scenes of coloured handwritten digits with captions, and a CLIP of 196 thousand parameters that learns them here.",
    paper="a world of this library; the model is CLIP, Radford et al., arXiv 2103.00020 (2021)",
    verb="lab",
    mechanism="lab",
    modalities=("image", "text"),
    subjects=("dual-encoder",),
    defaults_source="the specification tiny-multimodal-testbed",
)

Variant = Literal["clip", "siglip"]

SCENES, BATCH, STEPS = 20_000, 128, 2_000
RECIPE: dict[str, Any] = {
    "learning_rate": 2e-3, "batch_size": BATCH, "epochs": STEPS * BATCH / SCENES, "weight_decay": 0.05,
    "warmup_ratio": 0.1, "schedule": "cosine",
}  # fmt: skip
SIZE = StartConfig(width=64, depth=2, heads=4, image_size=SIDE, patch=16, context=LENGTH)


@dataclass(frozen=True)
class Quality:
    """How well a dual encoder knows the scenes; all are shares in [0, 1].

    Attributes:
        recall_1, recall_5: images whose 1 or 5 nearest captions hold one that states the facts.
        text_recall_1, text_recall_5: the same from captions to images.
        zero_shot: one-object images whose digit is told right.
        negatives: true caption above a false one, by kind (`scene_texts.NEGATIVES`).
    """

    recall_1: float
    recall_5: float
    text_recall_1: float
    text_recall_5: float
    zero_shot: float
    negatives: dict[str, float]


def new_tiny_clip(seed: int, variant: Variant = "clip") -> DualEncoder:
    """Untrained: `clip` has 196k parameters, `siglip` 225k (its image tower pools by attention).

    Raises:
        InputError: an unknown variant.
    """
    if variant not in ("clip", "siglip"):
        raise InputError(f"the variant '{variant}' of the tiny CLIP", "'clip' or 'siglip'")
    found = new_dual_encoder(SIZE, [], seed, sigmoid=variant == "siglip", tokenizer=scene_tokenizer())
    found.source = "lab: tiny CLIP, untrained"
    return found


def recall(queries: Tensor, keys: Tensor, query_meanings: Sequence[str], key_meanings: Sequence[str], k: int) -> float:
    """Share of queries with a key of equal meaning among the `k` nearest.

    Args:
        queries, keys: [N, D] and [M, D] unit rows.
        query_meanings, key_meanings: N and M statements (`SceneSet.meanings`).

    Raises:
        InputError: shapes that do not fit.
    """
    _fits(queries, query_meanings)
    _fits(keys, key_meanings)
    number = {meaning: i for i, meaning in enumerate(sorted({*query_meanings, *key_meanings}))}
    wanted = torch.tensor([number[meaning] for meaning in query_meanings])
    offered = torch.tensor([number[meaning] for meaning in key_meanings])
    nearest = (queries @ keys.T).topk(min(k, len(keys)), dim=1).indices  # [N, k]
    return float((offered[nearest] == wanted[:, None]).any(1).double().mean())


def zero_shot_accuracy(images: Tensor, classes: Tensor, labels: Sequence[int]) -> float:
    """Share of images [N, D] whose nearest class direction [C, D] is their label's."""
    _fits(images, labels)
    return float(((images @ classes.T).argmax(1) == torch.tensor(labels)).double().mean())


def wins(images: Tensor, right: Tensor, wrong: Tensor) -> float:
    """Share of rows where the image is nearer to the right text than to the wrong one; a tie counts one half. [N, D]."""
    margin = ((right - wrong) * images).sum(1)
    return float(((margin > 0).double() + 0.5 * (margin == 0).double()).mean())


def digit_classes(embed_texts: Any) -> Tensor:
    """[10, D] unit directions: the mean over colours of "a red seven", "a green seven", ... (Radford et al., prompts).

    Args:
        embed_texts: list of texts -> [N, D] unit rows.
    """
    texts = [f"a {colour} {number}" for number in NUMBERS for colour in COLOUR_WORDS]
    rows: Tensor = embed_texts(texts)
    return torch.nn.functional.normalize(rows.reshape(10, len(COLOUR_WORDS), -1).mean(1), dim=1)


def quality(clip: DualEncoder, scenes: SceneSet, *, seed: int = 0) -> Quality:
    """All figures of merit on one set of scenes.

    Args:
        seed: of the digits that replace true ones in false captions.
    """
    captions, meanings = scenes.captions, scenes.meanings
    images, texts = clip.image.embed(scenes.pictures()), clip.text.embed(captions)
    single = [i for i, scene in enumerate(scenes.scenes) if scene.relation is None]
    labels = [scenes.scenes[i].objects[0].digit for i in single]
    rng = np.random.default_rng(seed)
    pairs = zip(scenes.scenes, scenes.templates, strict=True)
    false = [(i, found) for i, pair in enumerate(pairs) if (found := hard_negatives(*pair, rng))]
    rows = [i for i, _ in false]
    return Quality(
        recall_1=recall(images, texts, meanings, meanings, 1),
        recall_5=recall(images, texts, meanings, meanings, 5),
        text_recall_1=recall(texts, images, meanings, meanings, 1),
        text_recall_5=recall(texts, images, meanings, meanings, 5),
        zero_shot=zero_shot_accuracy(images[single], digit_classes(clip.text.embed), labels),
        negatives={
            kind: wins(images[rows], texts[rows], clip.text.embed([found[kind] for _, found in false]))
            for kind in NEGATIVES
        },
    )


def _fits(rows: Tensor, names: Sequence[Any]) -> None:
    if rows.ndim != 2 or len(rows) != len(names):
        raise InputError(f"embeddings {list(rows.shape)} with {len(names)} labels", "[N, D] with N labels")


def tiny_clip(seed: int = 0, variant: Variant = "clip") -> DualEncoder:
    """Trained on 20,000 scenes by the library's own recipe, or loaded from the cache.

    Args:
        seed: of the scenes, the starting weights and the order of the batches.
        variant: `clip` (symmetric InfoNCE) or `siglip` (pairwise sigmoid).
    """
    start = new_tiny_clip(seed, variant)
    key = digest_value({
        "lab": "tiny-clip", "recipe": RECIPE, "seed": seed, "variant": variant, "scenes": SCENES, "start": start.digest,
    })  # fmt: skip
    folder = cache_folder() / "lab" / key.removeprefix("sha256:")[:24]
    data = as_dataset(scene_set("train", SCENES, seed))
    trained: DualEncoder = learn(variant, data, folder, model=start, seed=seed, **RECIPE)
    return trained
