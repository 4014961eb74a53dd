"""The gallery: what it shows and says, that nothing from data becomes markup, and that no edge case breaks it."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from gallery_samples import CASES, LOG_N, hostile, item, one, png, side, summary
from PIL import Image
from test_page import CHROMIUM, Page, _dump

from efface.errors import RunError, StorageError
from efface.report.gallery import SHOWN, render_gallery, thumbnail, write_gallery
from efface.report.gallery_figures import bar, bins, coverage, histogram, scatter
from efface.report.gallery_words import Unit, alerts, diagnostics, headline, in_play, norm_verdict, nouns

NATS = Unit("nats")


@pytest.fixture(scope="module", params=CASES)
def page(request: pytest.FixtureRequest) -> Page:
    parsed = Page(render_gallery(CASES[request.param]))
    assert parsed.open == []
    return parsed


def test_every_page_is_closed_in_itself(page: Page) -> None:
    names = {name for name, _ in page.elements}
    assert not names & {"script", "iframe", "object", "embed", "base", "form", "input", "image", "use"}
    for name, attributes in page.elements:
        for key, value in attributes.items():
            assert not key.startswith("on"), (name, key)
            assert key not in {"style", "srcset", "action", "formaction", "background", "ping", "xlink:href"}
            if key == "href":
                assert value.startswith("#") or value == "data:,", value
            if key == "src":
                assert name == "img"
                assert re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/]+=*", value)
    assert "url(" not in page.style
    assert "@import" not in page.style


def test_policy_names_the_style_sheet_by_its_hash(page: Page) -> None:
    policies = [row["content"] for row in page.all("meta") if row.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policies == [
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    ]


def test_every_page_is_accessible(page: Page) -> None:
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch(r"h[1-6]", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(row["href"][1:] in ids for row in page.all("a"))
    for attributes in page.all("svg"):
        if attributes.get("role") == "img":
            assert attributes["aria-labelledby"] in ids
            assert attributes["aria-describedby"] in ids
        else:
            assert attributes.get("aria-hidden") == "true"
    assert all(row["alt"].strip() for row in page.all("img"))
    assert all("scope" in attributes for attributes in page.all("th"))


def test_no_figure_holds_a_place_that_is_no_number(page: Page) -> None:
    drawn = {"x", "y", "cx", "cy", "r", "width", "height", "d", "transform", "viewBox"}
    for name, attributes in page.elements:
        for key, value in attributes.items():
            if key in drawn and name != "img":
                assert "nan" not in value.lower(), (name, key, value)
                assert "inf" not in value.lower(), (name, key, value)
                assert key not in {"width", "height"} or float(value) >= 0


def test_pictures_stand_with_value_name_and_bar() -> None:
    html = render_gallery(summary(side()))
    page = Page(html)
    pictures = page.all("img")
    assert len(pictures) == 60
    assert pictures[0]["alt"] == "picture: thing number 0"
    assert all(row["class"] == "crisp" for row in pictures)
    raw = base64.b64decode(pictures[1]["src"].split(",")[1])
    assert Image.open(io.BytesIO(raw)).size == (32, 32)
    assert raw == base64.b64decode(png(32, 1))
    assert html.count("<summary>18 more</summary>") == 2
    assert html.count('class="tiles"') == 4
    text = page.text
    assert text.index("Least informative") < text.index("thing number 0") < text.index("Most informative")
    assert text.index("Most informative") < text.index("thing number 399") < text.index("Distribution", 900)
    assert "0.40" in text
    assert "6.10" in text


def test_texts_stand_as_texts_with_nothing_to_load() -> None:
    page = Page(render_gallery(summary(side("texts"))))
    assert page.all("img") == []
    assert page.text.count("thing number 399") == 1
    assert len([1 for name, row in page.elements if name == "li" and row.get("class") == "line"]) == 60


@pytest.mark.parametrize("direction", ["مرحبا بالعالم", "שלום", "こんにちは世界", "🏳️‍🌈👩🏽‍🚀", "é" * 3000, " \n\t "])
def test_captions_of_any_script_and_length(direction: str) -> None:
    rows = [item(1, 0.5, True, text=direction)]
    for name in ("images", "texts"):
        page = Page(render_gallery(summary(side(name, lowest=rows, highest=[]))))
        assert page.open == []
        if direction.strip():
            assert direction[:80].strip() in page.text
        else:
            assert "item-1" in page.text or "(empty text)" in page.text
        assert direction[:500] not in page.text or len(direction) < 500
        isolated = [row for tag, row in page.elements if tag in {"bdi", "span"} and row.get("dir") == "auto"]
        assert isolated or not direction.strip()


def test_foreign_text_is_shown_as_text() -> None:
    html = render_gallery(CASES["hostile"])
    page = Page(html)
    assert "<script>document.title='owned'</script>" in page.text
    assert "{{ 7*7 }}" in page.text
    assert "\u202e" not in html
    assert "\x00" not in html
    assert "[U+202E]gnp.exe" in page.text
    assert html.encode("utf-8")
    assert render_gallery(hostile("\ud800 broken")).encode("utf-8")


@pytest.mark.parametrize("data", [
    None, "", "not base64!", "javascript:alert(1)", base64.b64encode(b"<svg onload=alert(1)>" * 9).decode(),
    base64.b64encode(b"\x89PNG\r\n\x1a\n").decode(), png(600), '"><script>', "\ud800", png()[:40],
])  # fmt: skip
def test_what_is_no_small_png_is_not_let_in(data: str | None) -> None:
    assert thumbnail(data) is None
    html = render_gallery(summary(side(lowest=[item(1, 0.5, True), item(2, 0.6, True, thumbnail=data)], highest=[])))
    assert "no picture kept" in html
    assert len(Page(html).all("img")) == 1


def test_only_small_pictures_get_hard_edges() -> None:
    sizes = {size: thumbnail(png(size)) for size in (16, 48, 49, 96)}
    assert {size: found.crisp for size, found in sizes.items() if found} == {16: True, 48: True, 49: False, 96: False}


def test_same_summary_same_bytes() -> None:
    for found in CASES.values():
        assert render_gallery(found) == render_gallery(found.model_copy(deep=True))


def test_the_headline_says_what_the_ends_say() -> None:
    said = "The least informative pictures say 0.4 nats, the most informative 6.1, of 7.6 that this sample can show"
    assert headline(one(), "kl", NATS) == said
    assert said in Page(render_gallery(summary())).text
    assert headline(one(), "kl", Unit("bits")).startswith("The least informative pictures say 0.6 bits")
    assert "8.8, of 11.0" in headline(one(), "kl", Unit("bits"))
    assert "can show" not in headline(one(), "klr", NATS)
    assert headline(one(), "cov_norm_zero", NATS).startswith("The norm, centred at zero of the pictures runs from 0.4")
    assert headline(one(n=1), "kl", NATS).startswith("The only picture says 0.40 nats, of 7.6")
    assert headline(one(n=0), "kl", NATS) == "No pictures were measured"
    assert headline(CASES["equal"].sides[0], "kl", NATS).startswith("All 400 pictures say the same: 1.00 nats")


def test_ends_that_print_alike_get_more_decimals() -> None:
    close = {"kl": {"mean": 2.0, "std": 0.0, "low": 2.01, "median": 2.02, "high": 2.04}}
    assert "2.01 nats, the most informative 2.04" in headline(one(modes=close), "kl", NATS)


def test_the_number_left_in_play_is_n_times_e_to_the_minus_gain() -> None:
    found = in_play(one(), "kl")
    assert f"about {2000 * math.exp(-0.4):,.0f} of them" in found
    assert f"the most informative about {2000 * math.exp(-6.1):.1f}." in found
    assert in_play(one(), "klr") == ""
    beyond = {"kl": {"mean": 2.0, "std": 0.0, "low": -0.4, "median": 2.02, "high": 6.1}}  # a fixed Z
    assert in_play(one(modes=beyond), "kl") == ""


def verdict(**changes: Any) -> tuple[str, str]:
    row = {"x": "cov_norm_zero", "y": "kl", "r2": 0.99, "pearson": 0.995, "spearman": 0.99, "n": 400}
    shared = {key: changes.pop(key) for key in list(changes) if key not in row}
    return norm_verdict(one(relations=[row | changes], **shared), NATS)


@pytest.mark.parametrize(("changes", "word", "said"), [
    ({"k2_half_mean": 0.5}, "good", "The norm stands for the gain here"),
    ({"k2_half_mean": 0.5, "r2": 0.95}, "rough", "roughly"),
    ({"k2_half_mean": 0.5, "r2": 0.6}, "bad", "does not stand for the gain at this scale"),
    ({"k2_half_mean": 1.6}, "bad", "does not stand for the gain at this scale"),
    ({"k2_half_mean": 0.5, "pearson": -0.995, "spearman": -0.99}, "bad", "the other way round (Spearman −0.990)"),
    ({"k2_half_mean": 8.0, "spearman": 0.95}, "bad", "sorts the pictures much alike"),
    ({"r2": None}, "none", "No relation can be given"),
    ({"n": 4, "k2_half_mean": 0.5}, "none", "too few to mean anything"),
])  # fmt: skip
def test_what_the_norm_is_worth_is_said_with_scale_and_n(changes: dict[str, Any], word: str, said: str) -> None:
    found, sentence = verdict(**changes)
    assert found == word
    assert said in sentence
    assert "at scale 100 and N = 2,000" in sentence


def test_no_r2_without_scale_and_n_on_the_page() -> None:
    text = Page(render_gallery(summary())).text
    spots = [match.start() for match in re.finditer(r"0\.551", text)]
    assert len(spots) >= 4
    for spot in spots:
        near = text[max(0, spot - 260) : spot + 120]
        assert "scale 100" in near
        assert "N = 2,000" in near
    assert "−0.742" in text
    assert "−0.735" in text


def test_diagnostics_speak_where_they_are_bad_and_stay_calm_where_not() -> None:
    bad = {row.name: row for row in diagnostics(one(ess_median=12.0, sample_size=100, centre_share=0.4), NATS)}
    assert all(row.beware for row in bad.values())
    assert "handful" in bad["Effective sample size, median"].sentence
    assert "rank below 512" in bad["Sample against dimension"].sentence
    calm = diagnostics(
        one(ess_median=900.0, saturated_share=0.0, skewness_mean=-0.1, k2_half_mean=0.3, centre_share=0.01), NATS
    )
    assert not any(row.beware for row in calm)


def test_warnings_stand_before_everything_else() -> None:
    text = Page(render_gallery(summary(warnings=["N < d: the covariance is rank-deficient"]))).text
    assert text.index("rank-deficient") < text.index("Least informative")
    assert "37.0 % of the pictures are saturated" in text
    assert len(alerts(summary(warnings=["37 % are saturated"]))) == 1
    calm = summary(side(saturated_share=0.0))
    assert alerts(calm) == []
    assert "Before you read on" not in Page(render_gallery(calm)).text


def test_few_items_stand_once_and_not_at_both_ends() -> None:
    for n in (2, 7, 12):
        page = Page(render_gallery(summary(side(n=n))))
        assert len(page.all("img")) == n
    assert len(Page(render_gallery(CASES["single"])).all("img")) == 1
    equal = Page(render_gallery(CASES["equal"])).text
    assert "All the same" in equal
    assert "Most informative" not in equal
    assert SHOWN < 30


def test_bits_are_nats_over_ln_2_everywhere() -> None:
    nats, bits = (Page(render_gallery(summary(side(), unit=unit))).text for unit in ("nats", "bits"))
    assert f"log N {LOG_N / math.log(2):.2f}" in bits
    assert f"log N {LOG_N:.2f}" in nats
    assert f"{8.25 / math.log(2):.2f} bits" in bits
    assert f"{6.1 / math.log(2):.2f}" in bits
    assert not re.search(r"\d nats", bits.replace("0.69 nats", ""))


def test_norms_that_are_no_gains_get_neither_unit_nor_log_n() -> None:
    text = Page(render_gallery(CASES["no unit"])).text
    assert "The centred norm of the pictures runs from 1,000.4 to 1,006.1" in text
    assert "sorted by centred norm; the number is the information gain in bits" in text
    assert "1,006.10" in text  # in the table of modes too: not divided by ln 2
    drawn = histogram("k", CASES["no unit"].sides[0], "centered_norm", Unit(""))
    assert drawn is not None
    assert "log N" not in drawn
    assert f"{6.1 / math.log(2):.2f}" in text  # the items' gains still stand in bits
    fixed = Page(render_gallery(CASES["fixed Z"])).text
    assert "sorted by gain, fixed Z; the number is the information gain in nats" in fixed


def test_saturated_items_are_hollow_and_named() -> None:
    html = render_gallery(summary(side()))
    assert html.count('<span class="sat">') == 30
    assert bar(3.0, 6.0, 1.5, True).count("fill hollow") == 1
    assert 'width="50"' in bar(3.0, 6.0, 1.5, False)
    assert 'x="25"' in bar(3.0, 6.0, 1.5, False)
    drawn = scatter("k", one(), NATS)
    assert drawn is not None
    assert drawn.count('class="o"') == sum(1 for point in side()["scatter"] if point[2])
    assert drawn.count("<circle") == 400


def test_the_histogram_draws_what_was_counted() -> None:
    found = one(histogram={"edges": [0.0, 1.0, 2.0, 3.0, 4.0], "counts": [0, 3, 9, 0]})
    assert bins(found) == [(1.0, 2.0, 3), (2.0, 3.0, 9)]
    drawn = histogram("k", found, "kl", NATS)
    assert drawn is not None
    tall = [float(h) for h in re.findall(r'height="([\d.]+)" class="column"', drawn)]
    assert tall[1] == pytest.approx(3 * tall[0], abs=0.05)
    assert f"log N {LOG_N:.2f}" in drawn
    assert "median 3.26" in drawn
    assert histogram("k", one(histogram={"edges": [0.0], "counts": [4]}), "kl", NATS) is None


def test_a_far_ceiling_is_named_and_does_not_press_the_values_into_a_corner() -> None:
    low = one(
        histogram={"edges": [0.0, 0.2, 0.4], "counts": [5, 9]}, scatter=[(0.1, 0.2, False), (0.3, 0.4, False)],
        modes={"kl": {"mean": 0.2, "std": 0.1, "low": 0.0, "median": 0.2, "high": 0.4}},
    )  # fmt: skip
    drawn, points = histogram("k", low, "kl", NATS), scatter("k", low, NATS)
    assert drawn is not None
    assert points is not None
    assert f"log N {LOG_N:.2f} →" in drawn
    assert f"log N {LOG_N:.2f} ↑" in points
    assert 'class="ceiling"' not in drawn + points
    wide = [float(w) for w in re.findall(r'width="([\d.]+)" height="[\d.]+" class="column"', drawn)]
    assert sum(wide) > 700  # of 804: the values fill the axis
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', points)]
    assert max(heights) - min(heights) > 120
    assert 'class="ceiling"' in (histogram("k", one(), "kl", NATS) or "")
    assert 'class="ceiling"' in (scatter("k", one(), NATS) or "")


def test_coverage_is_drawn_for_texts_that_have_it() -> None:
    found = one(ngram_coverage=[0.1 + 0.02 * i for i in range(10)])
    drawn = coverage("k", found)
    assert drawn is not None
    assert re.findall(r">(\d+ %)<", drawn) == [f"{10 + 2 * i} %" for i in range(10)]
    tall = [float(h) for h in re.findall(r'height="([\d.]+)" class="column"', drawn)]
    assert tall[9] == pytest.approx(2.8 * tall[0], abs=0.05)
    assert coverage("k", one()) is None
    assert "How many different things" in Page(render_gallery(summary(side(ngram_coverage=[0.5, 0.6])))).text


def test_the_page_says_what_gain_is_not_and_names_the_sample() -> None:
    text = Page(render_gallery(summary())).text
    for words in (
        "Not quality",
        "how well a picture fits its caption",
        "how often something occurs",
        "under this model",
    ):
        assert words in text
    assert "c0ffeec0ffee" in text
    assert "must not be set side by side" in text
    assert "lab/tiny-clip" in text
    assert "none: embeddings were given as they are" in Page(render_gallery(CASES["no model"])).text


def test_sides_have_words() -> None:
    assert nouns("images") == ("picture", "pictures")
    assert nouns("captions") == ("caption", "captions")
    assert nouns("melodies") == ("melody", "melodies")
    assert nouns("<b>") == ("item", "<b>")
    assert nouns("") == ("item", "items")


def test_the_gallery_is_written_beside_its_summary(tmp_path: Path) -> None:
    (tmp_path / "measure.json").write_text(summary().model_dump_json(), encoding="utf-8")
    path = write_gallery(tmp_path)
    assert path == tmp_path / "gallery.html"
    assert path.read_text(encoding="utf-8") == render_gallery(summary())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["gallery.html", "measure.json"]


def test_a_summary_that_is_none_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"measure\.json"):
        write_gallery(tmp_path)
    (tmp_path / "measure.json").write_text("{", encoding="utf-8")
    with pytest.raises(StorageError, match="not valid JSON"):
        write_gallery(tmp_path)
    for content in ({"headline": "kl"}, [], None, summary().model_dump(mode="json") | {"extra": 1}):
        (tmp_path / "measure.json").write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(RunError, match="not the summary of an information-gain run") as caught:
            write_gallery(tmp_path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "gallery.html").exists()


def test_a_browser_shows_the_pictures_and_runs_nothing(tmp_path: Path) -> None:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is missing: apt-get install -y chromium")
    attack = (
        "</title></style></bdi><script>document.title='owned'</script>"
        "<img src='x' onerror=\"document.body.id='owned'\"><svg onload=\"document.body.id='owned'\"></svg>"
        "<b id=injected>x</b>"
    )
    control = tmp_path / "control.html"
    control.write_text(f"<!DOCTYPE html><html><head><title>{attack}", encoding="utf-8")
    assert "<title>owned" in _dump(control, tmp_path / "profile-control"), "the attack does not work: nothing is proved"
    (tmp_path / "measure.json").write_text(hostile(attack).model_dump_json(), encoding="utf-8")
    dom = _dump(write_gallery(tmp_path), tmp_path / "profile")
    page = Page(dom)
    assert not {name for name, _ in page.elements} & {"script", "iframe"}
    assert not any(row.get("id") in {"owned", "injected"} for _, row in page.elements)
    assert all(row["src"].startswith("data:image/png;base64,") for row in page.all("img"))
    assert page.all("img")
    assert "<title>owned" not in dom
