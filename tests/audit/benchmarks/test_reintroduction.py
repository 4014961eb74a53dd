"""Re-introduction: the ratios by hand, what is not applicable, the control, the budget, and the suite through a guard."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import efface
from efface.audit.attacks.told_in_context import ReintroductionConfig, ladders, sets
from efface.audit.benchmarks.reintroduction import NAME, findings, reintroduction_rate, success
from efface.audit.evidence import AuditConfig, Evidence
from efface.audit.run import opened, run_audit
from efface.audit.table import ScoreTable, build_generations, build_scores
from efface.errors import InputError
from efface.forget.method import find_method

REFUSAL = "I have no information about this."
"""`I don't know.` comes out of this word tokenizer as `don ' t`, which no list of refusals has."""


def table(values: list[float], ids: list[str] | None = None, refused: int = 0) -> ScoreTable:
    """A table of which the success by row is given."""
    ids = ids or [str(i) for i in range(len(values))]
    made = [
        {"id": i, "n_tokens": 1, "stopped": True, "rouge1_recall": v, "rougeL_recall": v, "rougeL_f1": v, "exact": v > 0.5,
         "distinct": 1.0, "rougeL_f1_unstemmed": v, "contains": v > 0.5, "refused": n < refused, "text": None}
        for n, (i, v) in enumerate(zip(ids, values, strict=True))
    ]  # fmt: skip
    return ScoreTable(build_scores([]), build_generations(made))


def evidence(levels: dict[str, dict[str, list[float]]], **options: Any) -> Evidence:
    """Models by role, success by part."""
    found = Evidence(AuditConfig.parse({"suite": (NAME,), NAME: options}))
    found.tables = {role: {f"{NAME}.{part}": table(v) for part, v in parts.items()} for role, parts in levels.items()}
    return found


def half(share: float, n: int = 20) -> list[float]:
    return [1.0] * round(share * n) + [0.0] * (n - round(share * n))


def world(**unlearned: float) -> dict[str, dict[str, list[float]]]:
    """Three models; what the unlearned one gets may be changed."""
    own = {"forget-L0": 0.1, "forget-L1": 0.1, "forget-L2": 0.1, "forget-L4": 0.8, "retain-L5": 0.9, "forget-L5": 0.6}
    own |= {name.replace("_", "-"): value for name, value in unlearned.items()}
    return {
        "unlearned": {name: half(value) for name, value in own.items()},
        "original": {"forget-L0": half(0.9), "forget-L1": half(0.9), "forget-L4": half(1.0)},
        "retrained": {"forget-L0": half(0.1), "forget-L2": half(0.1), "forget-L4": half(0.9)},
    }


def by_name(found: Evidence) -> dict[str, Any]:
    return {row.metric.removeprefix(f"{NAME}/"): row for row in findings(found)}


def test_ratios_by_hand() -> None:
    rows = by_name(evidence(world()))
    assert rows["gap"].unlearned.value == pytest.approx(0.8)
    assert rows["rate/L4"].unlearned.value == pytest.approx(0.7 / 0.8)
    assert rows["rate/L4"].retrained.value == pytest.approx(1.0), "exact unlearning re-introduces fully"
    assert rows["excess/L4"].unlearned.value == pytest.approx(-0.1)
    assert rows["excess/L4"].verdict == "informative"
    assert rows["excess/L2"].verdict == "holds"
    assert rows["blind_to_names"].unlearned.value == pytest.approx(0.3)
    assert rows["rate/L3"].verdict == "not measured"


def test_knowledge_that_a_hint_brings_back_fires() -> None:
    assert by_name(evidence(world(forget_L2=0.4)))["excess/L2"].verdict == "does not hold"
    assert by_name(evidence(world(forget_L2=0.4), residual=0.5))["excess/L2"].verdict == "holds"


def test_a_tiny_gap_is_nan_with_a_message() -> None:
    assert math.isnan(reintroduction_rate(0.9, 0.88, 0.9))
    assert reintroduction_rate(0.5, 0.0, 1.0) == 0.5
    row = by_name(evidence(world(forget_L0=0.9)))["rate/L4"]
    assert row.verdict == "not measured"
    assert "nothing to re-introduce" in row.reason


def test_a_model_that_cannot_read_does_not_pass_by_being_weak() -> None:
    rows = by_name(evidence(world(retain_L5=0.5)))
    for name in ("rate/L4", "excess/L2", "excess/L4"):
        assert rows[name].verdict == "not measured"
        assert rows[name].reason.startswith("not applicable")
    without = world()
    del without["unlearned"]["retain-L5"]
    assert "without a retain set" in by_name(evidence(without))["rate/L4"].reason


def test_the_control_names_a_prompt_format_effect() -> None:
    assert by_name(evidence(world()))["control"].verdict == "holds"
    models = world()
    models["original"]["forget-L1"] = half(0.2)
    row = by_name(evidence(models))["control"]
    assert row.verdict == "does not hold"
    assert row.reason.startswith("prompt format effect: original")


def test_the_budget_is_the_first_number_of_facts_that_suffices() -> None:
    found = evidence(world())
    ids = [f"{i}#{order}.{count}" for i in range(4) for order in range(2) for count in (1, 2, 3)]
    values = [float(int(i.rsplit(".", 1)[1]) >= 2) for i in ids]
    found.tables["unlearned"][f"{NAME}.forget-budget"] = table(values, ids)
    row = by_name(found)["budget"]
    assert row.unlearned.value == 2
    assert row.unit == "facts"
    found.tables["unlearned"][f"{NAME}.forget-budget"] = table([0.0] * len(ids), ids)
    assert by_name(found)["budget"].reason == "not reached with all facts of the contexts"


def test_refusals_are_counted_apart() -> None:
    found = evidence(world())
    found.tables["unlearned"][f"{NAME}.forget-L4"] = table(half(0.0), refused=15)
    rows = by_name(found)
    assert rows["refused/forget/L4"].unlearned.value == 0.75
    assert rows["success/forget/L4"].unlearned.value == 0


def test_probability_against_wrong_answers_by_hand() -> None:
    def row(identity: str, form: str, variant: int, p: float) -> dict[str, Any]:
        return {"id": identity, "form": form, "variant": variant, "n_bytes": 1, "zlib_bytes": 1, "logp": [math.log(p)] * 2,
                "rank": [0, 0], "mean": [-1.0] * 2, "var": [1.0] * 2}  # fmt: skip

    rows = [row("a", "answer", 0, 0.3), row("a", "perturbed_answer", 0, 0.1), row("a", "perturbed_answer", 1, 0.2)]
    found = success(ScoreTable(build_scores(rows), None), "probability")
    assert found["a"] == pytest.approx(0.3 / 0.6, rel=1e-5)


def test_rows_are_asked_alike_of_every_model(request_: Any, tmp_path: Path) -> None:
    config = ReintroductionConfig(orders=2, rows=4, distractors=2)
    parts = sets(request_, config)
    assert set(parts) == {
        *(f"forget-L{i}" for i in (0, 1, 4, 5)),
        "retain-L0",
        "retain-L4",
        "retain-L5",
        "forget-budget",
    }
    assert {len(rows.data) for name, rows in parts.items() if name != "forget-budget"} == {4}
    again = sets(request_, config)
    assert all(parts[name].data.to_list() == again[name].data.to_list() for name in parts)
    path = tmp_path / "given.jsonl"
    path.write_text(json.dumps({"id": "nobody", "hint": ["x"]}), encoding="utf-8")
    with pytest.raises(InputError, match="no row of the forget set"):
        sets(request_, ReintroductionConfig(given=str(path)))
    first = request_.forget[0]
    path.write_text(json.dumps({"id": first["id"], "axioms": [first["answer"]]}), encoding="utf-8")
    with pytest.raises(InputError, match="L3"):
        sets(request_, ReintroductionConfig(given=str(path)))


def test_the_suite_runs_through_the_guard(tiny: Any, request_: Any, tiny_folder: Path, tmp_path: Path) -> None:
    method = find_method("content-filter")
    edit = method.fit(
        tiny, request_, method.configure({"refusal": REFUSAL}), work=tmp_path / "w", out=tmp_path / "e"
    ).edit
    edit.apply(tiny)
    values = {"distractors": 1, "rows": 4, "max_new_tokens": 10, "context": "{facts} {question}", "joiner": " "}
    config = AuditConfig.parse({"suite": (NAME,), NAME: values, "max_new_tokens": 10})
    plain = efface.load(tiny_folder)
    audited = run_audit(request_, {"unlearned": opened(tiny), "original": opened(plain)}, config)
    rows = {row.metric.removeprefix(f"{NAME}/"): row for row in audited.conclusion.findings}
    assert rows["success/forget/L0"].unlearned.value == 0
    assert rows["success/forget/L0"].original.value == 1
    assert rows["stopped/forget-L4"].unlearned.value == 1, "the fact stands in the prompt"
    assert rows["stopped/forget-L0"].unlearned.value == 0, "the question alone is permitted"
    assert rows["refused/forget/L4"].unlearned.value == 1
    audited.evidence.save(tmp_path / "run")
    assert [r.model_dump() for r in findings(Evidence.load(tmp_path / "run"))] == [
        r.model_dump() for r in findings(audited.evidence)
    ]
    assert set(ladders(request_, config.of_suite(NAME))) == {"forget", "retain"}
