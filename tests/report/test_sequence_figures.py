"""The figures of a sequence: points at their requests, the original at the start, nothing for other runs."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
import report_samples as samples

from efface.audit.finding import Estimate, Finding
from efface.report.page import render
from efface.report.sequence_figures import lines_of, sequence_panels, sequence_plot


def finding(name: str, own: float, original: float, retrained: float | None = None) -> Finding:
    group = "utility" if "utility" in name else "forgetting"
    return Finding(
        metric=f"sequence/{name}", title=name, meaning="m", group=group, direction="none", verdict="informative",
        unlearned=Estimate(value=own, n=4), original=Estimate(value=original, n=4),
        retrained=None if retrained is None else Estimate(value=retrained, n=4),
    )  # fmt: skip


ROWS = [
    finding("forgotten/1", 0.2, 0.9), finding("utility/1", 0.8, 1.0), finding("forgotten/2", 0.1, 0.8),
    finding("utility/2", 0.5, 1.0), finding("so_far/2", 0.15, 0.85, 0.3), finding("returned/2", 0.01, 0.0),
]  # fmt: skip


def test_points_stand_at_their_requests() -> None:
    svg = sequence_plot("k", "t", [("unlearned", [1.0, 0.5, 0.0]), ("retrained", [None, None, 0.25])])
    curves = [node for node in ET.fromstring(svg).iter("path") if "curve" in (node.get("class") or "")]
    points = [tuple(map(float, pair)) for pair in re.findall(r"[ML]([\d.]+) ([\d.]+)", curves[0].get("d") or "")]
    assert [x for x, _ in points] == pytest.approx([44, 215, 386], abs=0.1)
    assert [y for _, y in points] == pytest.approx([12, 96, 180], abs=0.1)
    assert "not measured, not measured, 0.250" in (ET.fromstring(svg).findtext("desc") or "")


def test_a_run_of_several_requests_has_two_figures() -> None:
    data = samples.report("npo")
    assert sequence_panels(data.results) == []
    assert "Request by request" not in render(data)
    result = data.results[0].model_copy(update={"findings": [*data.results[0].findings, *ROWS]})
    assert lines_of(result, "utility") == [("original", [1.0, 1.0, 1.0]), ("unlearned", [1.0, 0.8, 0.5])]
    assert lines_of(result, "so_far") == [
        ("original", [0.85, 0.9, 0.85]), ("unlearned", [0.85, 0.2, 0.15]), ("retrained", [None, None, 0.3])
    ]  # fmt: skip
    [panel] = sequence_panels([result])
    assert len(panel.figures) == 2
    page = render(data.model_copy(update={"results": [result]}))
    assert "Request by request" in page
    assert page.count('id="q0') == 4  # a title and a description each
