"""The suite ort: nothing changed is exactly nothing, one form forgotten is a bias, letters, namesakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from efface.audit.benchmarks.ort import FORMS, LEAST, SUITE, OrtSettings, bias, scores, sets
from efface.audit.evidence import AuditConfig, Evidence
from efface.audit.run import opened, run_audit
from efface.audit.table import ScoreTable, build_scores
from efface.audit.verdict import conclude
from efface.data import Request

TYPES = ["role-playing", "cross-lingual"]


def config() -> AuditConfig:
    return AuditConfig.parse({"suite": ["ort"], "ort": {"types": TYPES}})


def table(values: list[float], names: list[str] | None = None) -> ScoreTable:
    """A score table whose answers have these probabilities per token, two tokens each."""
    rows = [
        {"id": (names or [str(i) for i in range(len(values))])[i], "form": "answer", "variant": 0, "n_bytes": 1,
         "zlib_bytes": 9, "logp": [float(np.log(p))] * 2, "rank": [0, 0], "mean": [-1.0, -1.0], "var": [1.0, 1.0]}
        for i, p in enumerate(values)
    ]  # fmt: skip
    return ScoreTable(build_scores(rows), None, {})


def evidence(before: dict[str, list[float]], after: dict[str, list[float]], groups: bool = True) -> Evidence:
    known = {name: list(range(len(values))) for name, values in before.items()} if groups else {}
    made = {"groups": known, "left_out": {"aa_role-playing": {"why": 2}}, "letters": {"A": 3, "C": 1}, "named": False}
    tables = {
        role: {f"ort.{name}": table(values) for name, values in parts.items()}
        for role, parts in (("original", before), ("unlearned", after))
    }
    return Evidence(config(), tables, {}, {"ort": {"unlearned": made}})


BEFORE = {
    "fb": [0.9, 0.8],
    "qa": [1.0, 0.6],
    "aa_x": [0.5, 0.5],
    "aa_y": [0.4, 0.2],
    "kept_fb": [0.9, 0.9],
    "kept_qa": [0.9, 0.7],
}


def by_name(found: Evidence) -> dict[str, Any]:
    return {one.metric: one for one in SUITE.findings(found)}


def test_an_untouched_model_gives_zero_in_every_form(tiny: Any, request_: Any) -> None:
    made = run_audit(request_, {"original": opened(tiny), "unlearned": opened(tiny)}, config())
    names = {one.metric: one for one in made.conclusion.findings}
    changes = [names[f"ort/{form}"].unlearned for form in FORMS]
    assert [one.value for one in changes if one is not None].count(0.0) >= 2
    assert all(one.value == 0.0 for one in changes if one is not None)
    assert names["ort/form_bias"].unlearned.value == 0.0


def test_one_form_forgotten_is_a_bias() -> None:
    names = by_name(evidence(BEFORE, {**BEFORE, "qa": [0.001, 0.0006]}))
    assert names["ort/qa"].unlearned.value == pytest.approx(-0.999)
    assert names["ort/fb"].unlearned.value == names["ort/aa"].unlearned.value == 0.0
    assert names["ort/form_bias"].unlearned.value == pytest.approx(0.999)
    assert names["ort/kept/form_bias"].unlearned.value == 0.0
    assert "0.8 -> 0.0008" in names["ort/qa"].reason


def test_attacks_are_one_form_of_all_their_types() -> None:
    found = evidence(BEFORE, {**BEFORE, "aa_y": [0.0001, 0.0001]})
    own = scores(found, "unlearned", "aa")
    assert own is not None
    np.testing.assert_allclose(own[0], [0.5, 0.5, 0.0001, 0.0001], rtol=1e-5)
    assert own[1] == [0, 1, 0, 1]
    change = by_name(found)["ort/aa"]
    assert change.unlearned.value == pytest.approx((1.0002 - 1.6) / 1.6)
    assert "2 left out (role-playing): why" in change.reason


def test_a_form_that_the_original_does_not_answer_has_no_change() -> None:
    weak = [LEAST / 2, LEAST / 3]
    names = by_name(evidence({**BEFORE, "mc": weak}, {**BEFORE, "mc": [0.5, 0.5]}))
    assert names["ort/mc"].verdict == "not measured"
    assert "does not answer this form" in names["ort/mc"].reason
    assert names["ort/form_bias"].unlearned.value == 0.0


def test_without_an_original_nothing_is_measured() -> None:
    found = evidence(BEFORE, BEFORE)
    del found.tables["original"]
    assert bias(found, "unlearned") is None
    assert by_name(found)["ort/form_bias"].verdict == "not measured"


def test_letters_are_printed() -> None:
    finding = by_name(evidence(BEFORE, BEFORE))["ort/letters"]
    assert finding.unlearned.value == 0.75
    assert finding.reason == "A 3, B 0, C 1, D 0"


def test_intervals_hold_without_groups() -> None:
    names = by_name(evidence(BEFORE, {**BEFORE, "qa": [0.1, 0.5]}, groups=False))
    change = names["ort/qa"].unlearned
    assert change.low <= change.value <= change.high


def named(names: list[str]) -> list[dict[str, Any]]:
    return [
        {"id": name, "question": f"Which colour does {name} like ?", "answer": "red .", "concept": name}
        for name in names
    ]


def test_namesakes_are_found_by_their_last_token(tiny: Any) -> None:
    own = Request.from_rows(
        named(["green person0"]), named(["pink person0", "person1", "person0 blue", "black person0"])
    )
    part = sets(own, OrtSettings())["same_last_token"]
    assert part.fitted is not None
    assert part.fitted(tiny, part.data)["id"] == ["pink person0", "black person0"]
    made = run_audit(own, {"original": opened(tiny), "unlearned": opened(tiny)}, config())
    finding = next(one for one in made.conclusion.findings if one.metric == "ort/same_last_token")
    assert finding.unlearned is None or finding.unlearned.value == 0.0
    assert finding.unlearned is None or finding.unlearned.n == 2


def test_no_namesakes_and_no_names(tiny: Any, request_: Any, tmp_path: Path) -> None:
    own = Request.from_rows(named(["person0"]), named(["person1", "person2"]))
    made = run_audit(own, {"original": opened(tiny), "unlearned": opened(tiny)}, config())
    finding = next(one for one in made.conclusion.findings if one.metric == "ort/same_last_token")
    assert (finding.verdict, finding.reason) == ("not measured", "no kept concept ends in the same token")
    made.evidence.save(tmp_path)
    assert conclude(Evidence.load(tmp_path)).findings == made.conclusion.findings
    assert "same_last_token" not in sets(request_, OrtSettings())


def test_forms_of_the_rows(request_: Any) -> None:
    parts = sets(request_, OrtSettings())
    assert {"fb", "qa", "mc", "spelled_fb", "spelled_qa", "kept_qa", "kept_mc"} <= set(parts)
    assert not [part for part in parts.values() if part.generations]
    assert set(parts["mc"].data["answer"]) == {"A", "B", "C", "D"}
    assert "\n" in parts["spelled_qa"].data["answer"][0]
