"""Requests in sequence as figures: what is left of the forgotten answers, and of the rest, after each request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from efface.audit.finding import Estimate, Finding
from efface.report.data import MethodResult
from efface.report.glyphs import marker, slug
from efface.report.svg import Scale, drawable, element, mark_text, path, picture
from efface.report.words import number

Line = tuple[str, list[float | None]]
ROLES = ("original", "unlearned", "retrained")
PANELS = (
    ("utility", "What is to be kept: ROUGE-L F1"),
    ("so_far", "Answers of all requests so far: probability"),
)
"""Metric of the suite `sequence`, and what a person calls it."""


@dataclass(frozen=True)
class SequencePanel:
    """The figures of one run."""

    title: str
    figures: list[tuple[Markup, str]]


def sequence_plot(key: str, title: str, lines: Sequence[Line], width: float = 400, height: float = 220) -> Markup:
    """A score between 0 and 1 against the number of requests that were forgotten, one line a model.

    Args:
        key: unique on the page.
        title: what the figure shows.
        lines: (role, values after 0, 1, 2, ... requests; None where not measured).
        width, height: in drawing units.
    """
    count = max((len(values) - 1 for _, values in lines), default=1) or 1
    left, right, top, bottom = 44.0, width - 14, 12.0, height - 40
    across, up = Scale(0.0, float(count), left, right), Scale(0.0, 1.0, bottom, top)
    shapes = []
    for value in (0.0, 0.5, 1.0):
        shapes.append(path([(left, up(value)), (right, up(value))], "grid"))
        shapes.append(element("text", mark_text(value), x=left - 8, y=up(value) + 4, class_="tick end"))
    every = max(1, -(-count // 8))
    for place in range(0, count + 1, every):
        shapes.append(path([(across(place), bottom), (across(place), bottom + 4)], "grid"))
        shapes.append(element("text", str(place), x=across(place), y=bottom + 17, class_="tick middle"))
    shapes.append(element("text", "requests forgotten", x=(left + right) / 2, y=height - 5, class_="axis middle"))
    said = []
    for role, values in lines:
        points = [(across(i), up(y)) for i, y in enumerate(values) if y is not None and drawable(y)]
        if points:
            shapes.append(path(points, f"curve k-{slug(role)}"))
            shapes += [marker(role, x, y, 3.6) for x, y in points]
        said.append(f"{role}: " + ", ".join("not measured" if y is None else number(y) for y in values))
    return picture(key, title, "by requests, before the first one first; " + "; ".join(said), width, height, *shapes)


def _value(finding: Finding | None, role: str) -> float | None:
    estimate: Estimate | None = None if finding is None else getattr(finding, role)
    return None if estimate is None else estimate.value


def lines_of(result: MethodResult, metric: str) -> list[Line]:
    """The lines of one panel; none where the run has no such findings.

    Before the first request, the unlearned model is the original; answers so far after one request are that request's.
    """
    after: list[Finding] = []
    while True:
        name = "forgotten" if metric == "so_far" and not after else metric
        finding = result.finding(f"sequence/{name}/{len(after) + 1}")
        if finding is None:
            break
        after.append(finding)
    if not after:
        return []
    found = []
    for role in ROLES:
        values = [_value(finding, role) for finding in after]
        start = _value(after[-1], "original") if role == "unlearned" else values[-1] if role == "original" else None
        if any(value is not None for value in values):
            found.append((role, [start, *values]))
    return found


def sequence_panels(results: Sequence[MethodResult]) -> list[SequencePanel]:
    """For every run of several requests, its two figures."""
    found = []
    for place, result in enumerate(results):
        figures = [
            (sequence_plot(f"q{place}{metric[:2]}", title, lines), title)
            for metric, title in PANELS if (lines := lines_of(result, metric))
        ]  # fmt: skip
        if figures:
            found.append(SequencePanel(result.label if len(results) > 1 else "", figures))
    return found
