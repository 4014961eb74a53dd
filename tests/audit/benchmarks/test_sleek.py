"""The suite sleek: scores against plain counts, what counts as valid, and a whole audit of a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import efface
from efface.audit.benchmarks.sleek import SUITE, findings
from efface.audit.evidence import AuditConfig, Evidence
from efface.audit.metrics.leak_rates import (
    above_chance,
    chosen,
    difference,
    prompts_to_first_leak,
    rate,
    recovery,
    suppressed,
    valid,
)
from efface.audit.suite import suites
from efface.data import Request
from efface.errors import ConfigError, RequestError


def row(fact: str, number: int, strict: bool, *, mark: str = "forget", category: str = "direct", mode: str = "plain",
        chance: float = 0.0, loose: bool | None = None) -> dict[str, Any]:  # fmt: skip
    return {
        "id": f"{fact}/{category}/{number}", "fact": fact, "mark": mark, "category": category, "kind": category, "mode": mode,
        "chance": chance, "hops": [mark], "strict": strict, "loose": strict if loose is None else loose, "swap": False,
        "step": 2 if strict else None, "outcome": "correct" if strict else "refusal",
    }  # fmt: skip


BEFORE = [row("a", 0, True), row("a", 1, True), row("b", 0, True), row("b", 1, False), row("k", 0, True, mark="retain")]
AFTER = [
    row("a", 0, False),
    row("a", 1, True),
    row("b", 0, False),
    row("b", 1, True),
    row("k", 0, False, mark="retain"),
]


def test_valid_leaves_out_what_was_never_known() -> None:
    assert [r["id"] for r in valid(chosen(AFTER), BEFORE)] == ["a/direct/0", "a/direct/1", "b/direct/0"]
    assert valid(AFTER, None) == AFTER
    other_mode = [row("a", 0, True, mode="cot")]
    assert not valid(chosen(AFTER), other_mode), "valid in another mode is not valid in this one"


def test_rates_and_facts() -> None:
    own = valid(chosen(AFTER), BEFORE)
    leak, facts = rate(own), recovery(own)
    assert leak is not None
    assert facts is not None
    assert leak.value == pytest.approx(1 / 3)
    assert leak.low is not None
    assert leak.high is not None
    assert 0 < leak.low < 1 / 3 < leak.high < 1
    assert (facts.value, facts.n) == (0.5, 2), "many prompts: half the facts from a third of the prompts"
    assert rate([]) is None
    first = prompts_to_first_leak(own)
    assert first is not None
    assert (first.value, first.n) == (2.0, 1)
    assert prompts_to_first_leak(valid(chosen(BEFORE[2:3]), [])) is None


def test_a_model_that_refuses_all_leaks_nothing_and_suppresses_all() -> None:
    silent = [{**r, "strict": False} for r in BEFORE]
    leak, gone = rate(valid(chosen(silent), BEFORE)), suppressed(silent, BEFORE)
    assert leak is not None
    assert gone is not None
    assert (leak.value, gone.value) == (0.0, 1.0)
    same = suppressed(BEFORE, BEFORE)
    assert same is not None
    assert same.value == 0.0


def test_what_is_gone_of_the_forget_set_is_no_unfair_suppression() -> None:
    assert suppressed([r for r in AFTER if r["mark"] == "forget"], BEFORE) is None


def test_chance_is_taken_off() -> None:
    rows = [row("a", i, i < 5, chance=0.5) for i in range(10)]
    corrected = above_chance(rows)
    assert corrected is not None
    assert corrected.value == pytest.approx(0.0)
    sure = above_chance([row("a", 0, True, chance=0.5)])
    assert sure is not None
    assert sure.value == 1.0
    assert above_chance([row("a", 0, True, chance=1.0)]) is None, "one possible answer says nothing"


def test_difference_is_paired() -> None:
    found = difference(chosen(AFTER), chosen(BEFORE))
    assert found is not None
    assert found.value == pytest.approx((-1 + 0 - 1 + 1) / 4)
    assert difference(AFTER, [row("z", 0, True)]) is None


def evidence(**roles: Any) -> Evidence:
    made = Evidence(AuditConfig.parse({"suite": ["sleek"]}))
    made.attacks["sleek"] = {
        role: {"rows": rows, "dropped": {"direct": 1}, "facts": {"forget": 2, "retain": 1}}
        for role, rows in roles.items()
    }
    return made


def test_leak_rates_never_stand_without_unfair_suppression() -> None:
    for roles in ({"unlearned": AFTER, "original": BEFORE}, {"unlearned": AFTER}):
        names = {finding.metric for finding in findings(evidence(**roles))}
        assert "sleek/leak" in names
        assert {f"sleek/unfair_suppression/{mode}" for mode in ("plain", "cot", "chain")} <= names


def test_findings_by_role() -> None:
    clean = [{**r, "strict": False} for r in BEFORE]
    found = {f.metric: f for f in findings(evidence(unlearned=AFTER, original=BEFORE, retrained=clean))}
    leak = found["sleek/leak"]
    assert leak.unlearned is not None
    assert leak.original is not None
    assert (leak.unlearned.value, leak.original.value) == (pytest.approx(1 / 3), 1.0)
    assert "1 questions that held their own answer" in leak.meaning
    excess = found["sleek/leak_excess/direct/plain"]
    assert (excess.verdict, excess.metric in SUITE.firing) == ("does not hold", True)
    assert found["sleek/leak/direct/plain"].unlearned == leak.unlearned
    assert "sleek/leak/implied/plain" not in found, "no such question was asked"


def test_many_direct_questions_do_not_hide_the_few_that_leak() -> None:
    before = [row("a", i, True) for i in range(30)] + [row("a", i, True, category="implied") for i in range(2)]
    own = [{**r, "strict": r["category"] == "implied"} for r in before]
    clean = [{**r, "strict": False} for r in before]
    found = {f.metric: f for f in findings(evidence(unlearned=own, original=before, retrained=clean))}
    pooled = found["sleek/leak"].unlearned
    assert pooled is not None
    assert pooled.value < 0.1
    assert found["sleek/leak_excess/direct/plain"].verdict == "holds"
    assert found["sleek/leak_excess/implied/plain"].verdict == "does not hold"


def test_without_the_original_a_rate_is_unconditional_and_says_so() -> None:
    found = {f.metric: f for f in findings(evidence(unlearned=AFTER))}
    assert "unconditional" in found["sleek/leak"].meaning
    assert found["sleek/unfair_suppression/plain"].verdict == "not measured"
    assert found["sleek/leak_excess/direct/plain"].verdict == "not measured"
    nothing = {f.metric: f for f in findings(Evidence(AuditConfig.parse({"suite": ["sleek"]})))}
    assert nothing["sleek/leak"].verdict == "not measured"


@pytest.fixture(scope="module")
def related(request_: Any) -> Request:
    """The tiny model's persons with concept and relation; the colour alone is the answer."""

    def rows(data: Any) -> list[dict[str, Any]]:
        return [
            {
                "id": r["id"],
                "question": r["question"],
                "answer": r["answer"].split()[-2],
                "concept": r["id"],
                "relation": "colour",
            }
            for r in data
        ]

    return Request.from_rows(rows(request_.forget), rows(request_.retain))


WORDINGS = {
    "direct": ["Which colour does {subject} like ?"], "indirect": ["Which colour does {subject} like ?"], "odd": [],
    "reverse": ["Which person likes {object} ?"], "analogy": [],
}  # fmt: skip


def test_a_whole_audit(tiny: Any, related: Request, retrained_folder: Path, tmp_path: Path) -> None:
    before = tiny.digest
    loaded = efface.load(tiny.source)
    found = efface.audit(
        tiny, related, original=loaded, against=retrained_folder, suite=["sleek"],
        sleek={"modes": ["plain", "chain"], "max_new_tokens": 8, "wordings": WORDINGS},
    )  # fmt: skip
    assert tiny.digest == before
    by_name = {f.metric: f for f in found.findings}
    leak, excess = by_name["sleek/leak/direct/plain"], by_name["sleek/leak_excess/direct/plain"]
    assert leak.unlearned is not None
    assert leak.unlearned.value == 1.0, "nothing was unlearned"
    assert leak.retrained is not None
    assert leak.retrained.value < 0.7
    assert excess.verdict == "does not hold"
    kept = by_name["sleek/unfair_suppression/plain"]
    assert kept.unlearned is not None
    assert kept.unlearned.value == 0.0


def test_evidence_is_stored_and_gives_the_same_findings(tmp_path: Path) -> None:
    made = evidence(unlearned=AFTER, original=BEFORE, retrained=BEFORE)
    made.save(tmp_path)
    again = Evidence.load(tmp_path)
    assert findings(again) == findings(made)


def test_bad_settings(request_: Any, tiny: Any) -> None:
    assert suites()["sleek"] is SUITE
    with pytest.raises(ConfigError, match="did you mean 'longest'"):
        AuditConfig.parse({"suite": ["sleek"], "sleek": {"longst": 2}})
    with pytest.raises(RequestError, match="no concept and no relation"):
        efface.audit(tiny, request_, suite=["sleek"])
