"""The worlds of persons: sizes as the specification says, labels that do not depend on the person, seeded."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.data.pictures import open_picture
from efface.errors import InputError
from efface.lab.emoji import data_folder
from efface.lab.identities import COPIES, PERSONS, SUBJECTS, digit_split, face_split, shifted


def test_digit_subjects_are_as_specified() -> None:
    split = digit_split(0)
    counts = split.counts()
    assert {role: c.persons for role, c in counts.items()} == SUBJECTS
    assert sum(SUBJECTS[role] for role in ("forget", "retain")) == 120
    assert {role: c.rows for role, c in counts.items()} == {role: COPIES * n for role, n in SUBJECTS.items()}
    labels: dict[str, set[int]] = {}
    for name, label in zip(split.forget["identity"], split.forget["label"], strict=True):
        labels.setdefault(name, set()).add(label)
    assert all(len(own) == 1 for own in labels.values()), "a subject's copies show one digit"
    assert digit_split(0).forget["id"][:] == split.forget["id"][:]
    assert digit_split(1).forget["id"][:] != split.forget["id"][:]


@settings(max_examples=20, deadline=None)
@given(st.integers(-3, 3), st.integers(-3, 3))
def test_shifts_by_a_loop(down: int, right: int) -> None:
    image = np.arange(1.0, 31.0).reshape(5, 6)
    found = shifted(image, down, right)
    for i in range(5):
        for j in range(6):
            inside = 0 <= i - down < 5 and 0 <= j - right < 6
            assert found[i, j] == (image[i - down, j - right] if inside else 0)


def test_faces_are_mirrored_without_regard_to_the_person() -> None:
    if not (data_folder() / "orl_faces").exists():
        pytest.skip(f"no ORL faces in {data_folder() / 'orl_faces'}; set EFFACE_DATA")
    split = face_split(0)
    assert {role: c.persons for role, c in split.counts().items()} == PERSONS
    for data in split.sets().values():
        count = Counter(zip(data["identity"], data["label"], strict=True))
        assert set(count.values()) == {5}, "five of ten pictures of each person"
    with np.load(data_folder() / "orl_faces" / "faces_56x46.npz", allow_pickle=False) as file:
        faces = file["faces"]
    for row in split.forget.select(range(10)):
        person, number = map(int, row["id"].split("-"))
        shown = np.asarray(open_picture(row["image"]).convert("L"))
        expected = faces[person, number][:, ::-1] if row["label"] else faces[person, number]
        assert (shown == expected).all()


def test_faces_that_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("EFFACE_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"faces_56x46\.npz; expected .*; set EFFACE_DATA"):
        face_split(0)
