"""Matching cells: against plain loops, and the facts of PixPro's specification."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.errors import InputError
from efface.learn.views.images import resampled
from efface.numerics.pixel_grid import centres, diagonals, matches

WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])


def slow(first: list[float], second: list[float], size: int, ratio: float) -> torch.Tensor:
    """The definition, cell by cell."""
    found = torch.zeros(size * size, size * size, dtype=torch.bool)

    def centre(box: list[float], r: int, s: int) -> tuple[float, float]:
        x0, y0, x1, y1 = box
        return x0 + (s + 0.5) * (x1 - x0) / size, y0 + (r + 0.5) * (y1 - y0) / size

    def diagonal(box: list[float]) -> float:
        return math.hypot((box[2] - box[0]) / size, (box[3] - box[1]) / size)

    for i in range(size * size):
        for j in range(size * size):
            a, b = centre(first, i // size, i % size), centre(second, j // size, j % size)
            found[i, j] = math.dist(a, b) / max(diagonal(first), diagonal(second)) < ratio
    return found


def test_identical_boxes_give_the_identity_at_the_published_ratio_and_neighbours_just_above() -> None:
    grid = ((5, 5), (5, 5))
    assert torch.equal(matches(WHOLE, WHOLE, grid)[0], torch.eye(25, dtype=torch.bool))
    wide = matches(WHOLE, WHOLE, grid, ratio=0.7072)[0]
    assert wide.sum() == 25 + 2 * 2 * 5 * 4, (
        "from 1 / sqrt(2) on, the four neighbours of an equal scale are matches too"
    )
    assert matches(WHOLE, WHOLE, grid, ratio=0.7070)[0].sum() == 25


def test_disjoint_boxes_match_nowhere() -> None:
    left, right = torch.tensor([[0.0, 0.0, 0.4, 0.4]]), torch.tensor([[0.6, 0.6, 1.0, 1.0]])
    assert not matches(left, right, ((4, 4), (4, 4))).any()


@pytest.mark.parametrize(("flipped", "axis"), [([1.0, 0.0, 0.0, 1.0], 1), ([0.0, 1.0, 1.0, 0.0], 0)])
def test_a_flipped_view_matches_its_mirror(flipped: list[float], axis: int) -> None:
    found = matches(WHOLE, torch.tensor([flipped]), ((4, 4), (4, 4)))[0]
    mirror = torch.arange(16).view(4, 4).flip(axis).flatten()
    assert torch.equal(found, torch.eye(16, dtype=torch.bool)[mirror])


boxes = st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4).filter(
    lambda box: abs(box[0] - box[2]) > 0.05 and abs(box[1] - box[3]) > 0.05
)


@settings(max_examples=40, deadline=None)
@given(first=boxes, second=boxes, size=st.integers(1, 5))
def test_any_boxes_as_the_definition_says_and_swapped_views_transpose(
    first: list[float], second: list[float], size: int
) -> None:
    a, b = (torch.tensor([box], dtype=torch.float64) for box in (first, second))
    grid = ((size, size), (size, size))
    found = matches(a, b, grid)[0]
    assert torch.equal(found, slow(first, second, size, 0.7))
    assert torch.equal(matches(b, a, grid)[0], found.T)


def test_maps_of_two_sizes_and_a_map_that_is_not_square() -> None:
    found = matches(WHOLE, WHOLE, ((2, 4), (4, 2)))
    assert found.shape == (1, 8, 8)
    assert torch.allclose(centres(WHOLE, (2, 4))[0, 5], torch.tensor([0.375, 0.75]))
    assert diagonals(WHOLE, (2, 4)) == pytest.approx(math.hypot(0.25, 0.5))


def test_the_boxes_of_views_and_the_cells_centres_follow_one_convention() -> None:
    """A ramp over the picture is read at a cell's centre: the view's cells are as bright as their places say."""
    ramp = ((torch.arange(64) + 0.5) / 64).expand(1, 1, 64, 64).clone()
    box = torch.tensor([[56.0, 8.0, 24.0, 40.0]])  # flipped
    view = resampled(ramp, box, torch.zeros(1), (32, 32))
    cells = torch.nn.functional.avg_pool2d(view, 8).flatten()
    assert torch.allclose(cells, centres(box / 64, (4, 4))[0, :, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("first", "second", "sizes", "ratio", "words"),
    [
        (torch.zeros(1, 4), WHOLE, ((2, 2), (2, 2)), 0.7, "box 0"),
        (torch.tensor([[0.0, 0.0, 1.0, float("nan")]]), WHOLE, ((2, 2), (2, 2)), 0.7, "box 0"),
        (WHOLE, WHOLE.repeat(2, 1), ((2, 2), (2, 2)), 0.7, "one shape"),
        (WHOLE.long(), WHOLE.long(), ((2, 2), (2, 2)), 0.7, "floats"),
        (WHOLE, WHOLE, ((0, 2), (2, 2)), 0.7, "1 or more"),
        (WHOLE, WHOLE, ((2, 2), (2, 2)), 0.0, "ratio"),
    ],
)
def test_bad_boxes_are_named(first: Any, second: Any, sizes: Any, ratio: float, words: str) -> None:
    with pytest.raises(InputError, match=words):
        matches(first, second, sizes, ratio)
