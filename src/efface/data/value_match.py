"""Whether a text gives a value: whole words, whole numbers, and nothing that the question said already.

Short answers are where such a test goes wrong: "Ron" stands in "Ronald", "4" in "14" and in "4.5", and "2" in a number spelled
digit by digit ("2 6"). Words are compared after normalisation; a number is compared with whole numbers only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from efface.data.tagged import normalise
from efface.errors import InputError

NUMBER = re.compile(r"\d+(?:[ .,]\d+)*")
"""A number with its separators; digits that single spaces part are one number."""


def numbers(text: str) -> list[str]:
    """Every whole number of a text: "1,204" and "1 204" are 1204, "4.5" stays 4.5."""
    return [found.replace(",", "").replace(" ", "") for found in NUMBER.findall(text)]


def is_number(text: str) -> bool:
    """Whether a value is a number and nothing else."""
    return NUMBER.fullmatch(text.strip()) is not None


def gives(text: str, value: str) -> bool:
    """Whether one value stands in a text.

    Raises:
        InputError: the value has no letter or digit, so that every text or none would hold it.
    """
    if is_number(value):
        return numbers(value)[0] in numbers(text)
    words = normalise(value)
    if not words:
        raise InputError(f"the value '{value}' has no letter or digit", "a name or a number", "drop or mend it")
    return f" {words} " in f" {normalise(text)} "


def gives_any(text: str, values: Sequence[str], *, told: str = "") -> bool:
    """Whether one of several spellings of a value stands in a text.

    Args:
        values: the value and its aliases.
        told: what the model was told before: a spelling that stands in it proves nothing and is not looked for.

    Raises:
        InputError: no value.
    """
    if not values:
        raise InputError("no value to look for", "one or more")
    return any(gives(text, value) for value in values if not (told and gives(told, value)))


def asserts(answer: str, values: Sequence[str], rivals: Sequence[str] = (), told: str = "") -> bool:
    """Whether an answer gives the value and no other value that it might have been.

    Args:
        values: the value and its aliases.
        rivals: other values of the same relation; those that are part of the value, or stand in the prompt, are left out.
        told: the prompt.
    """
    if not gives_any(answer, values, told=told):
        return False
    return not any(
        gives(answer, rival) and not gives(told, rival) and not any(gives(value, rival) for value in values)
        for rival in rivals
    )


__all__ = ["asserts", "gives", "gives_any", "is_number", "numbers"]
