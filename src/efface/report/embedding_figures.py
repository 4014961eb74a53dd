"""The feature spaces of a run as figures: one panel a model, the rows to be forgotten marked among those to be kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from efface.audit.embedding import EmbeddingMap
from efface.report.data import MethodResult
from efface.report.svg import element, picture
from efface.report.words import number

ORDER = ("original", "unlearned", "retrained")
NAMED_CLASSES = 12
"""With more classes than this their numbers are left out."""


@dataclass(frozen=True)
class EmbeddingPanel:
    """The maps of one result."""

    title: str
    figures: list[tuple[Markup, str]]


def map_plot(key: str, title: str, found: EmbeddingMap, side: float = 300) -> Markup:
    """Points of one map; classes are named at their centres.

    Args:
        key: unique on the page.
        title: what the figure shows.
        side: in drawing units.
    """
    middle, reach = side / 2, side / 2 - 14
    shapes = [element("rect", x=0.5, y=0.5, width=side - 1, height=side - 1, class_="frame")]
    spots = [(middle + reach * x, middle - reach * y) for x, y in found.points]
    for gone in (False, True):
        for (x, y), flag in zip(spots, found.forget, strict=True):
            if flag == gone:
                class_ = "dot gone" if gone else "dot kept"
                shapes.append(element("circle", cx=round(x, 1), cy=round(y, 1), r=2.6 if gone else 1.8, class_=class_))
    known = sorted({label for label in found.label if label >= 0})
    if 0 < len(known) <= NAMED_CLASSES:
        for label in known:
            own = [spot for spot, other in zip(spots, found.label, strict=True) if other == label]
            x, y = (sum(values) / len(own) for values in zip(*own, strict=True))
            shapes.append(element("text", str(label), x=x, y=y + 5, class_="class-name middle"))
    said = f"{sum(found.forget)} rows to be forgotten among {len(found.forget) - sum(found.forget)} to be kept"
    return picture(key, title, said, side, side, *shapes, class_="figure map")


def embedding_panels(results: Sequence[MethodResult]) -> list[EmbeddingPanel]:
    """For every result with maps, a panel a model."""
    found = []
    for place, result in enumerate(results):
        figures = []
        for role in ORDER:
            own = result.embedding.get(role)
            if own is not None:
                caption = f"{role}: {number(100 * own.explained)} % of the variance in two components"
                figures.append((map_plot(f"e{place}{role}", f"Features of the {role} model", own), caption))
        if figures:
            found.append(EmbeddingPanel(result.label if len(results) > 1 else "", figures))
    return found


__all__ = ["EmbeddingPanel", "embedding_panels", "map_plot"]
