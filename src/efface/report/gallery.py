"""One self-contained `gallery.html` for information gain: the least and the most informative items, to look at.

The page keeps the rules of the report (`efface.report.page`): no script, no request to any network, a
content-security policy that names its style sheet by hash, every foreign text cleaned and escaped. Pictures are
data URIs that are checked to be small PNG files before they are let in. The page computes nothing but words,
positions and units.
"""

from __future__ import annotations

import base64
import binascii
import struct
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from efface.errors import RunError
from efface.measure.gain_summary import GainSummary, Item, Side
from efface.report import gallery_figures as figures
from efface.report import gallery_words as said
from efface.report.page import TEMPLATES, environment, policy, style_sheet
from efface.report.words import clean, number
from efface.run.files import read_json, write_text

GALLERY = "gallery.html"
SUMMARY = "measure.json"
SHOWN = 12
"""Items of an end that stand on the page at once; the others fold out."""
LARGEST_SIDE = 512
"""Pixels a side beyond which a picture is no thumbnail and is left out."""
CRISP = 48
"""Pictures of at most this many pixels a side are scaled up with hard edges."""
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Picture:
    """A thumbnail that was checked: its data URI, its size, and whether it is small enough for hard edges."""

    uri: Markup
    width: int
    height: int
    crisp: bool


@dataclass(frozen=True)
class Tile:
    """One item as it stands in the gallery."""

    item: Item
    name: str
    alt: str
    picture: Picture | None
    value: str
    bar: Markup
    ess: str


@dataclass(frozen=True)
class End:
    """The lowest or the highest items of a side."""

    title: str
    word: str
    first: list[Tile]
    rest: list[Tile]


@dataclass(frozen=True)
class View:
    """One side as its section shows it."""

    key: str
    number: int
    side: Side
    title: str
    one: str
    many: str
    others: str
    sentence: str
    in_play: str
    ends: list[End]
    pictures: bool
    any_saturated: bool
    top: str
    histograms: list[Markup]
    deciles: tuple[str, str] | None
    coverage: Markup | None
    scatter: Markup | None
    verdict: str
    norm_sentence: str
    diagnostics: list[said.Diagnostic]


def thumbnail(data: str | None) -> Picture | None:
    """A base64 PNG as a data URI; None where it is absent, damaged, no PNG or too large to be a thumbnail."""
    if not data:
        return None
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return None
    if len(raw) < 33 or not raw.startswith(PNG) or raw[12:16] != b"IHDR":
        return None
    width, height = struct.unpack(">II", raw[16:24])
    if not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE):
        return None
    # Only base64 letters can stand here: it was encoded anew from the decoded bytes.
    uri = Markup("data:image/png;base64,{}").format(base64.b64encode(raw).decode("ascii"))
    return Picture(uri, width, height, max(width, height) <= CRISP)


def _tile(item: Item, side: Side, mode: str, unit: said.Unit) -> Tile:
    mode = said.shown_mode(mode)
    found = side.modes.get(mode)
    value = said.value_of(item, mode)
    name = " ".join((item.text or "").split()) or item.id.strip()
    one = said.nouns(side.name)[0]
    whole = clean(name)[:200]
    return Tile(
        item=item,
        name=name,
        alt=f"{one}: {whole}" if whole else f"{one} without a name",
        picture=thumbnail(item.thumbnail),
        value=unit.text(value),
        bar=figures.bar(value, figures.top_of(side, mode), found.median if found else None, item.saturated),
        ess="" if item.ess is None else number(item.ess),
    )


def _ends(side: Side, mode: str, unit: said.Unit) -> list[End]:
    """Both ends of a side; where there are few items none stands at both, and one where all are the same."""
    lowest, highest = side.lowest, side.highest
    span = said.span(side, mode)
    titles = ("Least informative", "Most informative") if mode.startswith("kl") else ("Lowest", "Highest")
    if side.n == 1:
        titles, lowest, highest = ("The only one", ""), (lowest or highest)[:1], []
    elif span is not None and said.equal(*span):
        titles, highest = ("All the same", ""), [] if lowest else highest
    elif len(lowest) + len(highest) > side.n:
        lowest, highest = lowest[: -(-side.n // 2)], highest[: side.n // 2]
    made = []
    for title, word, items in zip(titles, ("lowest", "highest"), (lowest, highest), strict=True):
        tiles = [_tile(item, side, mode, unit) for item in items]
        if tiles:
            made.append(End(title or titles[0], word, tiles[:SHOWN], tiles[SHOWN:]))
    return made


def _view(index: int, side: Side, mode: str, unit: said.Unit) -> View:
    one, many = said.nouns(side.name)
    key = f"side-{index}"
    ends = _ends(side, mode, unit)
    own, shown_as = said.unit_of(mode, unit), said.shown_mode(mode)
    shown = [tile for end in ends for tile in [*end.first, *end.rest]]
    verdict, sentence = said.norm_verdict(side, unit)
    deciles = figures.inner_deciles(side)
    drawn = [figures.histogram(f"{key}-h{width}", side, mode, own, float(width)) for width in (820, 400)]
    return View(
        key=key,
        number=index,
        side=side,
        title=many[:1].upper() + many[1:],
        one=one,
        many=many,
        others=said.nouns(side.sample)[1],
        sentence=said.headline(side, mode, own),
        in_play=said.in_play(side, mode),
        ends=ends,
        pictures=any(tile.picture for tile in shown),
        any_saturated=any(tile.item.saturated for tile in shown),
        top=unit.text(figures.top_of(side, shown_as)),
        histograms=[figure for figure in drawn if figure is not None],
        deciles=(own.text(deciles[0]), own.text(deciles[-1])) if deciles else None,
        coverage=figures.coverage(f"{key}-coverage", side),
        scatter=figures.scatter(f"{key}-scatter", side, unit),
        verdict=verdict,
        norm_sentence=sentence,
        diagnostics=said.diagnostics(side, unit),
    )


def gallery_style() -> str:
    """The report's style sheet and the gallery's after it, with the line ends that a browser hashes."""
    own = (TEMPLATES / "gallery.css").read_text(encoding="utf-8").replace("\r\n", "\n")
    return f"{style_sheet()}\n{own}"


def render_gallery(summary: GainSummary) -> str:
    """The gallery as one HTML page.

    Args:
        summary: what the measure found, in nats; any number of sides, also none.

    Returns:
        The page. The same summary gives the same bytes.
    """
    unit = said.Unit(summary.unit)
    views = [_view(index, side, summary.headline, unit) for index, side in enumerate(summary.sides, 1)]
    style = gallery_style()
    return (
        environment()
        .get_template("gallery.html")
        .render(
            summary=summary,
            views=views,
            unit=unit,
            mode=summary.headline,
            mode_name=said.mode_name(summary.headline),
            modes=said.MODES,
            name_of=said.mode_name,
            scale_text=said.scale_text,
            own=said.unit_of(summary.headline, unit),
            unit_of=said.unit_of,
            shown=said.shown_mode(summary.headline),
            main=said.main_relation,
            capped=said.capped,
            alerts=said.alerts(summary),
            title=views[0].sentence if views else "Nothing was measured",
            style=Markup(style),  # noqa: S704 - our own files, no data in them
            policy=policy(style),
        )
    )


def write_gallery(folder: Path) -> Path:
    """Read `measure.json` in a folder and write `gallery.html` beside it, whole or not at all; returns its path.

    Raises:
        StorageError: `measure.json` is missing or no JSON, or the page could not be written.
        RunError: `measure.json` is not the summary of an information-gain run.
    """
    folder = Path(folder)
    found = read_json(folder / SUMMARY)
    try:
        summary = GainSummary.model_validate(found)
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).splitlines()[:3])
        raise RunError(
            f"{folder / SUMMARY} is not the summary of an information-gain run ({reason})",
            None,
            "run efface measure information-gain again",
        ) from error
    return write_text(folder / GALLERY, render_gallery(summary))
