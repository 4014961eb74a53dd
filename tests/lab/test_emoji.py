"""The emoji pairs (where the data is), placeholders, and the small CLIP for them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image

from efface.errors import InputError
from efface.lab import emoji as lab


def pixels(data: Dataset) -> np.ndarray:  # type: ignore[type-arg]
    return np.stack([np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in data["image"]])


@pytest.fixture(scope="module")
def pairs() -> Dataset:
    folder = lab.data_folder() / "emoji"
    if not (folder / "images.png").is_file():
        pytest.skip(f"no emoji pictures in {folder}; set EFFACE_DATA")
    return lab.emoji()


@pytest.mark.data
def test_pictures_are_the_tiles_of_the_sheet(pairs: Dataset) -> None:
    assert len(pairs) == lab.COUNT == len(set(pairs["text"])) == len(set(pairs["id"]))
    sheet = np.asarray(Image.open(lab.data_folder() / "emoji" / "images.png").convert("RGB"))
    found = pixels(pairs)
    assert found.shape == (1899, 32, 32, 3)
    for i in (0, 39, 40, 777, 1898):
        top, left = 32 * (i // 40), 32 * (i % 40)
        np.testing.assert_array_equal(found[i], sheet[top : top + 32, left : left + 32])
    assert pairs["text"][:] == pairs["en"][:]
    assert all(all(row[language] for language in lab.LANGUAGES) for row in pairs.remove_columns("image"))


@pytest.mark.data
def test_names_fit_their_pictures(pairs: Dataset) -> None:
    """A few whose colour is in the name: the tile order is right."""
    at = {name: i for i, name in enumerate(pairs["text"])}
    found = pixels(pairs)
    for name, colour in {
        "red square": (220, 60, 50), "green square": (80, 160, 50), "blue square": (30, 130, 220),
        "black large square": (70, 70, 70),
    }.items():  # fmt: skip
        assert np.abs(found[at[name], 14:18, 14:18].mean((0, 1)) - colour).max() < 45, name


@pytest.mark.data
def test_every_name_has_its_own_tokens(pairs: Dataset) -> None:
    clip = lab.new_emoji_clip(pairs["text"][:], 0)
    model, tokenizer = clip.model, clip.tokenizer
    ids = tokenizer(pairs["text"][:])["input_ids"]
    assert len(set(map(tuple, ids))) == lab.COUNT
    assert max(map(len, ids)) <= 16
    assert all(3 not in row and row[-1] == max(row) == tokenizer.eos_token_id for row in ids)
    assert model.config.text_config.vocab_size == len(tokenizer)


def test_missing_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"emoji/images.png; expected .*; set EFFACE_DATA"):
        lab.emoji()
    Image.new("RGB", (64, 64)).save(tmp_path / "images.png")
    (tmp_path / "captions.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="with 1 rows; expected 1899 rows"):
        lab.emoji(tmp_path)
    (tmp_path / "captions.jsonl").write_text("no\n")
    with pytest.raises(InputError, match="not JSON lines"):
        lab.emoji(tmp_path)


def test_placeholders_are_of_their_kind() -> None:
    made, again, other = (lab.placeholders(40, seed) for seed in (0, 0, 1))
    assert made["image"][:] == again["image"][:] != other["image"][:]
    assert made["kind"][:8] == [*lab.KINDS] * 2
    assert len(set(made["id"])) == 40
    found = pixels(made)
    assert (found == found[..., :1]).all()  # grey, all of them
    for kind, picture in zip(made["kind"], found, strict=True):
        shades = len(np.unique(picture))
        assert shades == 1 if kind == "blank" else shades == 2
        ink = (picture[..., 0] != picture[0, 0, 0]).mean()
        assert ink == 0 if kind == "blank" else 0.05 < ink < 0.6
    icons = {picture.tobytes() for kind, picture in zip(made["kind"], found, strict=True) if kind != "blank"}
    assert len(icons) > 25  # of 30
    with pytest.raises(InputError, match="0 placeholders"):
        lab.placeholders(0, 0)


def test_the_emoji_clip_tells_texts_and_pictures_apart() -> None:
    texts = ["red heart", "grinning face", "flag: Åland"]
    assert lab.name_words(texts) == [":", "face", "flag", "grinning", "heart", "red", "åland"]
    clip = lab.new_emoji_clip(texts, 0)
    model, tokenizer, processor = clip.model, clip.tokenizer, clip.image_processor
    twin = lab.new_emoji_clip(texts, 0).model
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    pictures = [Image.new("RGB", (32, 32), colour) for colour in ("red", "yellow", "blue")]
    with torch.no_grad():
        out = model(**inputs, **processor(images=pictures, return_tensors="pt"))
    assert out.logits_per_image.shape == (3, 3)
    assert out.image_embeds.shape == (3, 128)
    assert not torch.allclose(out.text_embeds[0], out.text_embeds[1])


@pytest.mark.data
def test_web_pairs_mix_recurring_placeholders_in(pairs: Dataset) -> None:
    found = lab.web_pairs(0, copies=2, files=3, captions=5)
    assert len(found) == 2 * (lab.COUNT + 3 * 5)
    missing = [row for row in found if "missing" in row["id"]]
    assert len({row["image"]["bytes"] for row in missing}) == 3
    assert len({row["text"] for row in missing}) > 15, "ever other captions"
    assert {row["text"] for row in missing} <= set(pairs["text"])
    assert list(found["text"][: lab.COUNT]) == list(pairs["text"])
    assert found["image"][0]["bytes"] != found["image"][lab.COUNT + 15]["bytes"], "shifted otherwise"
    control = lab.web_pairs(0, copies=1, files=0)
    assert len(control) == lab.COUNT
