"""The page: what it must show, that nothing from data becomes markup, and that nothing leaves it."""

from __future__ import annotations

import base64
import hashlib
import http.server
import itertools
import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest
import report_samples as samples

from efface.audit.finding import Finding
from efface.errors import StorageError
from efface.report.data import MethodResult, ReportData
from efface.report.page import render, write_report

CHROMIUM = "/usr/bin/chromium"
VOID = {"meta", "link", "img", "br", "hr", "input", "base", "embed", "source"}


class Page(HTMLParser):
    """Elements, attributes, texts and the style sheet of a parsed page; checks that tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.style, self.text, self.open = "", "", []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without an open element"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def many() -> str:
    return render(samples.report())


@pytest.fixture(scope="module")
def one() -> str:
    return render(samples.report("npo"))


@pytest.fixture(scope="module", params=["many", "one", "hostile", "bare"])
def page(request: pytest.FixtureRequest) -> Page:
    def strip(row: MethodResult) -> None:
        row.findings, row.quantisation, row.costs, row.relearning, row.examples = [], [], [], [], []
        row.run.edit = None

    data: dict[str, ReportData] = {
        "many": samples.report(),
        "one": samples.report("npo"),
        "hostile": samples.hostile(),
        "bare": samples.emptied(strip, "npo"),
    }
    parsed = Page(render(data[request.param]))
    assert parsed.open == []
    return parsed


def test_nothing_runs_and_nothing_is_fetched(page: Page) -> None:
    names = {name for name, _ in page.elements}
    assert not names & {"script", "iframe", "object", "embed", "img", "base", "form", "input", "image", "use"}
    for name, attributes in page.elements:
        for key, value in attributes.items():
            assert not key.startswith("on"), (name, key)
            assert key not in {"style", "srcset", "action", "formaction", "background", "ping", "xlink:href"}
            if key in {"src", "href"}:
                assert value.startswith("#") or value == "data:,", value
    assert "url(" not in page.style
    assert "@import" not in page.style


def test_policy_names_the_style_sheet_by_its_hash(page: Page) -> None:
    policies = [row["content"] for row in page.all("meta") if row.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert len(page.all("style")) == 1
    assert "default-src 'none'" in policies[0]
    assert f"style-src 'sha256-{digest}'" in policies[0]
    assert "unsafe" not in policies[0]
    assert "script-src" not in policies[0]


def test_structure_is_accessible(page: Page) -> None:
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch(r"h[1-6]", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in page.all("svg"):
        if attributes.get("role") == "img":
            assert attributes["aria-labelledby"] in ids
            assert attributes["aria-describedby"] in ids
        else:
            assert attributes.get("aria-hidden") == "true"
    assert all("scope" in attributes for attributes in page.all("th"))
    assert page.all("html")[0]["lang"] == "en"


def test_sections_stand_in_the_agreed_order(page: Page) -> None:
    order = [row["id"] for row in page.all("section")]
    assert order == [
        "verdict", "tradeoff", "measurements", "relearning", "answers", "cost", "untested", "words", "record",
    ]  # fmt: skip


def test_best_method_comes_first_whatever_the_order_of_the_data() -> None:
    names = [row[0] for row in samples.METHODS]
    pages = [render(samples.report(*order)) for order in (names, names[::-1])]
    for html in pages:
        table = html[html.index('class="ranking"') : html.index("What the words mean")]
        found = re.findall(r'class="name"><bdi>([^<]+)', table)
        assert found == ["simnpo", "npo", "dpo-idk", "gradient-difference", "gradient-ascent", "task-vector"]
    assert "1 of 6 methods is removal-consistent" in pages[0]


def test_without_a_good_method_the_headline_says_so() -> None:
    assert "None of the 2 methods is removal-consistent" in render(samples.report("npo", "dpo-idk"))


def test_single_verdict_claim_and_request_are_in_words(one: str) -> None:
    text = Page(one).text
    assert "Suppressed" in text
    assert "The knowledge is hidden, not gone." in text
    assert "Forget 32 examples and keep 288 examples" in text
    assert "Claim level: empirical" in text
    assert "188,416 numbers in 38 tensors" in text


def test_not_measured_is_shown_with_its_reason_and_never_as_zero(many: str) -> None:
    start = many.index("Membership, shadow models")
    part = many[start : many.index("</article>", start)]
    assert "not measured" in part
    assert "no shadow models were given (--shadow)" in part
    assert '<svg class="figure' not in part

    def unmeasure(row: MethodResult) -> None:
        def blank(finding: Finding) -> Finding:
            update = {"unlearned": None, "verdict": "not measured", "reason": "the run ended early"}
            return finding.model_copy(update=update) if finding.metric == "tofu/model_utility" else finding

        row.findings = [blank(finding) for finding in row.findings]

    html = render(samples.emptied(unmeasure, "npo"))
    assert "Not measured: this figure needs" in html
    assert "npo: the run ended early" in Page(html).text


def test_empty_sections_say_that_they_are_empty() -> None:
    def strip(row: MethodResult) -> None:
        row.relearning, row.examples, row.findings, row.quantisation = [], [], [], []

    text = Page(render(samples.emptied(strip, "npo"))).text
    assert "the relearning attack was not run" in text
    assert "No texts were kept" in text
    assert "Nothing was measured in this group" in text


def test_answers_missing_and_empty_are_told_apart(many: str) -> None:
    assert "(empty answer)" in many

    def forget_texts(row: MethodResult) -> None:
        row.examples = [example.model_copy(update={"unlearned": None}) for example in row.examples]

    assert "not asked" in render(samples.emptied(forget_texts, "npo"))


def test_costs_show_throughput_or_that_it_was_not_counted(one: str) -> None:
    start = one.index('id="cost"')
    part = one[start : one.index('id="untested"')]
    assert "1,581" in part  # 9800 tokens in 6.2 s
    assert "not counted" in part
    assert "412" in part


def test_foreign_text_is_shown_as_text_and_long_text_is_cut_with_a_note() -> None:
    html = render(samples.hostile())
    text = Page(html).text
    assert "<script>document.title='owned'</script>" in text
    assert "{{ 7*7 }}" in text
    assert "[U+202E]gnp.exe" in text
    assert "\u202e" not in html
    assert "\x00" not in html
    assert "first 500 of 10,000 characters" in text
    assert "x" * 600 not in html
    assert html.encode("utf-8")


def test_lone_surrogates_can_be_written(tmp_path: Path) -> None:
    path = write_report(tmp_path, samples.hostile("\ud800 broken \udfff"))
    assert "[U+D800] broken" in path.read_text(encoding="utf-8")


def test_same_data_same_bytes(many: str) -> None:
    assert render(samples.report()) == many


def test_the_report_is_whole_or_absent(tmp_path: Path, one: str) -> None:
    path = write_report(tmp_path / "run", samples.report("npo"))
    assert path == tmp_path / "run" / "report.html"
    assert path.read_text(encoding="utf-8") == one
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError):
        write_report(tmp_path / "file", samples.report("npo"))


def test_a_report_without_results_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one result"):
        render(ReportData(title="t", created="now", results=[]))


def _contrast(first: str, second: str) -> float:
    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    high, low = sorted((light(first), light(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_colours_have_enough_contrast_in_light_and_dark(one: str) -> None:
    style = Page(one).style
    blocks = re.findall(r":root \{(.*?)\}", style, re.S)
    for block in blocks[:2]:
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block))
        for ground in ("paper", "card"):
            for name in ("ink", "soft", "blue", "grey", "orange", "teal", "red", "amber", "plum"):
                assert _contrast(colours[name], colours[ground]) >= 4.5, (name, ground)


def test_a_browser_runs_nothing_and_asks_for_nothing(tmp_path: Path) -> None:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is missing: apt-get install -y chromium")
    asked: list[str] = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at = f"http://127.0.0.1:{server.server_port}"
        attack = (
            f"</title></style></bdi><script>document.title='owned';fetch('{at}/fetch')</script>"
            f"<img src='{at}/img' onerror=\"document.body.id='owned'\"><link rel=stylesheet href={at}/css>"
            f"<style>@import url({at}/import);body{{background:url({at}/bg)}}</style>"
            f"<iframe src={at}/frame></iframe>"
            f"<svg onload=\"document.body.id='owned'\"><image href={at}/svg></svg><b id=injected>x</b>"
            f"<meta http-equiv=refresh content='0;url={at}/refresh'>\" onmouseover='x' {at}/plain"
        )
        # The control shows that the attack works where nothing stops it: only so does silence mean something.
        control = tmp_path / "control.html"
        control.write_text(f"<!DOCTYPE html><html><head><title>{attack}", encoding="utf-8")
        report = write_report(tmp_path, samples.hostile(attack))
        seen = _dump(control, tmp_path / "profile-control")
        assert asked, "the control page did not reach the listener: the test proves nothing"
        assert "injected" in seen
        asked.clear()
        dom = _dump(report, tmp_path / "profile-report")
        server.shutdown()
    assert asked == []
    page = Page(dom)
    assert not {name for name, _ in page.elements} & {"script", "img", "iframe", "image"}
    assert not any(attributes.get("id") in {"owned", "injected"} for _, attributes in page.elements)
    assert dom.count("<title>") == 1
    assert "<title>owned" not in dom
    assert "&lt;script&gt;document.title" in dom


def _dump(page: Path, profile: Path) -> str:
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={profile}", "--virtual-time-budget=3000", "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    finally:
        shutil.rmtree(profile, ignore_errors=True)
    return done.stdout
