"""Which factor can be read off which space: the matrix that says whether separated representations are separated.

Of every space (rows of features) and every factor (a class a row) the accuracy of a logistic regression, fitted on one part
of the rows and read on another. A factor that a space is not meant to hold leaks as far as its accuracy is above chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from efface.errors import InputError
from efface.learn.watch import probe_score

Parts = tuple[Tensor, Tensor]
"""Of the rows that the probe is fitted on, and of the rows that it is read on."""


@dataclass(frozen=True)
class Leakage:
    """Accuracies by space and factor.

    Attributes:
        accuracy: (space, factor) -> share of right answers.
        chance: factor -> share of the rows that the most frequent class of the fitted rows gets right.
    """

    accuracy: dict[tuple[str, str], float]
    chance: dict[str, float]

    def rows(self) -> list[dict[str, float | str]]:
        """One row a space, one column a factor, and a last row of chances."""
        spaces = dict.fromkeys(space for space, _ in self.accuracy)
        found: list[dict[str, float | str]] = [
            {"space": space, **{factor: self.accuracy[space, factor] for factor in self.chance}} for space in spaces
        ]
        return [*found, {"space": "chance", **self.chance}]


def leakage(spaces: Mapping[str, Parts], factors: Mapping[str, Parts]) -> Leakage:
    """The matrix.

    Args:
        spaces: name -> features [n, D] and [m, D]; the widths of spaces may differ.
        factors: name -> classes [n] and [m] int64 of the same rows.

    Raises:
        InputError: none of either, rows that do not fit, or a factor with one class.
    """
    if not spaces or not factors:
        raise InputError(f"{len(spaces)} spaces and {len(factors)} factors", "at least one of each")
    for factor, classes in factors.items():
        if bool((classes[0] == classes[0][0]).all()):
            raise InputError(f"the factor '{factor}' has one class in the fitted rows", "two or more")
        for space, rows in spaces.items():
            for features, marks in zip(rows, classes, strict=True):
                if features.ndim != 2 or marks.shape != features.shape[:1]:
                    raise InputError(
                        f"'{space}' {list(features.shape)} with '{factor}' {list(marks.shape)}", "[n, D] and [n]"
                    )
    return Leakage(
        {
            (space, factor): probe_score(rows[0], classes[0], rows[1], classes[1])
            for space, rows in spaces.items()
            for factor, classes in factors.items()
        },
        {name: float((truth == known.mode().values).float().mean()) for name, (known, truth) in factors.items()},
    )
