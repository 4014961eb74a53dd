"""The figures of the gallery as inline SVG: the thin bar of an item, the distribution, gain against norm.

Nothing is computed here but positions. Colours and fonts come from the page's style sheets.
"""

from __future__ import annotations

from markupsafe import Markup

from efface.measure.gain_summary import Side
from efface.report.gallery_words import Unit, capped, mode_name, nouns, span
from efface.report.svg import Scale, drawable, element, mark_text, marks, path, picture
from efface.report.words import plural


def top_of(side: Side, mode: str) -> float:
    """The end of the bars' common scale in nats: log N, or the highest value where that lies beyond it."""
    found = span(side, mode)
    values = [side.log_n] if found is None or capped(side, mode) else [side.log_n, found[1]]
    return max([value for value in values if drawable(value)] or [1.0]) or 1.0


def bar(value: float | None, top: float, median: float | None, saturated: bool) -> Markup:
    """A thin bar from 0 to `top`, hollow where saturated, with a tick at the median; for the eye only."""
    scale = Scale(0.0, top if top > 0 else 1.0, 0.0, 100.0)
    shapes = [element("rect", x=0, y=2, width=100, height=4, class_="track")]
    if value is not None and drawable(value):
        kind = "fill hollow" if saturated else "fill"
        shapes.append(element("rect", x=0, y=2, width=max(scale(value), 0.8), height=4, class_=kind))
    if median is not None and drawable(median):
        shapes.append(element("rect", x=min(scale(median), 99.2), y=0, width=0.8, height=8, class_="tick-mark"))
    return element(
        "svg", *shapes, class_="bar", viewBox="0 0 100 8", preserveAspectRatio="none", aria_hidden="true"
    )  # fmt: skip


def near(log_n: float, highest: float) -> bool:
    """Whether log N is close enough to the values to share their axis; far off it would press them into a corner."""
    return drawable(log_n) and log_n <= 2.5 * highest


def bins(side: Side) -> list[tuple[float, float, int]]:
    """The bins of the histogram (from, to, count) without empty ones at the ends; none where it is broken."""
    edges, counts = side.histogram.edges, side.histogram.counts
    if len(edges) != len(counts) + 1 or not all(drawable(edge) for edge in edges) or min(counts, default=0) < 0:
        return []
    found = [(a, b, n) for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True) if b > a]
    filled = [index for index, row in enumerate(found) if row[2]]
    return found[filled[0] : filled[-1] + 1] if filled else []


def inner_deciles(side: Side) -> list[float]:
    """The nine inner deciles, where the summary gives nine, or eleven with both ends."""
    values = [value for value in side.deciles if drawable(value)]
    return values[1:-1] if len(values) == 11 else values if len(values) == 9 else []


def histogram(key: str, side: Side, mode: str, unit: Unit, width: float = 820) -> Markup | None:
    """How many items have which value: bars, the median, log N, and a small tick at each decile.

    Args:
        key: unique on the page.
        side: the side with its histogram, in nats.
        mode: the headline mode.
        unit: the unit of the axis.
        width: width in drawing units; below 500 the figure takes its narrow form.
    """
    rows = bins(side)
    if not rows:
        return None
    narrow, height, found = width < 500, 236.0, side.modes.get(mode)
    ceiling = unit.name != "" and drawable(side.log_n)
    close = ceiling and near(side.log_n, rows[-1][1])
    ends = [0.0, rows[0][0], rows[-1][1], *([side.log_n] if close else [])]
    xs = marks(unit.of(min(ends)), unit.of(max(ends)), 5 if narrow else 8)
    left, right, top, bottom = 8.0, width - 8, 46.0, height - 46
    across = Scale(xs[0], xs[-1], left, right)
    up = Scale(0.0, float(max(row[2] for row in rows)), bottom, top)
    shapes = []
    for low, high, count in rows:
        x0, x1 = across(unit.of(low)), across(unit.of(high))
        gap = 1.0 if x1 - x0 > 4 else 0.0
        tall = max(bottom - up(float(count)), 1.2 if count else 0.0)
        shapes.append(
            element("rect", x=x0, y=bottom - tall, width=max(x1 - x0 - gap, 0.8), height=tall, class_="column")
        )
    shapes.append(path([(left, bottom), (right, bottom)], "base"))
    for value in xs:
        shapes.append(
            element("text", mark_text(value), x=_inside(across(value), width), y=bottom + 24, class_="tick middle")
        )
    for value in inner_deciles(side):
        shapes.append(path([(across(unit.of(value)), bottom), (across(unit.of(value)), bottom + 8)], "decile"))
    if ceiling and not close:
        shapes.append(
            element("text", f"log N {unit.text(side.log_n)} →", x=right, y=14, class_="label ceiling-word end")
        )
    elif close:
        shapes += _line(across(unit.of(side.log_n)), 14.0, bottom, f"log N {unit.text(side.log_n)}", "ceiling", width)
    if found is not None and drawable(found.median):
        label = f"median {unit.text(found.median)}"
        shapes += _line(across(unit.of(found.median)), 32.0, bottom, label, "median", width)
    name = mode_name(mode) + (f" in {unit.name}" if unit.name else "")
    shapes.append(element("text", name, x=width / 2, y=height - 4, class_="axis middle"))
    one, many = nouns(side.name)
    said = [f"{plural(side.n, one, many)} between {unit.text(rows[0][0])} and {unit.text(rows[-1][1])}{unit.tail}"]
    peak = max(rows, key=lambda row: row[2])
    said.append(f"the fullest bin, {unit.text(peak[0])} to {unit.text(peak[1])}, holds {peak[2]:,}")
    if found is not None:
        said.append(f"median {unit.text(found.median)}")
    if ceiling:
        said.append(f"log N {unit.text(side.log_n)}")
    return picture(
        key, f"Distribution of the {mode_name(mode)} of {many}", "; ".join(said), width, height, *shapes,
        class_=f"figure {'only-narrow' if narrow else 'only-wide'}",
    )  # fmt: skip


def _inside(x: float, width: float) -> float:
    """A place for a centred axis number that does not leave the drawing."""
    return min(max(x, 14.0), width - 14.0)


def _line(x: float, y: float, bottom: float, label: str, class_: str, width: float) -> list[Markup]:
    """A vertical line with its label above, on the side where there is room."""
    left = x > width / 2
    text = element(
        "text", label, x=x - 6 if left else x + 6, y=y, class_=f"label {class_}-word {'end' if left else 'start'}"
    )
    return [path([(x, y - 10), (x, bottom)], class_), text]


def scatter(key: str, side: Side, unit: Unit) -> Markup | None:
    """Gain against the norm centred at zero, one point an item; hollow where saturated, with the line norm = gain.

    Args:
        key: unique on the page.
        side: the side with its points, in nats.
        unit: the unit of both axes.
    """
    points = [(unit.of(x), unit.of(y), hollow) for x, y, hollow in side.scatter if drawable(x) and drawable(y)]
    if not points:
        return None
    width, height = 430.0, 380.0
    ceiling, heights = unit.of(side.log_n), [y for _, y, _ in points]
    close = near(ceiling, max(heights))
    heights += [ceiling] if close else []
    xs = marks(min(0.0, *(x for x, _, _ in points)), max(x for x, _, _ in points) or 1.0, 5)
    ys = marks(min(0.0, *heights), max(heights) or 1.0, 5)
    left, right, top, bottom = 40.0, width - 14, 26.0, height - 46
    across, up = Scale(xs[0], xs[-1], left, right), Scale(ys[0], ys[-1], bottom, top)
    shapes = []
    for value in ys:
        shapes.append(path([(left, up(value)), (right, up(value))], "grid"))
        shapes.append(element("text", mark_text(value), x=left - 8, y=up(value) + 4, class_="tick end"))
    for value in xs:
        shapes.append(path([(across(value), bottom), (across(value), bottom + 4)], "grid"))
        shapes.append(element("text", mark_text(value), x=across(value), y=bottom + 18, class_="tick middle"))
    low, high = max(xs[0], ys[0]), min(xs[-1], ys[-1])
    if high > low:
        shapes.append(path([(across(low), up(low)), (across(high), up(high))], "identity"))
    if close:
        shapes.append(path([(left, up(ceiling)), (right, up(ceiling))], "ceiling"))
    if drawable(ceiling):
        label, y = f"log N {unit.text(side.log_n)}{'' if close else ' ↑'}", up(ceiling) - 6 if close else top - 12
        shapes.append(element("text", label, x=right, y=y, class_="label ceiling-word end"))
    dots = [
        element("circle", cx=across(x), cy=up(y), r=2.6 if len(points) > 300 else 3.4, class_="o" if hollow else None)
        for x, y, hollow in sorted(points)
    ]
    shapes.append(element("g", *dots, class_="dots"))
    shapes.append(
        element(
            "text", f"norm, centred at zero ({unit.name})", x=(left + right) / 2, y=height - 6, class_="axis middle"
        )
    )
    turn = f"translate(11 {(top + bottom) / 2:.0f}) rotate(-90)"
    shapes.append(element("text", f"gain ({unit.name})", x=0, y=0, class_="axis middle", transform=turn))
    one, many = nouns(side.name)
    hollow_ones = sum(1 for point in points if point[2])
    ends = [f"{end(values):.3g}" for values in zip(*points, strict=True) for end in (min, max)]
    said = (
        f"{plural(len(points), one, many)}, {hollow_ones:,} of them saturated; norms from {ends[0]} to {ends[1]}, "
        f"gains from {ends[2]} to {ends[3]} {unit.name}"
    )
    return picture(key, f"Gain against norm, {many}", said, width, height, *shapes, class_="figure scatter")


def coverage(key: str, side: Side) -> Markup | None:
    """The share of all distinct word pairs in each of ten equal-count parts, lowest gain first; None without texts.

    Args:
        key: unique on the page.
        side: the side with its `ngram_coverage`.
    """
    shares = [value for value in side.ngram_coverage if drawable(value) and value >= 0]
    if len(shares) < 2 or max(shares) <= 0 or len(shares) > 50:
        return None
    width, height, bottom = 430.0, 150.0, 122.0
    up, step = Scale(0.0, max(shares), bottom, 20.0), (width - 8) / len(shares)
    shapes = []
    for index, share in enumerate(shares):
        x, y = 4 + index * step, up(share)
        shapes.append(element("rect", x=x + 2, y=y, width=step - 4, height=bottom - y, class_="column"))
        shapes.append(element("text", f"{100 * share:.0f} %", x=x + step / 2, y=y - 5, class_="tick middle"))
    shapes.append(path([(4, bottom), (width - 4, bottom)], "base"))
    shapes.append(element("text", "lowest gain", x=6, y=height - 8, class_="axis start"))
    shapes.append(element("text", "highest gain", x=width - 6, y=height - 8, class_="axis end"))
    said = "; ".join(f"part {index}: {100 * share:.1f} %" for index, share in enumerate(shares, 1))
    return picture(key, "Share of all word pairs by gain", said, width, height, *shapes)
