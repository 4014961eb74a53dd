"""Numbers as labels: their range, which of them are equal, weights by distance, and pairs whose mix is an anchor's number.

Source: SupReMix, Wu et al., arXiv 2309.16633. Everything is in the unit of the numbers unless it says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from efface.errors import RequestError
from efface.numerics.contrast import shape

Weighting = Literal["distance", "squared", "inverse", "none"]
REPEATED = 0.5
"""Numbers count as a grid where there are at most this many distinct ones a row."""


@dataclass(frozen=True)
class Labels:
    """What the numbers are like.

    Attributes:
        reach: the range, largest minus smallest.
        tolerance: numbers this near are equal.
    """

    reach: float
    tolerance: float


def labels_of(targets: Tensor | None, tolerance: float | None) -> Labels:
    """Range and tolerance of a data set's numbers [N].

    Raises:
        RequestError: no numbers, several a row, NaN or infinity, or all equal.
    """
    if targets is None:
        raise RequestError("no targets", "a column 'target' of numbers", "add one")
    if targets.ndim != 1:
        raise RequestError(f"targets of shape {shape(targets)}", "one number a row", "choose one of the outputs")
    if not bool(torch.isfinite(targets).all()):
        row = int((~torch.isfinite(targets)).nonzero()[0])
        raise RequestError(f"the target of row {row} is {float(targets[row])}", "numbers", "drop or repair the row")
    values = torch.unique(targets.double())
    if len(values) < 2:
        raise RequestError(f"all targets are {float(values[0]):g}", "two different numbers or more", "give other data")
    reach = float(values[-1] - values[0])
    on_grid = len(values) <= REPEATED * len(targets)
    default = float(values.diff().min()) / 2 if on_grid else 0.01 * reach
    return Labels(reach, default if tolerance is None else tolerance)


def log_weights(distance: Tensor, weighting: Weighting, reach: float, largest: float | None) -> Tensor:
    """log w of candidates at a distance in number, of its shape; 0 at distance 0.

    Args:
        reach: the range of the numbers.
        largest: w at that distance (its inverse for `inverse`); None: 1 + distance in the numbers' unit.
    """
    if weighting == "none":
        return torch.zeros_like(distance)
    x = distance if largest is None else distance / reach
    found = torch.log1p((1.0 if largest is None else largest - 1) * (x.square() if weighting == "squared" else x))
    return -found if weighting == "inverse" else found


def hard_positives(
    y: Tensor, y_all: Tensor, window: float, tolerance: float, most: int, drawn: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pairs (j, k) around each anchor's number: all where there are at most `most`, else draws with replacement.

    Args:
        y, y_all: [n], [N] numbers of the anchors and of all, float64.
        window: y_i - y_j and y_k - y_i are below it.
        tolerance: and above this.
        drawn: [n, most] uniform in [0, 1).

    Returns:
        j, k [n, most] places in `y_all`, the share of j [n, most], and which of them are there [n, most].
    """
    values, order = y_all.sort()
    low, end = torch.searchsorted(values, y - window, right=True), torch.searchsorted(values, y - tolerance)
    begin, high = torch.searchsorted(values, y + tolerance, right=True), torch.searchsorted(values, y + window)
    below, above = (end - low).clamp(min=0), (high - begin).clamp(min=0)
    pairs = (below * above)[:, None]
    every = torch.arange(most, device=y.device).expand(len(y), most)
    chosen = torch.where(pairs <= most, every, torch.minimum((drawn * pairs).long(), pairs - 1))
    there = every < pairs
    chosen = torch.where(there, chosen, 0)
    width = above.clamp(min=1)[:, None]
    last = len(y_all) - 1
    j, k = (low[:, None] + chosen // width).clamp(max=last), (begin[:, None] + chosen % width).clamp(max=last)
    gap = torch.where(there, values[k] - values[j], 1.0)
    return order[j], order[k], torch.where(there, (values[k] - y[:, None]) / gap, 0.5), there
