"""The scenes: what is drawn where, who shares glyphs with whom, what captions state, and which captions are false."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from efface.errors import InputError
from efface.lab import scene_texts, scenes
from efface.lab.scene_texts import Object, Scene, caption, hard_negatives, probe_texts, scene_tokenizer, word_tokenizer
from efface.lab.scenes import CELLS, COLOURS, as_dataset, object_scenes, scene_set

WHERE = {"left of": (0, 1), "right of": (0, -1), "above": (1, 0), "below": (-1, 0)}  # step to the second: down, right


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))


def test_a_set_is_its_seed_and_comes_back_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = scene_set("train", 40, 0), scene_set("train", 40, 1)
    assert first.images.shape == (40, 3, 32, 32)
    assert first.images.dtype == torch.uint8
    assert not torch.equal(first.images, other.images)
    (path,) = (tmp_path / "cache" / "lab").glob(f"{_newest(tmp_path, first)}.safetensors")
    assert json.loads(path.with_suffix(".json").read_text())["seed"] == 0
    with monkeypatch.context() as patch:
        patch.setattr(scenes, "_draw", None)  # not called: the file is read
        again = scene_set("train", 40, 0)
    assert torch.equal(again.images, first.images)
    assert (again.scenes, again.templates) == (first.scenes, first.templates)
    path.write_bytes(path.read_bytes()[:1000])  # damaged: made anew, with the same bits
    assert torch.equal(scene_set("train", 40, 0).images, first.images)
    assert not list(path.parent.glob("*partial*"))


def _newest(tmp_path: Path, wanted: scenes.SceneSet) -> str:
    for path in (tmp_path / "cache" / "lab").glob("*.json"):
        if json.loads(path.read_text())["seed"] == wanted.seed:
            return path.stem
    raise AssertionError("no recipe beside the file")


def test_glyphs_of_test_scenes_are_unseen() -> None:
    rng = np.random.default_rng(0)
    drawn = {split: set(scenes._draw(rng, 4000, split)[1].ravel().tolist()) for split in ("train", "test")}
    assert drawn["train"] <= set(range(1200))
    assert drawn["test"] == set(range(1200, 1797))
    digits, order = load_digits(), np.random.default_rng(0).permutation(1797)
    ink, truth = scenes._glyphs()
    np.testing.assert_array_equal(truth, digits.target[order])
    np.testing.assert_array_equal(ink[7], np.kron(digits.images[order[7]] / 16, np.ones((2, 2))).astype(np.float32))


def test_pixels_follow_from_the_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise a scene is, pixel by pixel, ink times colour over grey in the object's cell."""
    monkeypatch.setattr(scenes, "NOISE", 0.0)
    rng = np.random.default_rng(4)
    facts, glyphs = scenes._draw(rng, 30, "train")
    images = scenes._render(rng, facts, glyphs)
    ink, _ = scenes._glyphs()
    for row, pair, image in zip(facts, glyphs, images, strict=True):
        scene = scenes._scene(row)
        taken = [item.cell for item in scene.objects]
        free = next(CELLS.index(cell) for cell in CELLS if cell not in taken)
        grey = image[0, 16 * (free // 2), 16 * (free % 2)] / 255
        assert 0 <= grey <= 0.25 + 1 / 255
        expected = np.full((3, 32, 32), grey)
        for item, glyph in zip(scene.objects, pair, strict=False):
            place = CELLS.index(item.cell)
            for channel, y, x in itertools.product(range(3), range(16), range(16)):
                alpha, at = ink[glyph, y, x], (channel, 16 * (place // 2) + y, 16 * (place % 2) + x)
                expected[at] = alpha * COLOURS[item.colour][channel] + (1 - alpha) * grey
        assert np.abs(expected - image / 255).max() <= 1.01 / 255  # two roundings


def test_facts_are_consistent() -> None:
    made = scene_set("test", 3000, 0)
    two = [scene for scene in made.scenes if scene.relation]
    assert 0.67 < len(two) / 3000 < 0.73
    for scene in two:
        first, second = (divmod(CELLS.index(item.cell), 2) for item in scene.objects)
        assert (second[0] - first[0], second[1] - first[1]) == WHERE[scene.relation or ""]
    for part in ("digit", "colour", "cell"):
        counts = np.unique([getattr(item, part) for scene in made.scenes for item in scene.objects], return_counts=True)
        assert len(counts[0]) == {"digit": 10, "colour": 6, "cell": 4}[part]
        assert counts[1].min() > 0.75 * counts[1].max()
    assert set(made.templates) == {0, 1, 2, 3}
    assert {scene.relation for scene in two} == set(WHERE)


def test_captions_state_the_facts() -> None:
    scene = Scene((Object(3, "red", "northwest"), Object(7, "blue", "northeast")), "left of")
    assert caption(scene) == "a red three left of a blue seven"
    assert caption(scene, 2) == "there is a red three left of a blue seven"
    turned = Scene(scene.objects[::-1], "right of")
    lower = Scene((Object(3, "red", "southwest"), Object(7, "blue", "southeast")), "left of")
    assert scene.meaning == turned.meaning == lower.meaning
    assert len({scene.meaning, Scene(scene.objects, "right of").meaning, Scene(scene.objects[:1]).meaning}) == 3
    above, below = Scene(scene.objects, "above"), Scene(scene.objects[::-1], "below")
    assert above.meaning == below.meaning != scene.meaning
    with pytest.raises(InputError, match="2 objects with the relation None"):
        Scene(scene.objects)
    with pytest.raises(InputError, match="'near'"):
        Scene(scene.objects, "near")


def test_hard_negatives_are_false_and_minimal() -> None:
    rng = np.random.default_rng(0)
    first, second = Object(3, "red", "northwest"), Object(7, "blue", "northeast")
    found = hard_negatives(Scene((first, second), "left of"), 1, rng)
    assert found is not None
    assert tuple(found) == scene_texts.NEGATIVES
    assert found["colour_swap"] == "a picture of a blue three left of a red seven"
    assert found["digit_swap"] == "a picture of a red seven left of a blue three"
    assert found["relation_flip"] == "a picture of a red three right of a blue seven"
    words = found["digit_change"].split()
    assert " ".join([*words[:5], "three", *words[6:]]) == "a picture of a red three left of a blue seven"
    assert words[5] not in ("three", "seven")
    assert hard_negatives(Scene((first,)), 0, rng) is None
    assert hard_negatives(Scene((first, Object(3, "blue", "northeast")), "left of"), 0, rng) is None
    assert hard_negatives(Scene((first, Object(7, "red", "northeast")), "left of"), 0, rng) is None
    made = scene_set("test", 400, 3)
    for scene, template in zip(made.scenes, made.templates, strict=True):
        false = hard_negatives(scene, template, rng)
        assert false is None or caption(scene, template) not in false.values()
        assert false is None or len(set(false.values())) == 4


def test_probes() -> None:
    blank, noise = scenes.blank_images(50, 0), scenes.noise_images(50, 0)
    assert blank.shape == noise.shape == (50, 3, 32, 32)
    assert float(blank.double().mean((1, 2, 3)).max()) < (0.25 + 0.01) * 255
    assert float(blank.double().std((1, 2, 3)).max()) < 0.035 * 255
    assert abs(float(noise.double().mean()) - 127.5) < 1
    assert torch.equal(blank, scenes.blank_images(50, 0))
    for number in (1, 2):
        made = object_scenes(number, 20, 0)  # type: ignore[arg-type]
        assert all(len(scene.objects) == number for scene in made.scenes)
    texts = probe_texts()
    assert texts["nothing"] == ["a picture"]
    assert "a red" in texts["colour"]
    assert "seven" in texts["digit"]
    assert "a red seven" in texts["object"]
    assert len(texts["object"]) == 60


def test_the_tokenizer_is_what_clip_wants() -> None:
    tokenizer = scene_tokenizer()
    assert len(tokenizer) == 47
    special = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id)
    assert special == (0, 1, 3, 46)
    captions = scene_set("train", 500, 0).captions
    made = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    ids, mask = made["input_ids"], made["attention_mask"]
    assert ids.shape == (500, 16)
    assert not (ids == 3).any()
    assert (ids[:, 0] == 1).all()
    assert torch.equal((ids == 46).int().argmax(1), ids.argmax(1))  # CLIP's two rules agree
    assert torch.equal(mask.sum(1), ids.argmax(1) + 1)
    assert torch.equal(mask == 0, ids == 0)
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == captions[0]
    assert not {3} & set(itertools.chain(*tokenizer(list(itertools.chain(*probe_texts().values())))["input_ids"]))
    assert tokenizer("A red Dragon").input_ids == [1, *tokenizer("a red").input_ids[1:3], 3, 46]
    assert tokenizer("").input_ids == [1, 46]
    long = tokenizer(" ".join(["red"] * 40), truncation=True).input_ids
    assert (len(long), long[-1]) == (16, 46)


def test_word_tokenizer_refuses_repeated_words() -> None:
    with pytest.raises(InputError, match="3 words of which 2"):
        word_tokenizer(["a", "b", "a"], 8)


def test_as_dataset_keeps_every_pixel() -> None:
    made = scene_set("test", 12, 2)
    data = as_dataset(made)
    assert data.column_names == ["id", "text", "image"]
    assert data["text"][:] == made.captions
    assert len(set(data["id"])) == 12
    pixels = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in data["image"]]
    np.testing.assert_array_equal(np.stack(pixels).transpose(0, 3, 1, 2), made.images.numpy())
    np.testing.assert_array_equal(np.stack(pixels), np.stack(list(map(np.asarray, made.pictures()))))


def test_bad_input() -> None:
    with pytest.raises(InputError, match="'valid'"):
        scene_set("valid", 3, 0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="0 scenes"):
        scene_set("train", 0, 0)
    with pytest.raises(InputError, match="3 objects"):
        object_scenes(3, 3, 0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\[3, 32, 32\]"):
        scenes.as_pictures(torch.zeros(3, 32, 32, dtype=torch.uint8))
