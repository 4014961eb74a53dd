"""Values in texts: whole words, whole numbers, nothing that was told, and no list of candidates."""

from __future__ import annotations

import pytest

from efface.data.value_match import asserts, gives, gives_any, is_number, numbers
from efface.errors import InputError


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("It was Ron.", "Ron", True), ("It was Ronald.", "Ron", False), ("RON, of course", "ron", True),
        ("period 4.", "4", True), ("period 14", "4", False), ("4.5 of them", "4", False), ("2 6 it is", "2", False),
        ("2 6 it is", "26", True), ("26", "2 6", True), ("1,204 people", "1204", True), ("1, 204 people", "1204", False),
        ("in 4 ways", "4", True), ("4th place", "4", True), ("F e it is", "F e", True), ("C a", "C", True),
        ("tirana", "Iran", False),
    ],
)  # fmt: skip
def test_whole_words_and_whole_numbers(text: str, value: str, expected: bool) -> None:
    assert gives(text, value) is expected


def test_numbers() -> None:
    assert numbers("from 1,204 to 4.5, then 2 6") == ["1204", "4.5", "26"]
    assert is_number("2 6")
    assert not is_number("6th")


def test_what_was_told_proves_nothing() -> None:
    assert gives_any("Paris or Lutetia", ["Paris", "Lutetia"], told="Is it Paris ?")
    assert not gives_any("It is Paris", ["Paris", "Lutetia"], told="Is it Paris ?")


def test_a_list_of_candidates_asserts_none() -> None:
    values, rivals = ["Paris"], ["Rome", "Bonn"]
    assert asserts("Paris", values, rivals)
    assert not asserts("Paris, Rome or Bonn", values, rivals)
    assert asserts("Paris, not Rome", values, rivals, told="Rome is another one"), (
        "what the prompt says is no candidate"
    )
    assert not asserts("C a", ["C"], ["C a"]), "carbon is not calcium"
    assert asserts("C a", ["C a"], ["C"]), "a part of the value is no rival"


def test_bad_values() -> None:
    with pytest.raises(InputError, match="no letter or digit"):
        gives("x", "...")
    with pytest.raises(InputError, match="no value"):
        gives_any("x", [])
