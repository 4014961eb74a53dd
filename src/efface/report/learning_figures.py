"""Curves of a training run, the embedding in two dimensions, and an interval on a common scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from efface.learn.compare import Figure
from efface.report.svg import Scale, drawable, element, mark_text, marks, path, picture
from efface.report.words import number

NAMED_CLASSES = 30
"""With more classes than this their numbers are left out."""
HUES = 8
"""Colours of classes; with more they come again, and the numbers tell them apart."""


def curve_plot(
    key: str, title: str, points: Sequence[Sequence[float]], width: float = 380, height: float = 200
) -> Markup:
    """One figure against steps.

    Args:
        key: unique on the page.
        title: what the figure shows.
        points: [step, value] in rising order; values that are not finite are left out.
    """
    shown = [(float(step), float(value)) for step, value in points if drawable(value)]
    left, right, top, bottom = 50.0, width - 14, 12.0, height - 34
    shapes: list[Markup] = []
    if shown:
        ys = marks(min(v for _, v in shown), max(v for _, v in shown), 4)
        xs = marks(0.0, max(1.0, max(s for s, _ in shown)), 4)
        across, up = Scale(xs[0], xs[-1], left, right), Scale(ys[0], ys[-1], bottom, top)
        for value in ys:
            shapes.append(path([(left, up(value)), (right, up(value))], "grid"))
            shapes.append(element("text", mark_text(value), x=left - 8, y=up(value) + 4, class_="tick end"))
        for value in xs:
            shapes.append(element("text", mark_text(value), x=across(value), y=bottom + 16, class_="tick middle"))
        shapes.append(element("text", "steps", x=(left + right) / 2, y=height - 4, class_="axis middle"))
        line = [(across(s), up(v)) for s, v in shown]
        shapes.append(path(line, "curve k-unlearned"))
        if len(line) <= 24:
            shapes += [element("circle", cx=round(x, 1), cy=round(y, 1), r=3, class_="spot") for x, y in line]
    said = f"from {number(shown[0][1])} to {number(shown[-1][1])}" if shown else "no value that could be drawn"
    return picture(key, title, said, width, height, *shapes)


def point_map(key: str, plane: dict[str, Any], side: float = 460) -> Markup:
    """The rows in two principal components, coloured by class, with the classes' numbers at their centres."""
    middle, reach = side / 2, side / 2 - 16
    spots = [(middle + reach * x, middle - reach * y) for x, y in plane["points"]]
    known = plane["marks"] if plane["classes"] else None
    shapes = [element("rect", x=0.5, y=0.5, width=side - 1, height=side - 1, class_="frame")]
    for place, (x, y) in enumerate(spots):
        hue = f"dot hue-{known[place] % HUES}" if known is not None else "dot kept"
        shapes.append(element("circle", cx=round(x, 1), cy=round(y, 1), r=2.2, class_=hue))
    classes = sorted(set(known or ()))
    if 0 < len(classes) <= NAMED_CLASSES:
        for label in classes:
            own = [spot for spot, other in zip(spots, known or (), strict=True) if other == label]
            x, y = (sum(values) / len(own) for values in zip(*own, strict=True))
            shapes.append(element("text", str(label), x=round(x, 1), y=round(y + 5, 1), class_="class-name middle"))
    said = f"{len(spots)} rows" + (f" of {len(classes)} classes" if classes else "")
    return picture(key, "The embedding in two principal components", said, side, side, *shapes)


def span_of(figures: Sequence[Figure]) -> tuple[float, float]:
    """The ends that all intervals fit into."""
    low, high = min(figure.low for figure in figures), max(figure.high for figure in figures)
    pad = 0.05 * (high - low) or 0.05
    return low - pad, high + pad


def interval_row(key: str, title: str, figure: Figure, span: tuple[float, float], width: float = 170) -> Markup:
    """A point with its interval, on the scale that all rows share."""
    across = Scale(span[0], span[1], 4, width - 4)
    shapes = [
        path([(4, 11), (width - 4, 11)], "grid"),
        path([(across(figure.low), 11), (across(figure.high), 11)], "whisker k-unlearned"),
        element("circle", cx=round(across(figure.value), 1), cy=11, r=4, class_="spot"),
    ]
    said = f"{number(figure.value)}, from {number(figure.low)} to {number(figure.high)}"
    return picture(key, title, said, width, 22, *shapes)
