"""The suite: three outcomes that can all happen, intervals, findings from the record alone, and baselines' prompts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from efface.audit.benchmarks.in_context import askable_items, findings, harmonic, leaks, measure, outcome, triples
from efface.audit.benchmarks.in_context_baselines import few_shot, icul, plain_outcomes, prompt_ids, rates
from efface.audit.evidence import AuditConfig, Evidence
from efface.audit.metrics.intervals import wilson
from efface.audit.run import check_suites
from efface.data.columns import canonical
from efface.data.tagged import TagProtocol
from efface.errors import InputError

P = TagProtocol()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("forgot", "forgot"),
        (" Forgot. ", "forgot"),
        ("Canberra", "correct"),
        ("canberra!", "correct"),
        ("forgot, Canberra", "other"),
        ("Sydney", "other"),
        ("", "other"),
        ("forgot forgot", "other"),
    ],
)
def test_an_output_is_forgot_correct_or_other_by_its_whole_text(text: str, word: str) -> None:
    assert outcome(text, "Canberra", "forgot") == word


def test_a_wrong_answer_is_not_forgetting() -> None:
    """The official scoring maps any wrong text to the class of 'forgot', so forget recall is 1.0 whatever is said."""
    assert outcome("Sydney", "Canberra", "forgot") != "forgot"


def test_exact_and_normalised_stand_apart() -> None:
    assert outcome("Forgot.", "Canberra", "forgot", exact=True) == "other"
    assert (
        outcome("United States of America ; Great Britain", "United States of America; Great Britain", "forgot")
        == "correct"
    )
    assert leaks("forgot, Canberra", "Canberra")
    assert not leaks("forgot", "Canberra")
    assert not leaks("Tirana", "Iran")


def test_wilson_against_the_formula() -> None:
    k, n, z = 17, 20, 1.959963984540054
    p = k / n
    centre, half = (
        (p + z * z / 2 / n) / (1 + z * z / n),
        z / (1 + z * z / n) * (p * (1 - p) / n + z * z / 4 / n**2) ** 0.5,
    )
    found = wilson(k, n)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half))
    assert wilson(0, 20).low == pytest.approx(0, abs=1e-12)
    assert wilson(20, 20).high == pytest.approx(1)
    for bad in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(InputError):
            wilson(*bad)


def entry(matched: list[str], unmatched: list[str]) -> dict[str, Any]:
    def asked(words: list[str]) -> dict[str, Any]:
        return {"outcome": words, "exact": words, "leak": [word == "correct" for word in words]}

    return {"rule": "concept", "n": len(matched), "unasked": 0, "lone": 0, "ids": [str(i) for i in range(len(matched))],
            "asked": {"matched": asked(matched), "unmatched": asked(unmatched), "untagged": asked(unmatched)},
            "layers": {}}  # fmt: skip


def test_findings_follow_from_the_record() -> None:
    row = entry(["forgot"] * 3 + ["correct"], ["correct", "forgot", "other", "correct"])
    evidence = Evidence(
        AuditConfig(), attacks={"in-context": {"unlearned": {"target": "forgot", "sets": {"held_out": row}}}}
    )
    found = {finding.metric: finding for finding in findings(evidence)}
    values = {name.split("/")[1]: f.unlearned.value for name, f in found.items() if f.unlearned is not None}
    assert values["forget_accuracy"] == 0.75
    assert values["leak"] == values["still_correct"] == 0.25
    assert values["retain_accuracy"] == 0.5
    assert values["over_forget"] == 0.25
    assert values["no_tag_accuracy"] == 0.5
    assert values["harmonic"] == pytest.approx(2 * 0.75 * 0.5 / 1.25)
    accuracy = found["in-context/forget_accuracy/held_out"].unlearned
    assert accuracy is not None
    assert (accuracy.low, accuracy.high) == (wilson(3, 4).low, wilson(3, 4).high)
    assert "names whom or what" in found["in-context/forget_accuracy/held_out"].meaning
    assert found["in-context/internal_answer/held_out"].verdict == "not measured"
    zero = harmonic(entry(["other"] * 4, ["other"] * 4))
    assert zero is not None
    assert zero.value == 0


def test_without_a_protocol_the_suite_says_so() -> None:
    found = findings(Evidence(AuditConfig(suite=("in-context",))))
    assert [finding.verdict for finding in found] == ["not measured"]
    check_suites(AuditConfig(suite=("in-context",)))


def test_measure_on_a_model_gives_a_record_without_texts(tiny: Any, request_: Any) -> None:
    record = measure(tiny, {"forget": request_.forget}, P, rows=4)
    read = json.loads(json.dumps(record, allow_nan=False))["sets"]["forget"]
    assert (read["rule"], read["n"]) == ("answer", 4)
    assert set(read["asked"]) == set(read["layers"]) == {"matched", "unmatched", "untagged"}
    assert read["asked"]["untagged"]["exact"] == ["correct"] * 4
    assert "likes the colour" not in json.dumps(record)
    assert len(read["layers"]["untagged"]["curves"]["truth"]) == 3
    evidence = Evidence(AuditConfig(), attacks={"in-context": {"unlearned": record}})
    assert {f.metric for f in findings(evidence)} >= {
        "in-context/no_tag_accuracy/forget",
        "in-context/flip_depth/forget",
    }


def test_rows_that_cannot_be_asked_are_counted() -> None:
    data = canonical(
        [{"question": "", "answer": "x"}, {"question": "q?", "answer": "Forgot!"}, {"question": "q?", "answer": "!"},
         {"question": "q?", "answer": "Rome"}], "d",
    )  # fmt: skip
    items, unasked = askable_items(data, "d", "forgot")
    assert ([item.answer for item in items], unasked) == (["Rome"], 3)
    assert triples(items, P, 0) == ([], 1)  # nothing else could stand in a tag


def test_demonstrations_stand_before_the_query(tiny: Any) -> None:
    ids = prompt_ids(tiny, [("Which colour does person1 like ?", "red")], "Which colour does person2 like ?")
    text = tiny.tokenizer.decode(ids)
    assert text.index("person1") < text.index("red") < text.index("person2")
    with pytest.raises(InputError, match="demonstrations"):
        prompt_ids(tiny, [("Which colour does person1 like ?", "red")] * 30, "Which colour ?")


def test_baselines_give_the_tables_columns(tiny: Any, request_: Any) -> None:
    tiny.model.config.max_position_embeddings = 256  # two demonstrations and a question are some ninety words
    items, _ = askable_items(request_.forget, "forget", "forgot")
    pool, _ = askable_items(request_.retain, "retain", "forgot")
    few = rates(few_shot(tiny, items[:3], pool, P, matched=1, unmatched=1))
    assert set(few) == {"forget", "retain", "no_tag", "leak", "over_forget"}
    flipped = icul(tiny, items[:3], pool, "forgot", correct=1)
    assert rates(flipped)["forget"] == 0  # no flipped label makes a model say 'forgot'
    assert len(flipped["asked"]["matched"]["exact"]) == 3
    assert rates(plain_outcomes(tiny, items, "forgot"))["no_tag"] == 1
    with pytest.raises(InputError, match="to demonstrate with"):
        few_shot(tiny, items[:1], pool[:1], P)
