"""The layers of an in-context run as figures: the true answer and 'forgot' by layer, tuned against untuned.

One small panel a kind of prompt and a word; the same axes everywhere, so that panels can be compared by eye.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from efface.report.data import LayerSet, MethodResult, Reading
from efface.report.glyphs import marker, slug
from efface.report.svg import Scale, drawable, element, mark_text, path, picture
from efface.report.words import number

ROLES = ("original", "unlearned")
PROMPTS = {"matched": "its concept is named", "unmatched": "another concept is named", "untagged": "there is no tag"}
WORDS = {"truth": "the true answer", "target": "the word for forgetting"}
RULES = {
    "concept": "the tag names whom or what the fact is about",
    "answer": "the tag holds the answer itself, so a rise may be a copy",
}


@dataclass(frozen=True)
class LayerPanel:
    """The panels of one set of facts."""

    title: str
    note: str
    figures: list[tuple[Markup, str]]


def layers_plot(
    key: str, title: str, lines: Sequence[tuple[str, list[float]]], width: float = 400, height: float = 220
) -> Markup:
    """Mean probability against the layer, one line a model; layer 0 is the embedding.

    Args:
        key: unique on the page.
        title: what the figure shows.
        lines: (role, [L+1] values between 0 and 1).
        width, height: in drawing units.
    """
    depth = max((len(values) - 1 for _, values in lines), default=1) or 1
    left, right, top, bottom = 44.0, width - 14, 12.0, height - 40
    across, up = Scale(0.0, float(depth), left, right), Scale(0.0, 1.0, bottom, top)
    shapes = []
    for value in (0.0, 0.5, 1.0):
        shapes.append(path([(left, up(value)), (right, up(value))], "grid"))
        shapes.append(element("text", mark_text(value), x=left - 8, y=up(value) + 4, class_="tick end"))
    every = max(1, -(-depth // 8))
    for layer in range(0, depth + 1, every):
        shapes.append(path([(across(layer), bottom), (across(layer), bottom + 4)], "grid"))
        shapes.append(element("text", str(layer), x=across(layer), y=bottom + 17, class_="tick middle"))
    shapes.append(element("text", "layer", x=(left + right) / 2, y=height - 5, class_="axis middle"))
    said = []
    for role, values in lines:
        points = [(across(layer), up(value)) for layer, value in enumerate(values) if drawable(value)]
        if points:
            shapes.append(path(points, f"curve k-{slug(role)}"))
            shapes += [marker(role, x, y, 3.6) for x, y in points[::every]]
        said.append(f"{role}: " + ", ".join(number(value) for value in values))
    return picture(key, title, "by layer, the embedding first; " + "; ".join(said), width, height, *shapes)


def _reading(result: MethodResult, role: str, name: str, kind: str) -> Reading | None:
    found = result.layers.get(role, {}).get(name)
    reading = None if found is None else found.layers.get(kind)
    return reading if reading is not None and reading.curves else None


def _note(own: LayerSet, reading: Reading | None) -> str:
    text = RULES.get(own.rule, own.rule)
    if reading is None:
        return text
    text += f"; {reading.n} prompts, {reading.skipped} skipped whose first words tell nothing"
    said, inside = reading.shares.get("said"), reading.shares.get("internal")
    if said and inside is not None:
        text += f"; of {said:.0f} that got the word for forgetting, {inside:.0f} held the answer in some earlier layer"
    return text


def layer_panels(results: Sequence[MethodResult]) -> list[LayerPanel]:
    """For every result and set that has readings, six panels: three kinds of prompt, two words."""
    found, many = [], len(results) > 1
    for number_, result in enumerate(results):
        for place, (name, own) in enumerate(result.layers.get("unlearned", {}).items()):
            figures = []
            for kind, words in PROMPTS.items():
                for curve, word in WORDS.items():
                    lines = [
                        (role, reading.curves[curve]) for role in ROLES
                        if (reading := _reading(result, role, name, kind)) is not None
                    ]  # fmt: skip
                    if lines:
                        caption = f"Probability of {word}, where {words}"
                        figures.append((layers_plot(f"l{number_}s{place}{kind[:3]}{curve}", caption, lines), caption))
            if figures:
                title = name.replace("_", " ").capitalize() + (f", {result.label}" if many else "")
                found.append(LayerPanel(title, _note(own, own.layers.get("matched")), figures))
    return found
