"""Views: boxes say where pixels come from, colours agree with slow loops, one generator gives one result."""

from __future__ import annotations

import colorsys
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.ndimage import convolve1d
from torch import Tensor

from efface.errors import ConfigError, InputError
from efface.learn.views.images import Draw, ImageViews, ViewConfig, blurred, crop_boxes, luma, resampled, turned_hue
from efface.learn.views.texts import TextViewConfig, TextViews, deleted

OFF: dict[str, Any] = {"crop_area": (1.0, 1.0), "jitter": 0.0, "grey": 0.0, "blur": 0.0}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int) -> Tensor:
    """Images in [0, 1]."""
    return torch.rand(*shape, generator=generator(9), dtype=torch.float64)


def ramp(count: int, height: int, width: int) -> Tensor:
    """Red is x, green is y of a pixel's centre, as shares of the sides: bilinear sampling reads places off exactly."""
    x = (torch.arange(width, dtype=torch.float64) + 0.5) / width
    y = (torch.arange(height, dtype=torch.float64) + 0.5) / height
    image = torch.stack([x.expand(height, width), y[:, None].expand(height, width), torch.zeros(height, width)])
    return image.repeat(count, 1, 1, 1)


@pytest.mark.parametrize(
    "config",
    [
        {"crop_area": (0.2, 0.9)},
        {"crop_area": (0.2, 0.9), "flip": 0.5},
        {"crop_area": (0.2, 0.9), "flip": 0.5, "size": 9},
        {"shift": 0.3, "flip": 1.0},
        {"crop_area": (0.3, 1.0), "crop_ratio": (0.5, 2.0), "shift": 0.1},
    ],
)
def test_boxes_say_where_each_pixel_comes_from(config: dict[str, Any]) -> None:
    height, width = 24, 36
    views, boxes = ImageViews(ViewConfig(**{**OFF, **config}))(ramp(16, height, width), generator())
    rows, columns = views.shape[2:]
    x0, y0, x1, y1 = boxes.T[:, :, None, None]
    s, r = torch.arange(columns, dtype=torch.float64), torch.arange(rows, dtype=torch.float64)[:, None]
    x = x0 + (s + 0.5) * (x1 - x0) / columns
    y = y0 + (r + 0.5) * (y1 - y0) / rows
    # over the edge, and in its outer half pixel, the border's value goes on
    expected_x = x.clamp(0.5, width - 0.5).expand(16, rows, columns) / width
    expected_y = y.clamp(0.5, height - 0.5).expand(16, rows, columns) / height
    if rows != height:  # 2 x 2 points a pixel are averaged: equal inside, where the ramp is straight
        inside = (x > 2) & (x < width - 2) & (y > 2) & (y < height - 2)
        assert inside.double().mean() > 0.5
        expected_x = torch.where(inside, expected_x, views[:, 0])
        expected_y = torch.where(inside, expected_y, views[:, 1])
    torch.testing.assert_close(views[:, 0], expected_x, atol=1e-12, rtol=0)
    torch.testing.assert_close(views[:, 1], expected_y, atol=1e-12, rtol=0)
    assert len({tuple(box) for box in boxes.tolist()}) > 1 or config.get("crop_area") is None
    assert bool((x0 > x1).any()) == ("flip" in config)


def test_crops_keep_area_ratio_and_stay_inside() -> None:
    images = noise(4000, 1, 20, 30)
    boxes = crop_boxes(4000, 20, 30, (0.1, 0.6), (0.5, 2.0), Draw(generator(), images))
    w, h = (boxes[:, 2:] - boxes[:, :2]).T
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 30 + 1e-9
    assert boxes[:, 3].max() <= 20 + 1e-9
    share, ratio = w * h / 600, w / h
    assert 0.1 - 1e-9 <= share.min() < 0.11
    assert 0.58 < share.max() <= 0.6 + 1e-9
    assert 0.5 - 1e-9 <= ratio.min() < 0.51
    assert 1.95 < ratio.max() <= 2 + 1e-9
    # each side of the place is uniform in what is left
    for start, free in ((boxes[:, 0], 30 - w), (boxes[:, 1], 20 - h)):
        assert float((start / free).mean()) == pytest.approx(0.5, abs=0.02)
        assert float((start / free).std()) == pytest.approx(1 / math.sqrt(12), abs=0.01)


def test_crops_that_never_fit_are_shrunk_with_their_ratio() -> None:
    boxes = crop_boxes(50, 4, 400, (0.9, 1.0), (0.5, 1.0), Draw(generator(), noise(1, 1, 1, 1)))
    w, h = (boxes[:, 2:] - boxes[:, :2]).T
    torch.testing.assert_close(h, torch.full_like(h, 4.0))
    assert ((w / h) >= 0.5 - 1e-9).all()
    assert ((w / h) <= 1 + 1e-9).all()


def test_full_box_and_quarter_turn_are_exact() -> None:
    images = noise(3, 3, 8, 8)
    box = torch.tensor([0.0, 0.0, 8.0, 8.0], dtype=torch.float64).repeat(3, 1)
    still = resampled(images, box, torch.zeros(3, dtype=torch.float64), (8, 8))
    torch.testing.assert_close(still, images, atol=1e-12, rtol=0)
    turned = resampled(images, box, torch.full((3,), math.pi / 2, dtype=torch.float64), (8, 8))
    torch.testing.assert_close(turned, torch.rot90(images, 1, (2, 3)), atol=1e-12, rtol=0)


def test_rotation_keeps_shapes_in_oblong_images() -> None:
    """A quarter turn of a centred square window in an oblong image: turned in pixels, not in shares of the sides."""
    images = noise(1, 1, 6, 14)
    window = torch.tensor([[4.0, 0.0, 10.0, 6.0]], dtype=torch.float64)
    found = resampled(images, window, torch.full((1,), math.pi / 2, dtype=torch.float64), (6, 6))
    torch.testing.assert_close(found, torch.rot90(images[..., 4:10], 1, (2, 3)), atol=1e-12, rtol=0)


def test_smaller_views_average_the_pixels() -> None:
    images = noise(2, 3, 12, 12)
    views, _ = ImageViews(ViewConfig(**{**OFF, "size": 4}))(images, generator())
    torch.testing.assert_close(views, torch.nn.functional.avg_pool2d(images, 3), atol=1e-12, rtol=0)


def test_none_is_the_identity() -> None:
    images = noise(5, 3, 7, 9)
    g = generator()
    before = g.get_state()
    views, boxes = ImageViews(ViewConfig.none())(images, g)
    assert torch.equal(views, images)
    assert boxes.tolist() == [[0, 0, 9, 7]] * 5
    assert torch.equal(g.get_state(), before)


EVERYTHING: dict[str, Any] = {"flip": 0.5, "shift": 0.1, "rotate": 15.0, "noise": 0.1, "size": 12}


@pytest.mark.parametrize("channels", [1, 3])
def test_one_generator_one_result_in_range(channels: int) -> None:
    images = noise(32, channels, 16, 16)
    views = ImageViews(ViewConfig(**EVERYTHING))
    one, other, third = views(images, generator(1)), views(images, generator(1)), views(images, generator(2))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])
    assert not torch.equal(one[0], third[0])
    assert one[0].shape == (32, channels, 12, 12)
    assert one[0].min() >= 0
    assert one[0].max() <= 1
    before = torch.get_rng_state()
    views(images, generator(1))
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"


def test_float32_views_are_those_of_float64() -> None:
    images = noise(8, 3, 16, 16)
    one, _ = ImageViews(ViewConfig(**EVERYTHING))(images, generator(1))
    other, _ = ImageViews(ViewConfig(**EVERYTHING))(images.float(), generator(1))
    assert other.dtype == torch.float32
    torch.testing.assert_close(other.double(), one, atol=1e-4, rtol=0)


def test_hue_turns_as_colorsys_says() -> None:
    images = noise(4, 3, 5, 5)
    images[0, :, 0, 0] = 0.4  # a grey one has no hue
    images[0, :, 0, 1] = 0.0
    turn = torch.tensor([0.0, 0.2, -0.3, 0.5], dtype=torch.float64)
    found = turned_hue(images, turn.view(4, 1, 1))
    for b in range(4):
        for i in range(5):
            for j in range(5):
                h, s, v = colorsys.rgb_to_hsv(*images[b, :, i, j].tolist())
                expected = colorsys.hsv_to_rgb((h + float(turn[b])) % 1, s, v)
                assert found[b, :, i, j].tolist() == pytest.approx(expected, abs=1e-12)


def test_blur_is_a_gaussian_with_mirrored_borders() -> None:
    images, sigma = noise(3, 3, 11, 13), torch.tensor([0.1, 0.8, 1.5], dtype=torch.float64)
    found = blurred(images, sigma, 1.5)
    steps = np.arange(-5, 6)
    for b in range(3):
        kernel = np.exp(-(steps**2) / (2 * float(sigma[b]) ** 2))
        kernel /= kernel.sum()
        expected = convolve1d(convolve1d(images[b].numpy(), kernel, 1, mode="mirror"), kernel, 2, mode="mirror")
        np.testing.assert_allclose(found[b].numpy(), expected, atol=1e-12)
    assert blurred(noise(2, 3, 1, 1), sigma[:2], 1.5).shape == (2, 3, 1, 1)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_each_colour_change_is_a_blend_within_its_strength(name: str) -> None:
    images = 0.4 + 0.2 * noise(200, 3, 6, 6)  # far from 0 and 1, so that nothing is cut off
    colours = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0, name: 0.3}
    views, _ = ImageViews(ViewConfig(**{**OFF, "jitter": 1.0, **colours}))(images, generator())
    grey = luma(images)
    base = {"brightness": torch.zeros_like(grey), "contrast": grey.mean((2, 3), keepdim=True), "saturation": grey}[name]
    away, before = views - base, images - base
    factor = (away * before).sum((1, 2, 3)) / (before * before).sum((1, 2, 3))
    torch.testing.assert_close(away, factor.view(-1, 1, 1, 1) * before, atol=1e-9, rtol=0)
    assert 0.7 - 1e-9 <= factor.min() < 0.72
    assert 1.28 < factor.max() <= 1.3 + 1e-9


def test_chances_are_what_they_say() -> None:
    images = noise(2000, 3, 4, 4)
    for name, chance in (("grey", 0.2), ("jitter", 0.7), ("blur", 0.5)):
        views, _ = ImageViews(ViewConfig(**{**OFF, name: chance, "blur_sigma": (1.0, 1.0)}))(images, generator(3))
        changed = (views != images).flatten(1).any(1).double().mean()
        assert float(changed) == pytest.approx(chance, abs=0.05), name
    grey, _ = ImageViews(ViewConfig(**{**OFF, "grey": 1.0}))(images, generator())
    assert torch.equal(grey[:, 0], grey[:, 2])
    torch.testing.assert_close(grey[:, 0], luma(images)[:, 0])


def test_noise_has_its_standard_deviation() -> None:
    images = torch.full((20, 3, 30, 30), 0.5)
    views, _ = ImageViews(ViewConfig(**{**OFF, "noise": 0.05}))(images, generator())
    assert float((views - images).std()) == pytest.approx(0.05, rel=0.02)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 8, 8), r"\[3, 8, 8\]"),
        (torch.zeros(1, 2, 8, 8), r"\[1, 2, 8, 8\]"),
        (torch.zeros(0, 3, 8, 8), r"\[0, 3, 8, 8\]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "divide bytes by 255"),
        (torch.full((1, 3, 8, 8), -0.1), "before any normalisation"),
        (torch.full((1, 3, 8, 8), float("nan")), "nan"),
    ],
)
def test_what_is_no_image_is_refused(images: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageViews(ViewConfig.none())(images, generator())


@pytest.mark.parametrize("wrong", [{"crop_area": (0.5, 0.2)}, {"crop_area": (0.5, 1.2)}, {"blur_sigma": (0.0, 1.0)}])
def test_ranges_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        ViewConfig(**wrong)
    with pytest.raises(ConfigError):
        ViewConfig.parse(wrong)


SENTENCE = "one two three four five six seven eight nine ten"


def texts(view: str, share: float = 0.3) -> TextViews:
    return TextViews(TextViewConfig(view=view, share=share))  # type: ignore[arg-type]


def test_same_is_the_identity_and_draws_nothing() -> None:
    g = generator()
    before = g.get_state()
    given = ["  spaces\tkept  here\n", "x"]
    assert texts("same")(given, g) == given
    assert torch.equal(g.get_state(), before)


def test_delete_drops_its_share_and_keeps_the_order() -> None:
    found = texts("delete")([SENTENCE] * 500, generator())
    words = SENTENCE.split()
    for text in found:
        places = [words.index(word) for word in text.split()]
        assert places == sorted(set(places))
    assert np.mean([len(text.split()) for text in found]) == pytest.approx(7, abs=0.2)
    assert len(set(found)) > 100


def test_delete_of_everything_keeps_one_word_of_any_place() -> None:
    g = generator()
    counts = Counter(tuple(deleted(["a", "b", "c"], 1.0, g)) for _ in range(300))
    assert set(counts) == {("a",), ("b",), ("c",)}
    assert min(counts.values()) > 60


def test_swap_moves_two_words_a_time() -> None:
    words = SENTENCE.split()
    for text in texts("swap", 0.1)([SENTENCE] * 100, generator()):
        assert sorted(text.split()) == sorted(words)
        assert sum(a != b for a, b in zip(words, text.split(), strict=True)) == 2
    assert texts("swap")(["two words"], generator()) == ["words two"]


def test_crop_keeps_one_span_of_every_place() -> None:
    words = SENTENCE.split()
    found = set(texts("crop")([SENTENCE] * 200, generator()))
    assert found == {" ".join(words[i : i + 7]) for i in range(4)}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(min_size=1).filter(lambda text: bool(text.strip())), min_size=1, max_size=4),
    st.sampled_from(["same", "delete", "swap", "crop"]), st.floats(0.01, 0.99), st.integers(0, 2**31),
)  # fmt: skip
def test_never_empty_and_reproducible(given_: list[str], view: str, share: float, seed: int) -> None:
    found = texts(view, share)(given_, generator(seed))
    assert len(found) == len(given_)
    assert all(text.strip() for text in found)
    assert found == texts(view, share)(given_, generator(seed))
    for text, before in zip(found, given_, strict=True):
        assert not Counter(text.split()) - Counter(before.split()), "no word that was not there"
        if len(before.split()) == 1:
            assert text == before


def test_empty_texts_are_refused() -> None:
    with pytest.raises(InputError, match="text 1 is empty"):
        texts("crop")(["a", " \n"], generator())
