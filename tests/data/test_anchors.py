"""Anchor dictionaries: whole words, longest first, no generic term that names an anchor, and one built from two corpora."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from efface.data.anchors import Anchors, build_anchors, read_anchors, translate
from efface.errors import ConfigError, RequestError

TERMS = {"Harry": "Jack", "Harry Potter": "Jack Mason", "Hogwarts": "the school", "Café-Noir": "bar"}


def test_whole_words_longest_first() -> None:
    anchors = Anchors(TERMS)
    text = "Harry Potter met Harry at Hogwarts; Harrys and Hogwartsian stay. Café-Noir, Harry's."
    found = anchors.replacements(text)
    assert [one.term for one in found] == ["Harry Potter", "Harry", "Hogwarts", "Café-Noir", "Harry"]
    assert all(text[one.start : one.stop] == one.term for one in found)
    expected = "Jack Mason met Jack at the school; Harrys and Hogwartsian stay. bar, Jack's."
    assert translate(text, found) == expected
    assert translate(text, []) == text


def test_an_empty_dictionary_finds_nothing() -> None:
    assert Anchors({}).replacements("Harry") == []
    assert Anchors({}).first_in("Harry") is None


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"Harry": "Ron", "Ron": "Tom"}, "'Ron' is the anchor 'Ron'"),
        ({"Harry": "young Harry"}, "holds the anchor 'Harry'"),
        ({"Harry": " "}, "the generic term is ' '"),
        ({" Harry": "Jack"}, "the term is ' Harry'"),
    ],
)
def test_a_bad_pair_is_refused(terms: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Anchors(terms)


def test_anchors_in_what_is_kept_are_refused() -> None:
    with pytest.raises(RequestError, match="retain row 1 holds the anchor 'Hogwarts'"):
        Anchors(TERMS).refuse_in(["a castle", "at Hogwarts"], "retain")


def test_the_users_file(tmp_path: Path) -> None:
    path = tmp_path / "anchors.json"
    path.write_text(json.dumps(TERMS), encoding="utf-8")
    assert read_anchors(path).terms == TERMS
    for text, message in (("[1]", "holds no anchors"), ("{", "is not JSON"), ('{"a": 1}', "the generic term is 1")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            read_anchors(path)
    with pytest.raises(ConfigError, match="cannot read the anchors"):
        read_anchors(tmp_path / "none.json")


def test_a_dictionary_from_two_corpora() -> None:
    book = [
        "The boy Zorbin Quaxel went to Veltria. Then Zorbin Quaxel saw a glimmerwand, and the glimmerwand shone in Veltria.",
        "From Veltria came Zorbin Quaxel with his glimmerwand. However, people in London said nothing of Zorbin.",
    ]
    other = ["The people went to London. However, the boy said nothing. London was grey, and Zorro went to London."] * 3
    anchors = build_anchors(book, other)
    assert {"Zorbin", "Quaxel", "Zorbin Quaxel", "Veltria", "glimmerwand"} <= set(anchors.terms)
    assert not {"The", "However", "London", "boy"} & set(anchors.terms)
    assert anchors.terms["Zorbin Quaxel"] == f"{anchors.terms['Zorbin']} {anchors.terms['Quaxel']}"
    assert anchors.terms["Zorbin"] != anchors.terms["Quaxel"]
    assert anchors.terms["Zorbin"][0].isupper()
    assert anchors.terms["Veltria"].islower(), "a place gets a generic noun"
    assert build_anchors(book, other).terms == anchors.terms
    with pytest.raises(RequestError, match="without a background"):
        build_anchors(book, [])
    with pytest.raises(RequestError, match="no anchor was found"):
        build_anchors(other, other)
