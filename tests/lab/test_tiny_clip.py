"""The tiny CLIP: its size, its ids, that it goes through a folder unharmed, and its figures of merit."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from efface.errors import InputError
from efface.lab import tiny_clip as lab
from efface.lab.scene_texts import LENGTH, NEGATIVES, NUMBERS, caption, scene_tokenizer
from efface.lab.scenes import SceneSet, scene_set
from efface.learn.starts import image_processor


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))


def embedded(parts: tuple[Any, Any, Any], scenes: SceneSet) -> tuple[Tensor, Tensor]:
    model, tokenizer, processor = parts
    texts = tokenizer(scenes.captions, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        out = model(**texts, **processor(images=scenes.pictures(), return_tensors="pt"))
    return out.image_embeds, out.text_embeds


def parts(clip: Any) -> tuple[Any, Any, Any]:
    """Model, tokenizer and image processor of a dual encoder."""
    return clip.model, clip.tokenizer, clip.image_processor


@pytest.mark.parametrize(("variant", "parameters"), [("clip", 196_033), ("siglip", 225_218)])
def test_new_models(variant: lab.Variant, parameters: int, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    made, again, other = (parts(lab.new_tiny_clip(seed, variant)) for seed in (0, 0, 1))
    model, tokenizer, _ = made
    assert sum(part.numel() for part in model.parameters()) == parameters
    weights, same, different = (dict(found[0].named_parameters()) for found in (made, again, other))
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert not all(torch.equal(weights[name], different[name]) for name in weights)
    text = model.config.text_config
    assert (text.pad_token_id, text.bos_token_id, text.eos_token_id) == (0, 1, len(tokenizer) - 1)
    scenes = scene_set("test", 6, 0)
    before = embedded(made, scenes)
    assert before[0].shape == before[1].shape == (6, 64)
    for part in made:
        part.save_pretrained(tmp_path / "model")
    assert not list((tmp_path / "model").glob("*.bin"))
    loaded = tuple(auto.from_pretrained(tmp_path / "model") for auto in (AutoModel, AutoTokenizer, AutoImageProcessor))
    assert type(loaded[0]) is type(model)
    for mine, theirs in zip(before, embedded(loaded, scenes), strict=True):
        assert torch.equal(mine, theirs)


def test_siglip_starts_where_the_paper_does() -> None:
    model, _, _ = parts(lab.new_tiny_clip(0, "siglip"))
    assert float(model.logit_scale.detach()) == pytest.approx(math.log(10))
    assert float(model.logit_bias.detach()) == -10


def test_pixels_reach_the_model_as_they_are() -> None:
    scenes = scene_set("test", 4, 0)
    for siglip in (False, True):
        pixels = image_processor(32, siglip=siglip)(images=scenes.pictures(), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(pixels, scenes.images / 127.5 - 1, atol=1e-6, rtol=0)


def test_clip_pools_at_the_end_of_the_text() -> None:
    """What stands behind the first eos does not count, and the words do."""
    model, tokenizer, _ = parts(lab.new_tiny_clip(0))
    short = tokenizer(["a red seven"], return_tensors="pt")
    padded = tokenizer(["a red seven"], padding="max_length", return_tensors="pt")
    other = tokenizer(["a seven red"], return_tensors="pt")
    with torch.no_grad():
        rows = [model.get_text_features(**inputs).pooler_output for inputs in (short, padded, other)]
    torch.testing.assert_close(rows[0], rows[1], atol=1e-5, rtol=0)
    assert not torch.allclose(rows[0], rows[2], atol=1e-4)


@pytest.mark.parametrize("variant", ["clip", "siglip"])
def test_tiny_clip_trains_once_and_comes_back(variant: lab.Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps of the real recipe on few scenes: they move the weights, and the second call reads the folder."""
    monkeypatch.setattr(lab, "SCENES", 64)
    monkeypatch.setattr(lab, "RECIPE", {**lab.RECIPE, "batch_size": 32, "epochs": 3})
    trained = lab.tiny_clip(0, variant)
    untrained, _, _ = parts(lab.new_tiny_clip(0, variant))
    assert trained.family == variant
    assert not torch.equal(trained.log_scale.detach(), untrained.logit_scale.detach())
    monkeypatch.setattr("efface.learn.contrastive.fit", None)  # not called again
    assert lab.tiny_clip(0, variant).digest == trained.digest
    scenes = scene_set("test", 5, 0)
    assert trained.image.embed(scenes.pictures()).shape == trained.text.embed(scenes.captions).shape == (5, 64)


def test_unknown_variant() -> None:
    with pytest.raises(InputError, match="'coca'"):
        lab.new_tiny_clip(0, "coca")  # type: ignore[arg-type]


def test_recall_equals_a_loop_and_counts_equal_facts() -> None:
    rng = np.random.default_rng(0)
    queries, keys = (torch.tensor(rng.standard_normal((size, 5))) for size in (30, 20))
    asked, offered = ([str(number) for number in rng.integers(0, 6, size)] for size in (30, 20))
    for k in (1, 3, 50):
        hits = []
        for query, wanted in zip(queries, asked, strict=True):
            order = sorted(range(20), key=lambda j: -float(query @ keys[j]))
            hits.append(any(offered[j] == wanted for j in order[:k]))
        assert lab.recall(queries, keys, asked, offered, k) == pytest.approx(np.mean(hits))
    eye = torch.eye(3)
    assert lab.recall(eye, eye[[1, 0, 2]], ["a", "a", "b"], ["a", "a", "b"], 1) == 1  # the twin's caption is right
    with pytest.raises(InputError, match=r"\[3, 3\] with 2 labels"):
        lab.recall(eye, eye, ["a", "b"], ["a", "b", "c"], 1)


def test_wins_and_zero_shot() -> None:
    images = torch.eye(4)[:3]
    right, wrong = torch.eye(4)[[0, 3, 2]], torch.eye(4)[[1, 1, 2]]
    assert lab.wins(images, right, wrong) == pytest.approx((1 + 0 + 0.5) / 3)
    assert lab.zero_shot_accuracy(images, torch.eye(4), [0, 1, 3]) == pytest.approx(2 / 3)


class Knowing:
    """Embeds a text, or a picture whose caption it was told, as the words at their places: an oracle of all facts."""

    def __init__(self, scenes: SceneSet, *, bag: bool) -> None:
        self.told = {
            picture.tobytes(): caption(scene) for picture, scene in zip(scenes.pictures(), scenes.scenes, strict=True)
        }
        self.bag, self.tokenizer = bag, scene_tokenizer()

    def embed(self, items: list[Any], batch_size: int = 64) -> Tensor:
        rows = torch.zeros(len(items), LENGTH, len(self.tokenizer))
        for row, item in zip(rows, items, strict=True):
            text = item if isinstance(item, str) else self.told[item.tobytes()]
            text = text.removeprefix("a picture of ").removeprefix("there is ").removeprefix("the image shows ")
            for place, word in enumerate(self.tokenizer(text, add_special_tokens=False)["input_ids"]):
                row[0 if self.bag else place, word] += 1
        return torch.nn.functional.normalize(rows.flatten(1), dim=1)


def test_quality_of_an_oracle_and_of_a_bag_of_words() -> None:
    scenes = scene_set("test", 200, 0)
    for bag in (False, True):
        tower = Knowing(scenes, bag=bag)
        found = lab.quality(SimpleNamespace(image=tower, text=tower), scenes)  # type: ignore[arg-type]
        assert found.zero_shot == 1
        assert tuple(found.negatives) == NEGATIVES
        assert found.negatives["digit_change"] == found.negatives["relation_flip"] == 1
        if bag:  # a swap keeps the bag of words, so it is told apart by chance alone
            assert found.negatives["colour_swap"] == found.negatives["digit_swap"] == 0.5
        else:
            assert found.recall_1 == found.recall_5 == found.text_recall_1 == found.text_recall_5 == 1
            assert found.negatives["colour_swap"] == found.negatives["digit_swap"] == 1
    assert lab.digit_classes(tower.embed).shape == (len(NUMBERS), LENGTH * 47)
