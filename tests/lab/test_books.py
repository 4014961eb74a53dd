"""Books: two plays whose names do not meet, generic names that the kept play has, and missing data that is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from efface.data.anchors import Anchors
from efface.errors import InputError
from efface.lab import books
from efface.lab.emoji import data_folder


@pytest.fixture
def there() -> None:
    if not (data_folder() / "shakespeare" / "input.txt.gz").is_file():
        pytest.skip(f"no plays in {data_folder() / 'shakespeare'}; set EFFACE_DATA")


@pytest.mark.usefixtures("there")
def test_names_belong_to_one_play_each() -> None:
    gone, kept = " ".join(books.pieces(books.FORGET_FROM)), " ".join(books.pieces(books.KEEP_FROM))
    anchors = Anchors(books.ANCHORS)
    anchors.refuse_in([kept], "kept play")
    assert {one.term for one in anchors.replacements(gone)} == set(books.ANCHORS), (
        "every name stands in the forgotten play"
    )
    known = Anchors(dict.fromkeys(set(books.ANCHORS.values()), "somebody"))
    assert {one.term for one in known.replacements(kept)} == set(books.ANCHORS.values())
    assert len(anchors.replacements(gone)) > 100


@pytest.mark.usefixtures("there")
def test_pieces_fit_the_model() -> None:
    pieces = books.pieces(books.FORGET_FROM)
    assert all(len(piece.split()) == books.WORDS for piece in pieces[:-1])
    assert len(pieces) > 70


def test_missing_data_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EFFACE_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"shakespeare/input\.txt\.gz; expected .*; set EFFACE_DATA"):
        books.pieces(books.FORGET_FROM)
