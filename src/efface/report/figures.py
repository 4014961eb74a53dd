"""The figures of the report as inline SVG: intervals, the trade-off, relearning.

Nothing is computed here but positions. Colours and fonts come from the page's style sheet.
"""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from efface.audit.finding import Estimate, Threshold
from efface.report.glyphs import marker, slug
from efface.report.svg import Scale, drawable, element, mark_text, marks, path, picture
from efface.report.words import interval, number, short_label, with_unit
from efface.run.record import Curve


@dataclass(frozen=True)
class Row:
    """One line of an interval plot: a model with its value, or without one where it was not measured."""

    label: str
    role: str
    estimate: Estimate | None


@dataclass(frozen=True)
class Point:
    """One model in the trade-off figure."""

    label: str
    kind: str  # original, retrained, or an outcome word
    utility: float
    quality: float  # log10 p


def _span(rows: list[Row], extra: list[float]) -> list[float]:
    """Axis marks for all values and intervals; 0 to 1 where all lie there and fill a tenth of it.

    A value far beyond the original, the retrained model and the threshold does not stretch the axis: it would
    press all others into one spot. It stands at the edge with an arrow.
    """
    values = list(extra)
    for row in rows:
        if row.estimate is not None:
            values += [v for v in (row.estimate.value, row.estimate.low, row.estimate.high) if v is not None]
    values = [value for value in values if drawable(value)]
    if not values:
        return [0.0, 0.5, 1.0]
    low, high = min(values), max(values)
    anchors = [row.estimate.value for row in rows if row.estimate and row.role in ("original", "retrained")]
    anchors = [abs(value) for value in [*anchors, *extra] if drawable(value)]
    if low >= 0 and anchors and 0 < 8 * max(anchors) < high:
        high = 2 * max(anchors)
    if low >= 0 and high <= 1 and high >= 0.1:
        return [0.0, 0.25, 0.5, 0.75, 1.0]
    return marks(min(low, 0.0) if 0 <= low < high / 2 else low, high)


def threshold_lines(threshold: Threshold | None, original: Estimate | None, retrained: Estimate | None) -> list[float]:
    """Where a threshold stands on the metric's axis: one line, two for a distance, none where it cannot."""
    if threshold is None:
        return []
    if threshold.quantity == "value":
        lines = [threshold.bound]
    elif threshold.quantity == "ratio":
        lines = [] if original is None else [threshold.bound * original.value]
    else:
        centre = retrained.value if retrained else None
        lines = [] if centre is None else [centre - threshold.bound, centre + threshold.bound]
    return [line for line in lines if drawable(line)]


def _zone(threshold: Threshold, lines: list[float], scale: Scale, top: float, height: float) -> Markup:
    """The part of the axis where the threshold holds, and its edge."""
    if len(lines) == 2:
        spans = [(scale(lines[0]), scale(lines[1]))]
        if threshold.relation != "<=":
            spans = [(scale.start, spans[0][0]), (spans[0][1], scale.end)]
    elif threshold.relation == "<=":
        spans = [(scale.start, scale(lines[0]))]
    else:
        spans = [(scale(lines[0]), scale.end)]
    shapes = [element("rect", x=a, y=top, width=max(b - a, 0.0), height=height, class_="zone") for a, b in spans]
    shapes += [
        path([(scale(line), top), (scale(line), top + height)], "edge")
        for line in lines
        if scale.low <= line <= scale.high
    ]
    return Markup("").join(shapes)


def interval_plot(
    key: str,
    title: str,
    rows: list[Row],
    unit: str = "",
    threshold: Threshold | None = None,
    lines: list[float] | None = None,
    labels: float = 74,
    ranges: bool = True,
) -> Markup:
    """A small horizontal plot: one line a model, a mark at its value, a bar over its 95 % interval.

    Args:
        key: unique on the page.
        title: the metric.
        rows: models from top to bottom; a row without estimate is drawn as not measured.
        unit: printed after the values in the description.
        threshold: shaded where it holds.
        lines: where the threshold stands on this axis (see `threshold_lines`).
        labels: width of the label column in drawing units.
        ranges: print the intervals beside the values.
    """
    width, step, top = 400.0, 25.0, 6.0
    body = step * len(rows)
    edges = lines or []
    axis = _span(rows, edges)
    longest = max((len(interval(row.estimate)) for row in rows if ranges and row.estimate is not None), default=0)
    scale = Scale(axis[0], axis[-1], labels + 8, width - (max(142.0, 12 + 7.0 * longest) if ranges else 58))
    shapes = []
    if threshold is not None and edges:
        shapes.append(_zone(threshold, edges, scale, top, body))
    for value in axis:
        shapes.append(path([(scale(value), top), (scale(value), top + body)], "grid"))
    for value in (axis[0], axis[len(axis) // 2], axis[-1]) if len(axis) % 2 else (axis[0], axis[-1]):
        shapes.append(element("text", mark_text(value), x=scale(value), y=top + body + 15, class_="tick middle"))
    said = []
    for index, row in enumerate(rows):
        y = top + step * (index + 0.5)
        room = int((labels - 2) / 6.4)
        shapes.append(element("text", short_label(row.label, room), x=labels, y=y + 4, class_="label end"))
        if row.estimate is None:
            shapes.append(path([(scale.start, y), (scale.end, y)], "absent"))
            words = "not measured" if ranges else "absent"
            shapes.append(element("text", words, x=scale.end + 10, y=y + 4, class_="tick absent-word"))
            said.append(f"{row.label}: not measured")
            continue
        value, low, high = row.estimate.value, row.estimate.low, row.estimate.high
        if low is not None and high is not None and drawable(low) and drawable(high) and low <= axis[-1]:
            shapes.append(path([(scale(low), y), (scale(high), y)], f"whisker k-{slug(row.role)}"))
        if drawable(value) and axis[0] <= value <= axis[-1]:
            shapes.append(marker(row.role, scale(value), y, 4.6))
        elif drawable(value):
            x, tip = (scale.end, 7.0) if value > axis[-1] else (scale.start, -7.0)
            shapes.append(path([(x - tip, y - 5), (x, y), (x - tip, y + 5)], f"beyond k-{slug(row.role)}"))
        printed = interval(row.estimate) if ranges else "≈ 0" if 0 < abs(value) < 5e-4 else number(value)
        shapes.append(element("text", printed, x=scale.end + 10, y=y + 4, class_="value"))
        between = "" if low is None or high is None else f", 95 % interval {number(low)} to {number(high)}"
        said.append(f"{row.label}: {with_unit(number(value), unit)}{between}")
    if threshold is not None and edges:
        said.append(f"threshold: {threshold.words()}")
    return picture(key, title, "; ".join(said), width, top + body + 22, *shapes, class_="figure intervals")


FLOOR = -30.0
"""Lowest log10 p with a place of its own; what is smaller stands at the floor with its value beside it."""


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Shared area of two boxes (x0, y0, x1, y1)."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _place(
    x: float,
    y: float,
    text: str,
    taken: list[tuple[float, float, float, float]],
    frame: tuple[float, float, float, float],
    size: float,
) -> tuple[float, float, str]:
    """The spot beside a point where its label covers least; returns x, baseline y and the anchor's class."""
    wide, best = len(text) * size * 0.57, None
    spots = [(12, 4, "start"), (-12, 4, "end"), (0, -12, "middle"), (0, 21, "middle")]
    spots += [(9, dy, "start") for dy in (-9, 17, -25, 33)] + [(-9, dy, "end") for dy in (-9, 17, -25, 33)]
    for order, (dx, dy, anchor) in enumerate(spots):
        left = x + dx - {"start": 0.0, "end": wide, "middle": wide / 2}[anchor]
        box = (left, y + dy - size, left + wide, y + dy + 3)
        outside = (box[2] - box[0]) * (box[3] - box[1]) - _overlap(box, frame)
        cost = 3 * sum(_overlap(box, other) for other in taken) + 4 * outside + order
        if best is None or cost < best[0]:
            best = (cost, x + dx, y + dy, anchor, box)
    assert best is not None
    taken.append(best[4])
    return best[1], best[2], best[3]


def tradeoff(
    key: str, points: list[Point], bound: float | None = None, width: float = 820, height: float = 440,
    words: tuple[str, str] = ("model utility → more useful", "log10 p of forget quality → less to tell apart"),
) -> Markup:  # fmt: skip
    """What is forgotten against what is kept, one mark a model; upper right is where one wants to be.

    Args:
        key: unique on the page.
        points: methods and, where measured, the original and the retrained model.
        bound: the threshold on log10 p, where the run fixed one.
        width: width in drawing units; below 500 the figure takes its narrow form.
        height: height in drawing units.
    """
    shown = [point for point in points if drawable(point.utility) and drawable(point.quality)]
    narrow = width < 500
    xs = marks(0.0, max([1.0 if any(p.utility > 0.5 for p in shown) else 0.5, *(p.utility for p in shown)]), 5)
    lowest = min([-5.0, *(p.quality for p in shown)])
    ys = marks(max(FLOOR, lowest), max([0.0, *(p.quality for p in shown)]), 6)
    left, right, top, bottom = (
        (46.0, width - 12, 14.0, height - 46) if narrow else (66.0, width - 20, 18.0, height - 52)
    )
    across, up = Scale(xs[0], xs[-1], left, right), Scale(ys[0], ys[-1], bottom - 14, top + 18)
    shapes = [element("rect", x=left, y=top, width=right - left, height=bottom - top, class_="frame")]
    if bound is not None and ys[0] <= bound <= ys[-1]:
        shapes.append(element("rect", x=left, y=top, width=right - left, height=up(bound) - top, class_="zone"))
        shapes.append(path([(left, up(bound)), (right, up(bound))], "edge"))
    for value in xs:
        shapes.append(path([(across(value), top), (across(value), bottom)], "grid"))
        shapes.append(element("text", mark_text(value), x=across(value), y=bottom + 17, class_="tick middle"))
    for value in ys:
        shapes.append(path([(left, up(value)), (right, up(value))], "grid"))
        shapes.append(element("text", mark_text(value), x=left - 8, y=up(value) + 4, class_="tick end"))
    shapes.append(element("text", words[0], x=(left + right) / 2, y=height - 8, class_="axis middle"))
    shapes.append(
        element(
            "text",
            words[1],
            x=0,
            y=0,
            class_="axis middle",
            transform=f"translate(12 {(top + bottom) / 2:.0f}) rotate(-90)",
        )
    )
    size = 11.5 if narrow else 13.0
    taken = [(across(p.utility) - 9, up(p.quality) - 9, across(p.utility) + 9, up(p.quality) + 9) for p in shown]
    said = []
    for point in shown:
        x, y = across(point.utility), up(point.quality)
        shapes.append(marker(point.kind, x, y, 5.5 if narrow else 6.5))
        text = short_label(point.label, 22 if narrow else 32)
        if point.quality < ys[0]:
            text += f" ({number(point.quality)} ↓)"
        tx, ty, anchor = _place(x, y, text, taken, (left, top, right, bottom), size)
        strong = " strong" if point.kind in ("original", "retrained") else ""
        shapes.append(element("text", text, x=tx, y=ty, class_=f"label {anchor}{strong}{' small' if narrow else ''}"))
        said.append(f"{point.label} ({point.kind}): utility {number(point.utility)}, log10 p {number(point.quality)}")
    return picture(
        key,
        "Forget quality against model utility",
        "; ".join(said),
        width,
        height,
        *shapes,
        class_=f"figure {'only-narrow' if narrow else 'only-wide'}",
    )


def relearning_plot(
    key: str,
    title: str,
    curves: list[Curve],
    width: float = 400,
    height: float = 250,
    class_: str = "figure",
    top_value: float | None = None,
) -> Markup:
    """Score on the forget set against steps of relearning, one line a model, with its interval as a band.

    Args:
        key: unique on the page.
        title: what the figure shows.
        curves: one a role; steps and values have the same length.
        width: width in drawing units.
        height: height in drawing units.
        class_: class of the svg element.
        top_value: largest value of all panels that share a scale, or None.
    """
    points = [(s, v) for c in curves for s, v in zip(c.steps, c.values, strict=True) if drawable(v)]
    ends = [v for c in curves for v in [*(c.low or []), *(c.high or [])] if drawable(v)]
    values = [*(v for _, v in points), *ends, *([] if top_value is None else [top_value])] or [1.0]
    floor, ceiling = min(0.0, *values), max(values)
    ys = marks(floor, 1.0 if 0.5 < ceiling <= 1 else ceiling, 5)
    xs = marks(0.0, max([s for s, _ in points] or [1]), 4)
    left, right, top, bottom = 44.0, width - 14, 26.0, height - 40
    across, up = Scale(xs[0], xs[-1], left, right), Scale(ys[0], ys[-1], bottom, top)
    shapes = [element("text", "score on the forget set", x=left - 26, y=10, class_="axis")]
    for value in ys:
        shapes.append(path([(left, up(value)), (right, up(value))], "grid"))
        shapes.append(element("text", mark_text(value), x=left - 8, y=up(value) + 4, class_="tick end"))
    for value in xs:
        shapes.append(path([(across(value), bottom), (across(value), bottom + 4)], "grid"))
        shapes.append(element("text", mark_text(value), x=across(value), y=bottom + 17, class_="tick middle"))
    shapes.append(element("text", "steps of relearning", x=(left + right) / 2, y=height - 5, class_="axis middle"))
    said = []
    for curve in sorted(curves, key=lambda c: ("original", "retrained", "unlearned").index(c.role)):
        kind = f"k-{slug(curve.role)}"
        line = [(across(s), up(v)) for s, v in zip(curve.steps, curve.values, strict=True) if drawable(v)]
        if curve.low is not None and curve.high is not None:
            both = [
                (across(s), up(a), up(b))
                for s, a, b in zip(curve.steps, curve.low, curve.high, strict=True)
                if drawable(a) and drawable(b)
            ]
            if both:
                area = [(x, b) for x, _, b in both] + [(x, a) for x, a, _ in reversed(both)]
                shapes.append(path(area, f"band {kind}", close=True))
        if line:
            shapes.append(path(line, f"curve {kind}"))
        every = max(1, -(-len(line) // 8))
        shapes += [marker(curve.role, x, y, 3.6) for x, y in line[::every]]
        reached = "not reached" if curve.reached is None else f"reached at step {curve.reached}"
        ends_at = number(curve.values[-1]) if curve.values else "no value"
        said.append(f"{curve.role}: ends at {ends_at}, target {reached}")
    return picture(key, title, "; ".join(said), width, height, *shapes, class_=class_)
