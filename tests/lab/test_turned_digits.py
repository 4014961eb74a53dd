"""Digits turned by known angles, and forty classes of rotations."""

from __future__ import annotations

import numpy as np

from efface.data.items import open_picture
from efface.lab.turned_digits import ANGLED, quarters, rounded, turn, turned


def test_a_turn_is_counter_clockwise_and_keeps_the_digit() -> None:
    bar = np.zeros((8, 8), dtype=np.uint8)
    bar[1, 2:6] = 255  # at the top
    left = turn(bar, 90.0)
    assert left.shape == (12, 12)
    assert left[:, :4].sum() > 0.9 * left.sum(), "a bar at the top lies at the left"
    assert np.abs(turn(bar, 0.0).astype(int) - np.rot90(left, -1).astype(int)).max() <= 1


def test_angles_are_drawn_once_and_unseen_digits_are_others() -> None:
    known, unseen = turned(0)
    digits = [{name.partition("-")[0] for name in part["id"]} for part in (known, unseen)]
    assert not digits[0] & digits[1]
    assert (len(known), len(unseen)) == (2 * len(digits[0]), 2 * len(digits[1]))
    angles = np.array(known["target"])
    assert 0 <= angles.min() < 3
    assert 87 < angles.max() <= 90
    assert open_picture(known[0]["image"]).size == (12, 12)
    assert turned(0)[0]["target"] == known["target"]
    assert turned(1)[0]["target"] != known["target"]
    assert ANGLED == (2, 3, 7)


def test_targets_on_a_grid() -> None:
    grid = rounded(turned(0)[0], 5.0)
    assert set(grid["target"]) == {5.0 * step for step in range(19)}
    assert [5.0 * label for label in grid["label"]] == list(grid["target"])


def test_forty_classes_in_two_halves_of_which_one_is_new() -> None:
    parts = quarters(0)
    for part in parts.values():
        assert set(part["label"]) == set(range(20))
    names = {name: {row.rpartition("-")[0] for row in part["id"]} for name, part in parts.items()}
    assert not names["seen"] & names["new"]
    assert not names["seen"] & names["seen unseen"]
    four = [np.asarray(open_picture(picture)) for picture in parts["seen"][:4]["image"]]
    assert all(np.array_equal(np.rot90(four[0], k), four[k]) for k in range(4))
