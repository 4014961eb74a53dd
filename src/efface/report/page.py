"""One self-contained `report.html`: no script, no request to any network, every foreign text escaped.

The page carries a content-security policy that allows nothing but its own style sheet, named by its hash.
There are no style attributes, so that the policy needs no exception. Texts from data pass through `clean` and
autoescape on their way into the page; figures are markup built by code that does the same.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from efface.report import sections, words
from efface.report.data import ReportData
from efface.report.embedding_figures import embedding_panels
from efface.report.glyphs import outcome_icon, slug, verdict_icon
from efface.report.layer_figures import layer_panels
from efface.report.sequence_figures import sequence_panels
from efface.run.digests import short
from efface.run.files import write_text

TEMPLATES = Path(__file__).parent / "templates"
REPORT = "report.html"


def _finalize(value: Any) -> Any:
    """Clean every text that a template prints; autoescape follows after it."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return words.clean(value)


def _config_text(value: Any) -> str:
    """One configuration value as JSON, or as its text where JSON has no form for it."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    made.filters.update(
        number=words.number,
        interval=words.interval,
        duration=words.duration,
        clip=words.clip,
        listing=words.listing,
        short=short,
        slug=slug,
        config_text=_config_text,
        plural=words.plural,
        with_unit=words.with_unit,
        relations=words.relations,
        moment=words.moment,
    )
    made.globals.update(outcome_icon=outcome_icon, verdict_icon=verdict_icon)
    return made


def style_sheet() -> str:
    """The page's style sheet, with the line ends that a browser hashes."""
    return (TEMPLATES / "style.css").read_text(encoding="utf-8").replace("\r\n", "\n")


def policy(style: str) -> str:
    """The content-security policy: nothing but this one style sheet and images inside the page."""
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


def render(data: ReportData) -> str:
    """The report as one HTML page.

    Args:
        data: everything that the page shows; at least one result.

    Returns:
        The page. The same data give the same bytes.

    Raises:
        ValueError: `data` has no result, or a curve whose steps and values differ in length.
    """
    if not data.results:
        raise ValueError("a report needs at least one result")
    results = sections.rank(data.results)
    figures, unplaced = sections.scatter(results)
    style = style_sheet()
    return (
        environment()
        .get_template("page.html")
        .render(
            data=data,
            results=results,
            many=len(results) > 1,
            style=Markup(style),  # noqa: S704 - our own file, no data in it
            policy=policy(style),
            headline=sections.headline(results),
            asked=sections.asked(data),
            done=sections.done(results),
            evidence=sections.evidence(results),
            checks=sections.checks,
            value_of=sections.value_of,
            axes=sections.axes(results),
            outcomes=words.OUTCOMES,
            claims=words.CLAIMS,
            glossary=words.GLOSSARY,
            scatter=figures,
            unplaced=unplaced,
            groups=sections.groups(results),
            panels=sections.relearning(results),
            layer_panels=layer_panels(results),
            sequence_panels=sequence_panels(results),
            embedding_panels=embedding_panels(results),
            predictors=sections.predictors(results),
            questions=sections.questions(results),
        )
    )


def write_report(folder: Path, data: ReportData) -> Path:
    """Write `report.html` into a folder, whole or not at all; returns its path.

    Raises:
        StorageError: the file could not be written.
    """
    return write_text(Path(folder) / REPORT, render(data))
