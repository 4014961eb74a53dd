"""The small marks of roles, outcomes and verdicts.

Each has a shape of its own beside its colour, so that no figure needs colour to be read.
"""

from __future__ import annotations

from collections.abc import Callable

from markupsafe import Markup

from efface.report.svg import element, path
from efface.report.words import OUTCOMES

ROLES = ("unlearned", "original", "retrained")


def slug(word: str) -> str:
    """The class name of an outcome, a verdict or a role; an unknown word has the look of `not judged`."""
    name = word.replace(" ", "-")
    known = {*ROLES, *(key.replace(" ", "-") for key in OUTCOMES)}
    known |= {"holds", "does-not-hold", "informative", "not-measured"}
    return name if name in known else "not-judged"


def marker(kind: str, x: float, y: float, size: float = 5.0) -> Markup:
    """The shape of a role or an outcome, centred at (x, y)."""
    name, class_ = slug(kind), f"mark k-{slug(kind)}"

    def diamond(r: float) -> Markup:
        return path([(x, y - r), (x + r, y), (x, y + r), (x - r, y)], f"{class_} hollow", close=True)

    def square(r: float) -> Markup:
        return element("rect", x=x - r, y=y - r, width=2 * r, height=2 * r, class_=f"{class_} hollow")

    def cross(r: float) -> Markup:
        return path([(x - r, y - r), (x + r, y + r)], class_) + path([(x - r, y + r), (x + r, y - r)], class_)

    def ring(r: float, *inside: Markup) -> Markup:
        return element("circle", cx=x, cy=y, r=r, class_=f"{class_} hollow") + Markup("").join(inside)

    def half(r: float) -> Markup:
        arc = f"M{x:.1f} {y - r:.1f} A{r:.1f} {r:.1f} 0 0 0 {x:.1f} {y + r:.1f} Z"
        return ring(r, element("path", d=arc, class_=f"{class_} solid"))

    def disc(r: float) -> Markup:
        return element("circle", cx=x, cy=y, r=r, class_=f"{class_} solid")

    shapes: dict[str, Callable[[float], Markup]] = {
        "original": lambda r: square(r * 0.85),
        "retrained": lambda r: diamond(r * 1.2),
        "suppressed": half,
        "damaged": lambda r: cross(r * 0.85),
        "not-forgotten": ring,
        "not-judged": lambda r: ring(r),
    }
    return shapes.get(name, disc)(size)


def outcome_icon(word: str) -> Markup:
    """The mark of an outcome or a role beside its word; the word carries the meaning."""
    return element(
        "svg",
        marker(word, 8, 8, 5.5),
        class_="icon",
        viewBox="0 0 16 16",
        width=16,
        height=16,
        aria_hidden="true",
    )


def verdict_icon(verdict: str) -> Markup:
    """The mark of a finding's verdict beside its word: tick, cross, bar or dashed ring."""
    class_ = f"sign k-{slug(verdict)}"
    shapes = {
        "holds": path([(3.5, 8.5), (6.8, 11.8), (12.5, 4.5)], class_),
        "does not hold": path([(4, 4), (12, 12)], class_) + path([(4, 12), (12, 4)], class_),
        "informative": path([(3.5, 8), (12.5, 8)], class_),
    }
    shape = shapes.get(verdict) or element("circle", cx=8, cy=8, r=5, class_=f"{class_} dashed")
    return element("svg", shape, class_="icon", viewBox="0 0 16 16", width=16, height=16, aria_hidden="true")
