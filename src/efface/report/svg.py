"""Inline SVG from plain calls: elements that escape every text, linear scales, round axis marks.

Colours and fonts come from classes of the page's style sheet, so that one figure serves light, dark and
print.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup, escape

from efface.report.words import clean

LARGEST = 1e12
"""Values beyond this size are printed but not drawn: no axis could show them beside others."""


def element(name: str, *children: str | Markup, **attributes: str | float | None) -> Markup:
    """One SVG element. Texts and attribute values are cleaned and escaped; `Markup` stays as it is.

    Args:
        name: element name, written by code.
        children: texts or elements.
        attributes: `class_` gives `class`, an inner underscore gives a hyphen, None leaves the attribute out.
    """
    parts = [Markup("<{}").format(name)]
    for key, value in attributes.items():
        if value is None:
            continue
        text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        parts.append(Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), clean(text)))
    inner = Markup("").join(child if isinstance(child, Markup) else escape(clean(child)) for child in children)
    return Markup("").join([*parts, Markup(">"), inner, Markup("</{}>").format(name)])


def picture(
    key: str,
    title: str,
    description: str,
    width: float,
    height: float,
    *shapes: Markup,
    class_: str = "figure",
) -> Markup:
    """An `<svg role="img">` with a title and a description for those who do not see it.

    Args:
        key: unique on the page, written by code; the ids of title and description are made from it.
        title: what the figure shows.
        description: its content in words.
        width: width of the drawing in its own units.
        height: height of the drawing in its own units.
        shapes: the elements.
        class_: class of the svg element.
    """
    head = [
        element("title", title, id=f"{key}-title"),
        element("desc", description, id=f"{key}-desc"),
    ]
    return element(
        "svg",
        *head,
        *shapes,
        class_=class_,
        role="img",
        aria_labelledby=f"{key}-title",
        aria_describedby=f"{key}-desc",
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
    )


def path(points: list[tuple[float, float]], class_: str, close: bool = False) -> Markup:
    """A line (or a closed area) through points."""
    steps = " ".join(f"{'L' if index else 'M'}{x:.1f} {y:.1f}" for index, (x, y) in enumerate(points))
    return element("path", d=steps + (" Z" if close else ""), class_=class_)


@dataclass(frozen=True)
class Scale:
    """A linear map from values [low, high] to drawing units [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The position of a value; values outside the scale are put at its edge."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)


def drawable(value: float | None) -> bool:
    """Whether a value can stand on an axis."""
    return value is not None and math.isfinite(value) and abs(value) <= LARGEST


def marks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that span [low, high]; about `count` steps.

    The first is at or below `low`, the last at or above `high`.
    """
    size = max(abs(low), abs(high))
    if high - low <= max(1e-100, 1e-9 * size):
        pad = 0.1 * size if size > 1e-100 else 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def mark_text(value: float) -> str:
    """An axis number: as short as it can be, with a real minus sign."""
    text = f"{value:,.0f}" if abs(value) >= 1000 and value == round(value) else f"{value:.6g}"
    return text.replace("-", "−")
