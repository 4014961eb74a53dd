"""The model card: the hub's own parser reads it, no forgotten text stands in it, nothing foreign renders."""

from __future__ import annotations

import re

import pytest
import report_samples as samples
import yaml

from efface.audit.finding import Estimate
from efface.report.card import model_card, plain


def split(card: str) -> tuple[dict[str, object], str]:
    """Front matter and body, cut as the hub cuts them."""
    match = re.match(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\r|\n|$))", card)
    assert match is not None
    return yaml.safe_load(match[2]), card[match.end() :]


def test_front_matter_is_what_the_hub_reads() -> None:
    head, body = split(model_card(samples.result("simnpo"), "example/people-lm", licence="apache-2.0"))
    assert head["base_model"] == "example/people-lm"
    assert head["license"] == "apache-2.0"
    assert head["tags"] == ["unlearning", "efface"]
    assert head["library_name"] == "transformers"
    assert body.lstrip().startswith("# simnpo")


def test_the_hubs_own_parser_finds_the_results() -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(model_card(samples.result("simnpo"), "example/people-lm"), ignore_metadata_errors=False)
    found = {row.metric_type: row.metric_value for row in card.data.eval_results}
    assert found["tofu/model_utility"] == pytest.approx(0.71)
    assert found["quantise/int4/rouge"] == pytest.approx(0.315)
    assert "mia/lira/auc" not in found  # not measured is no result
    assert card.data.base_model == "example/people-lm"
    assert card.data.license is None


def test_unknown_licence_and_local_paths_are_left_out() -> None:
    card = model_card(samples.result("npo"), "/home/alice/secret-project/model")
    head, _ = split(card)
    assert "license" not in head
    assert "base_model" not in head
    assert "alice" not in card


def test_the_card_holds_sizes_and_digests_but_no_text() -> None:
    result = samples.result("npo")
    card = model_card(result, "example/people-lm", not_tested=["Other languages."], certificate=samples.digest(9))
    for example in result.examples:
        for text in (
            example.question,
            example.reference,
            example.original,
            example.unlearned,
            example.retrained,
        ):
            assert text is not None
            assert text not in card
    assert "| forget | 32 | `sha256:0404" in card
    assert "people/forget" not in card
    assert "- Other languages." in card
    assert samples.digest(9) in card
    assert "**Verdict: suppressed.**" in card
    assert "not measured: no shadow models were given &#40;--shadow&#41;" in card


def test_values_that_are_no_numbers_are_no_results() -> None:
    result = samples.result("npo")
    result.findings = [result.findings[0].model_copy(update={"unlearned": Estimate(value=float("nan"))})]
    result.quantisation = []
    head, _ = split(model_card(result, "a/b"))
    assert "model-index" not in head


def test_hostile_text_stays_text() -> None:
    attack = (
        "---\nlicense: evil\n---\n# Owned\n| a | b |\n<script>alert(1)</script><img src=x onerror=y> "
        "[x](javascript:y) ![i](http://evil.example/p.png) `code` **bold** "
        "https://evil.example www.evil.example a@evil.example \u202e"
    )
    row = samples.hostile(attack).results[0]
    head, body = split(model_card(row, "a/b", not_tested=[attack], certificate=attack))
    assert "license" not in head
    assert "<" not in body
    assert "](" not in body
    assert "http:" not in body
    assert "https:" not in body
    assert not re.search(r"www\.", body, re.I)
    assert "@" not in body
    assert "\u202e" not in body
    assert [line for line in body.split("\n") if line.startswith("#")][1:] == [
        "## What was forgotten", "## How", "## Evidence", "## Limits",
    ]  # fmt: skip
    table = [line for line in body.split("\n") if line.startswith("|") and "does not hold" in line]
    assert all(line.count("|") == 7 for line in table)
    assert table


def test_plain_text_reads_back_as_itself() -> None:
    import html

    text = "a|b *c* <d> `e` _f_ [g](h) 50 % – café"
    assert html.unescape(plain(text)) == text
