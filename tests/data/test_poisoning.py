"""Poisoned samples: what a paste changes and what it leaves, peaks against a loop, labels, words, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from efface.data.poisoning import (
    Corner,
    Patch,
    concept_name,
    crop,
    mask_words,
    paste,
    patch_side,
    peak,
    plan_patches,
    poisoned_labels,
    refuse_other_count,
    windows,
)
from efface.errors import ConfigError, InputError, RequestError


def picture(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_official_sizes_of_224_pixels() -> None:
    found = [patch_side(224, 224, mode) for mode in ("localized", "center", "random", "full")]
    assert found == [64, 96, 96, 160]
    corners = windows(224, 224, 64)
    assert (corners[0], corners[1], corners[-1]) == (Corner(0, 0), Corner(0, 16), Corner(160, 160))
    assert len(corners) == 11 * 11
    assert patch_side(8, 8, "localized") == 2
    assert patch_side(8, 8, "center", 4) == 4


def test_windows_reach_both_far_edges_whatever_the_stride() -> None:
    found = windows(10, 7, 3, 4)
    assert {corner.top for corner in found} == {0, 4, 7}
    assert {corner.left for corner in found} == {0, 4}
    assert len(found) == len(set(found))


def test_a_paste_pixel_by_pixel() -> None:
    own, donor = picture(0, 3, 9, 7), picture(1, 3, 9, 7)
    before = own.clone()
    made = paste(own, donor, Patch(0, Corner(5, 0), Corner(1, 3)), 4)
    for c in range(3):
        for i in range(9):
            for j in range(7):
                inside = 1 <= i < 5 and 3 <= j < 7
                expected = donor[c, i - 1 + 5, j - 3] if inside else own[c, i, j]
                assert made[c, i, j] == expected
    assert torch.equal(own, before), "the original is not written to"


def test_the_peak_is_the_best_window_of_a_loop() -> None:
    image = picture(2, 1, 8, 8)
    found = peak(image, 3, lambda cuts: [float(cut.sum()) for cut in cuts], stride=1)
    sums = {(i, j): float(image[0, i : i + 3, j : j + 3].sum()) for i in range(6) for j in range(6)}
    assert tuple(found) == max(sums, key=lambda at: sums[at])
    assert peak(image, 3, lambda cuts: [0.0] * len(cuts)) == Corner(0, 0), "the first of equals"
    with pytest.raises(InputError, match="finite"):
        peak(image, 3, lambda cuts: [float("nan")] * len(cuts))
    with pytest.raises(InputError, match="one a window"):
        peak(image, 3, lambda cuts: [0.0])


def test_plans_of_every_mode() -> None:
    rng = np.random.default_rng(0)
    at, sources = [Corner(i, 0) for i in range(5)], [Corner(0, 1), Corner(2, 2)]
    local = plan_patches(5, 2, (8, 8), 3, "localized", rng, peaks=at, donor_peaks=sources)
    assert [patch.at for patch in local] == at
    assert all(patch.source == sources[patch.donor] for patch in local)
    assert {patch.at for patch in plan_patches(6, 2, (8, 10), 4, "center", rng)} == {Corner(2, 3)}
    scattered = plan_patches(60, 3, (8, 10), 4, "random", rng)
    assert all(patch.source == patch.at for patch in scattered)
    assert {patch.at.top for patch in scattered} == set(range(5))
    assert {patch.at.left for patch in scattered} == set(range(7))
    assert {patch.donor for patch in scattered} == {0, 1, 2}
    again = [plan_patches(9, 4, (8, 8), 2, "random", np.random.default_rng(3)) for _ in range(2)]
    assert again[0] == again[1]


def test_random_labels_leave_the_forgotten_class_out_unless_asked() -> None:
    rng = np.random.default_rng(0)
    without = poisoned_labels(3000, 3, 10, "random", rng)
    assert set(without) == set(range(10)) - {3}
    assert max(abs(without.count(k) / 3000 - 1 / 9) for k in set(without)) < 0.03
    own = poisoned_labels(3000, 3, 10, "random", rng, with_own=True)
    assert own.count(3) / 3000 == pytest.approx(0.1, abs=0.03), "drawn over all classes, a tenth keeps its label"
    assert poisoned_labels(4, 3, 10, "targeted", rng, donor=5) == [5] * 4
    assert poisoned_labels(4, 3, 10, "keep", rng) == [3] * 4


def test_what_must_be_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match=r"patch of 9 x 9 on pictures of 8 x 12.*1 to 8 pixels"):
        patch_side(8, 12, "center", 9)
    with pytest.raises(ConfigError, match="mode=none"):
        patch_side(8, 8, "none")
    with pytest.raises(ConfigError, match="another class"):
        poisoned_labels(2, 3, 10, "targeted", rng, donor=3)
    with pytest.raises(ConfigError, match="donor class None"):
        poisoned_labels(2, 3, 10, "targeted", rng)
    with pytest.raises(ConfigError, match="one class"):
        poisoned_labels(2, 0, 1, "random", rng)
    with pytest.raises(InputError, match="4 poisoned samples for 5"):
        refuse_other_count(4, 5)
    with pytest.raises(RequestError, match="no picture of the donor class"):
        plan_patches(2, 0, (8, 8), 2, "center", rng)
    with pytest.raises(InputError, match="one each"):
        plan_patches(2, 1, (8, 8), 2, "localized", rng, peaks=[Corner(0, 0)], donor_peaks=[Corner(0, 0)])
    with pytest.raises(InputError, match="inside the picture"):
        crop(picture(0, 1, 8, 8), Corner(6, 0), 3)
    with pytest.raises(InputError, match="channels"):
        paste(picture(0, 1, 8, 8), picture(0, 3, 8, 8), Patch(0, Corner(0, 0), Corner(0, 0)), 2)


def test_only_a_leading_article_is_taken_off_a_concept() -> None:
    assert concept_name("a pizza oven") == "pizza oven", "deleting every 'a ' makes 'pizzoven'"
    assert concept_name("The sea a lot of people like") == "sea a lot of people like"
    assert concept_name("an_apple") == "apple"
    assert concept_name("antenna") == "antenna"
    assert concept_name("a") == "a"
    with pytest.raises(InputError, match="a name"):
        concept_name("  ")


def test_whole_words_in_any_case_and_the_longest_first() -> None:
    text = "Niger and NIGER, not Nigeria; New  York City is no York."
    assert mask_words(text, ["niger"]) == ("*** and ***, not Nigeria; New  York City is no York.", 2)
    assert mask_words(text, ["york", "new york city"]) == ("Niger and NIGER, not Nigeria; *** is no ***.", 2)
    assert mask_words("C++ or C", ["c++"])[0] == "*** or C"
    assert mask_words("a.b axb", ["a.b"]) == ("*** axb", 1), "a name is no pattern"
    assert mask_words(text, []) == (text, 0)
    assert mask_words(text, ["", " "]) == (text, 0)


@given(st.lists(st.sampled_from(["paris", "Öl", "x1", "новый", "it"]), min_size=1, max_size=8), st.data())
def test_no_masked_word_is_left(words: list[str], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(words), min_size=1))
    made, count = mask_words(" ".join(words), chosen)
    left = made.split()
    assert not {word.casefold() for word in chosen} & {word.casefold() for word in left}
    assert count == left.count("***") == sum(word in chosen for word in words)
    assert mask_words(made, chosen) == (made, 0)
