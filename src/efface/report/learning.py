"""One self-contained page for a training run (`learn.html`), and one for a comparison of recipes (`compare.html`).

They keep the rules of the report (`efface.report.page`): no script, no request to any network, a content-security policy,
every foreign text cleaned and escaped. The pages compute nothing but positions and words.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from pydantic import ValidationError

from efface.errors import RunError
from efface.learn.compare import COMPARISON, Comparison, Figure, Line
from efface.learn.contrastive import MAP
from efface.learn.folder import FACTS
from efface.report.learning_figures import curve_plot, interval_row, point_map, span_of
from efface.report.page import TEMPLATES, environment, policy, style_sheet
from efface.report.words import duration, number
from efface.run.files import read_json, write_text

LEARN, COMPARE = "learn.html", "compare.html"
WORDS = {
    "effective_rank": ("Effective rank", "directions that the embedding really uses; a fall warns of collapse"),
    "alignment": ("Alignment", "squared distance of two views of an item; lower is closer"),
    "uniformity": ("Uniformity", "log of the mean Gaussian potential; lower is more even"),
    "knn": ("5-NN accuracy", "unseen rows whose nearest neighbours vote for their class"),
    "probe": ("Linear probe", "accuracy of a logistic regression on the frozen features"),
    "mae": ("Ridge error", "mean absolute error of a ridge regression on the frozen features"),
}
"""Name and meaning of each figure that is read off an embedding."""


@dataclass(frozen=True)
class Panel:
    """A figure with its words."""

    name: str
    meaning: str
    figure: Markup
    ends: str = ""


def _page(template: str, **values: Any) -> str:
    style = style_sheet() + "\n" + (TEMPLATES / "learning.css").read_text(encoding="utf-8").replace("\r\n", "\n")
    return (
        environment().get_template(template).render(style=Markup(style), policy=policy(style), **values)  # noqa: S704 - our own files
    )


def render_learning(facts: dict[str, Any], plane: dict[str, Any] | None) -> str:
    """The page of one run.

    Args:
        facts: `learn.json` of a contrastive recipe.
        plane: `map.json`, or None.

    Raises:
        RunError: no record of a contrastive recipe.
    """
    try:
        losses, points, cost = facts["losses"], facts.get("curves", []), facts["cost"]
        recipe, steps = str(facts["recipe"]), int(facts["steps"])
    except (KeyError, TypeError) as error:
        raise RunError(
            f"a learn.json without {error}", "that of a contrastive recipe", "train the encoder again"
        ) from error
    panels = [
        Panel("Loss", "mean over even parts of the run", curve_plot("loss", "Loss", losses), number(losses[-1][1]))
    ]
    for name, (title, meaning) in WORDS.items():
        seen = [[point["step"], point[name]] for point in points if name in point]
        if seen:
            panels.append(
                Panel(title, meaning, curve_plot(name, title, seen), f"{number(seen[0][1])} to {number(seen[-1][1])}")
            )
    return _page(
        "learning.html", recipe=recipe, steps=steps, rows=facts["rows"], batch=facts["batch_size"], panels=panels,
        warnings=facts.get("warnings", []), seconds=duration(cost["seconds"]), peak=cost["peak_mb"],
        map=None if plane is None else point_map("map", plane),
        explained=None if plane is None else number(100 * plane["explained"]),
        config=sorted(facts["config"].items()),
    )  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A recipe as it stands in the comparison."""

    line: Line
    cells: list[tuple[str, Markup | None]]
    time: str


def render_comparison(found: Comparison) -> str:
    """The page of a comparison."""
    names = [name for name in ("probe", "knn", "mae") if any(name in line.figures for line in found.lines)]
    spans = {name: span_of([line.figures[name] for line in found.lines if name in line.figures]) for name in names}

    def cell(name: str, key: str, figure: Figure | None) -> tuple[str, Markup | None]:
        if figure is None:
            return "", None
        scale = 1 if name == "mae" else 100
        text = f"{number(scale * figure.value)} [{number(scale * figure.low)}, {number(scale * figure.high)}]"
        if figure.spread is not None:
            text += f" ± {scale * figure.spread:.{3 if name == 'mae' else 1}f}"
        return text, interval_row(key, WORDS[name][0], figure, spans[name])

    rows = [
        Row(
            line, [cell(name, f"c{place}{name}", line.figures.get(name)) for name in names],
            "" if line.seconds is None else duration(line.seconds),
        )
        for place, line in enumerate(found.lines)
    ]  # fmt: skip
    return _page(
        "compare.html", found=found, rows=rows, heads=[WORDS[name] for name in names],
        settings=sorted(found.settings.items()), own=sorted(found.own.items()),
    )  # fmt: skip


def is_learning(folder: Path) -> bool:
    """Whether a folder holds a training run or a comparison, and no audited run."""
    return (folder / COMPARISON).exists() or (folder / FACTS).exists()


def write_learning(folder: Path) -> Path:
    """Write `learn.html` or `compare.html` into the folder of a training run or of a comparison.

    Raises:
        RunError: the record is of another kind, or broken.
        StorageError: it cannot be read or the page not written.
    """
    folder = Path(folder)
    if (folder / COMPARISON).exists():
        try:
            found = Comparison.model_validate(read_json(folder / COMPARISON))
        except ValidationError as error:
            raise RunError(
                f"{folder / COMPARISON} is no comparison ({error.errors()[0]['msg']})", None, "run it again"
            ) from error
        return write_text(folder / COMPARE, render_comparison(found))
    plane = read_json(folder / MAP) if (folder / MAP).exists() else None
    return write_text(folder / LEARN, render_learning(read_json(folder / FACTS), plane))
