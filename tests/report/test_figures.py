"""The figures: values at the right place, holes shown as holes, texts escaped, nothing off the axis."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.audit.finding import Estimate, Threshold
from efface.report.figures import Point, Row, interval_plot, relearning_plot, threshold_lines, tradeoff
from efface.report.glyphs import marker, outcome_icon, slug, verdict_icon
from efface.report.svg import Scale, element, mark_text, marks
from efface.report.words import OUTCOMES, clean, clip, duration, interval, moment, number, relations
from efface.run.record import Curve


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ET.fromstring(svg).iter("text")]


def rows(*values: float | None) -> list[Row]:
    roles = ("unlearned", "original", "retrained")
    return [
        Row(
            role,
            role,
            None if value is None else Estimate(value=value, low=value - 0.05, high=value + 0.05, n=9),
        )
        for role, value in zip(roles, values, strict=True)
    ]


def test_an_interval_plot_prints_every_value_and_every_hole() -> None:
    svg = interval_plot("k", "Recall", rows(0.3, 0.9, None))
    assert "0.300 [0.250, 0.350]" in texts(svg)
    assert "0.900 [0.850, 0.950]" in texts(svg)
    assert "not measured" in texts(svg)
    assert "retrained: not measured" in (ET.fromstring(svg).findtext("desc") or "")


def test_marks_stand_where_their_values_are() -> None:
    tree = ET.fromstring(interval_plot("k", "Recall", rows(0.25, 0.75, 0.5)))
    centre = float(next(node.get("cx") for node in tree.iter("circle")) or 0)
    square = next(node for node in tree.iter("rect") if "k-original" in (node.get("class") or ""))
    middle = float(square.get("x") or 0) + float(square.get("width") or 0) / 2
    scale = Scale(0, 1, 82, 248)  # room for the longest interval of twenty characters
    assert centre == pytest.approx(scale(0.25), abs=0.02)
    assert middle == pytest.approx(scale(0.75), abs=0.02)


def test_a_value_far_beyond_the_others_gets_an_arrow_not_the_axis() -> None:
    estimates = [
        Row("a", "unlearned", Estimate(value=1840)),
        Row("b", "unlearned", Estimate(value=12.5)),
        Row("original", "original", Estimate(value=12.4)),
        Row("retrained", "retrained", None),
    ]
    svg = interval_plot("k", "Perplexity", estimates, ranges=False)
    assert 'class="beyond' in svg
    assert "1,840" in texts(svg)
    assert max(float(t) for t in texts(svg) if t.isdigit()) < 100


@pytest.mark.parametrize(
    ("threshold", "lines"),
    [
        (Threshold(quantity="value", relation="<=", bound=0.05), [0.05]),
        (Threshold(quantity="ratio", relation=">=", bound=0.9), [0.9 * 0.8]),
        (Threshold(quantity="gap", relation="<=", bound=0.1), [0.2, 0.4]),
        (None, []),
    ],
)
def test_thresholds_are_put_on_the_metrics_own_axis(threshold: Threshold | None, lines: list[float]) -> None:
    found = threshold_lines(threshold, Estimate(value=0.8), Estimate(value=0.3))
    assert found == pytest.approx(lines)


def test_a_threshold_that_needs_an_absent_model_is_not_drawn() -> None:
    assert threshold_lines(Threshold(quantity="gap", relation="<=", bound=0.1), Estimate(value=1), None) == []
    assert threshold_lines(Threshold(quantity="ratio", relation=">=", bound=1), None, Estimate(value=1)) == []


def test_the_trade_off_keeps_every_point_inside_and_names_what_is_below_the_axis() -> None:
    points = [
        Point("ga", "damaged", 0.01, -239.0),
        Point("good", "removal-consistent", 0.9, -0.2),
        Point("original", "original", 0.95, -20.0),
        Point("retrained", "retrained", 0.96, 0.0),
    ]
    for width, height in ((820.0, 440.0), (350.0, 400.0)):
        svg = tradeoff("k", points, -1.3, width, height)
        said = texts(svg)
        assert "ga (−239 ↓)" in said
        assert {"good", "original", "retrained"} <= set(said)
        for node in ET.fromstring(svg).iter("circle"):
            assert 0 <= float(node.get("cx") or -1) <= width
            assert 0 <= float(node.get("cy") or -1) <= height


def test_labels_of_crowded_points_do_not_share_a_spot() -> None:
    points = [Point(f"method-{i}", "suppressed", 0.5 + i * 0.001, -1.0) for i in range(6)]
    tree = ET.fromstring(tradeoff("k", points))
    spots = {(node.get("x"), node.get("y")) for node in tree.iter("text") if (node.text or "").startswith("method")}
    assert len(spots) == 6


def test_relearning_curves_say_where_the_target_was_reached() -> None:
    curves = [
        Curve(role="unlearned", steps=[0, 10], values=[0.1, 0.9], low=[0.0, 0.8], high=[0.2, 1.0], reached=8),
        Curve(role="retrained", steps=[0, 10], values=[0.1, 0.2], reached=None),
    ]
    tree = ET.fromstring(relearning_plot("k", "Relearning", curves))
    said = tree.findtext("desc") or ""
    assert "unlearned: ends at 0.900, target reached at step 8" in said
    assert "retrained: ends at 0.200, target not reached" in said
    classes = [node.get("class") or "" for node in tree.iter("path")]
    assert sum("curve" in name for name in classes) == 2
    assert sum("band" in name for name in classes) == 1


def test_a_curve_with_more_steps_than_values_is_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        relearning_plot("k", "t", [Curve(role="original", steps=[0, 1], values=[0.5])])


def test_every_outcome_and_verdict_has_a_shape_of_its_own() -> None:
    def shape(svg: str) -> str:
        return "".join(
            node.tag + str(node.get("d")) + ("solid" if "solid" in (node.get("class") or "") else "")
            for node in ET.fromstring(svg).iter()
        )

    kinds = [
        *(k for k in OUTCOMES if k != "not judged"),
        "original",
        "retrained",
    ]  # not judged: a dashed ring
    assert len({shape(outcome_icon(kind)) for kind in kinds}) == len(kinds)
    verdicts = ("holds", "does not hold", "informative", "not measured")
    assert len({shape(verdict_icon(verdict)) for verdict in verdicts}) == 4


def test_unknown_words_never_become_class_names() -> None:
    assert slug('x" onload="y') == "not-judged"
    assert "onload" not in marker('x" onload="y', 1, 1)


@given(st.text(max_size=40), st.floats() | st.none(), st.floats())
def test_any_text_and_any_number_give_well_formed_svg(text: str, first: float | None, second: float) -> None:
    estimate = None if first is None else Estimate(value=first, low=second, high=first)
    reference = Row("original", "original", Estimate(value=second))
    svg = interval_plot("k", text, [Row(text, text, estimate), reference], text)
    assert ET.fromstring(svg).findtext("title") == clean(text)
    other = tradeoff("k", [Point(text, text, second, second), Point("b", "retrained", 0.5, 0.0)])
    for drawing in (svg, other):
        for node in ET.fromstring(drawing).iter():
            for key in {"x", "y", "cx", "cy", "d", "width", "height"} & set(node.keys()):
                assert not re.search("nan|inf", str(node.get(key)))


def test_attributes_and_texts_are_escaped() -> None:
    svg = element("text", "<b>&", class_='a" onload="b')
    assert svg == '<text class="a&#34; onload=&#34;b">&lt;b&gt;&amp;</text>'


@given(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12))
def test_axis_marks_are_few_and_span_the_values(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    if high - low < 1e-6 * max(abs(low), abs(high), 1e-6):
        return
    found = marks(low, high)
    assert found == sorted(set(found))
    assert 2 <= len(found) <= 12
    step = found[1] - found[0]
    assert found[0] <= low + 1e-6 * step
    assert found[-1] >= high - 1e-6 * step


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.42134, "0.421"),
        (-17.94, "−17.9"),
        (1.5e-19, "1.5 × 10⁻¹⁹"),
        (1234.5, "1,234"),
        (None, "–"),
        (float("nan"), "not a number"),
        (float("-inf"), "−∞"),
        (2e7, "2.0 × 10⁷"),
        (-0.0002, "−2.0 × 10⁻⁴"),
    ],
)
def test_numbers_are_printed_for_people(value: float | None, text: str) -> None:
    assert number(value) == text


def test_other_words() -> None:
    assert interval(Estimate(value=0.5)) == "0.500"
    assert [duration(s) for s in (0.04, 59.94, 125, 3780)] == ["0.0 s", "59.9 s", "2 min 05 s", "1 h 03 min"]
    assert relations("value >= -1.3 (min-k)") == "value ≥ −1.3 (min-k)"
    assert moment("2026-03-14T09:31:07Z") == "14 March 2026, 09:31 UTC"
    assert moment("2026-13-14T09:31:07Z") == "2026-13-14T09:31:07Z"
    assert clip("abc", 3) == ("abc", "")
    assert clip("abcd", 3) == ("abc …", "first 3 of 4 characters")
    assert clip("a\nb\nc", 99, lines=2).text == "a\nb …"
    assert mark_text(-0.5) == "−0.5"
    assert clean("سلام \u200d ok") == "سلام \u200d ok"
