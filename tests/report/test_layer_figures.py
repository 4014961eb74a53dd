"""Layer figures: a point a layer at its place, both models, six panels a set, nothing for other runs."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import report_samples as samples

from efface.report.data import LayerSet, Reading
from efface.report.gather import _layers
from efface.report.layer_figures import layer_panels, layers_plot
from efface.report.page import render

CURVES = {"truth": [0.0, 0.5, 0.75, 0.25, 0.0], "target": [0.0, 0.0, 0.0, 0.5, 1.0]}


def test_points_stand_at_their_layers() -> None:
    svg = layers_plot("k", "t", [("unlearned", CURVES["truth"])])
    curve = next(node for node in ET.fromstring(svg).iter("path") if "curve" in (node.get("class") or ""))
    points = [tuple(map(float, pair)) for pair in re.findall(r"[ML]([\d.]+) ([\d.]+)", curve.get("d") or "")]
    assert [x for x, _ in points] == pytest.approx([44 + 342 * i / 4 for i in range(5)], abs=0.1)
    assert points[0][1] == pytest.approx(180)
    assert points[2][1] == pytest.approx(180 - 0.75 * 168, abs=0.1)
    assert "0.750" in (ET.fromstring(svg).findtext("desc") or "")


def test_a_run_with_layers_shows_them_and_says_the_rule() -> None:
    data = samples.report("npo")
    own = LayerSet(rule="answer", layers={
        kind: Reading(n=20, skipped=2, curves=CURVES, shares={"said": 18, "internal": 9})
        for kind in ("matched", "unmatched", "untagged")
    })  # fmt: skip
    assert layer_panels(data.results) == []
    assert "Inside the model" not in render(data)
    result = data.results[0].model_copy(update={"layers": {r: {"held_out": own} for r in ("original", "unlearned")}})
    panels = layer_panels([result])
    assert [panel.title for panel in panels] == ["Held out"]
    assert len(panels[0].figures) == 6
    assert "may be a copy" in panels[0].note
    assert "2 skipped" in panels[0].note
    assert "of 18 that got the word for forgetting, 9 held the answer" in panels[0].note
    page = render(data.model_copy(update={"results": [result]}))
    assert "Inside the model" in page
    assert page.count('id="l0s0') == 12  # a title and a description each


def test_a_run_whose_suite_was_left_out_has_no_layers(tmp_path: Path) -> None:
    path = tmp_path / "in-context.json"
    path.write_text('{"left_out": true}', encoding="utf-8")
    assert _layers(path) == {}
