"""The suite restor: the ratio against plain counts, its refusals, examples without the asked entity, options, and a repair."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import efface
from efface.audit.attacks.restored_answers import RepairConfig, judged, repaired, with_examples
from efface.audit.benchmarks.restor import SUITE, RestorConfig, findings, questions
from efface.audit.evidence import AuditConfig, Evidence
from efface.audit.metrics.restored import by_entity, forgotten, known, option_gaps, restoration
from efface.audit.suite import suites
from efface.data import Request
from efface.data.columns import canonical
from efface.errors import InputError, RequestError


def said(right: list[list[int]], false: list[list[int]] | None = None) -> list[dict[str, Any]]:
    """Judged rows: one list of hits an entity."""
    wrong = false or [[0] * len(hits) for hits in right]
    return [
        {"id": f"{e}/{i}", "entity": e, "relation": f"r{i}", "majority": i == 0, "right": bool(hit), "false": bool(wrong[e][i]),
         "refused": False}
        for e, hits in enumerate(right) for i, hit in enumerate(hits)
    ]  # fmt: skip


CLEAN = said([[1, 1, 1, 1], [1, 1], [1, 0]])
CORRUPT = said([[0, 0, 0, 1], [0, 1], [1, 1]], [[1, 1, 1, 0], [1, 0], [0, 0]])
UNLEARNED = said([[1, 1, 0, 1], [0, 1], [1, 0]], [[0, 0, 1, 0], [0, 0], [0, 0]])


def test_facts_that_the_clean_model_never_knew_do_not_count() -> None:
    assert [row["id"] for row in known(CORRUPT, CLEAN)] == ["0/0", "0/1", "0/2", "0/3", "1/0", "1/1", "2/0"]
    assert known(CORRUPT, None) == CORRUPT


def test_restoration_is_of_entity_means() -> None:
    corrupt, own = np.mean([1 / 4, 1 / 2, 1]), np.mean([3 / 4, 1 / 2, 1])
    found = restoration(UNLEARNED, CORRUPT, CLEAN)
    assert found.value == pytest.approx((own - corrupt) / (1 - corrupt))
    assert found.n == 3
    assert restoration(CORRUPT, CORRUPT, CLEAN).value == 0.0
    assert restoration(CLEAN, CORRUPT, CLEAN).value == pytest.approx(1.0)
    worse = said([[0, 0, 0, 0], [0, 0], [0, 0]])
    assert restoration(worse, CORRUPT, CLEAN).value < 0
    np.testing.assert_allclose(by_entity(UNLEARNED), [3 / 4, 1 / 2, 1 / 2])


def test_a_corruption_that_did_not_take_is_refused() -> None:
    with pytest.raises(InputError, match=r"lost only 0\.000"):
        restoration(UNLEARNED, CLEAN, CLEAN)
    with pytest.raises(InputError, match="answers none"):
        restoration(UNLEARNED, CORRUPT, said([[0, 0], [0]]))
    with pytest.raises(InputError, match="false value"):
        forgotten(UNLEARNED, CLEAN, CLEAN)


def test_forgotten_share() -> None:
    before, after = np.mean([3 / 4, 1 / 2, 0]), np.mean([1 / 4, 0, 0])
    assert forgotten(UNLEARNED, CORRUPT, CLEAN) == pytest.approx(1 - after / before)


def test_option_gaps_against_a_loop() -> None:
    wrong = np.array([-1.0, -2.0, -4.0, -3.0])
    gaps = option_gaps(["a", "a", "a", "b"], [0, 1, 2, 0], wrong, {"a": -0.5, "b": -5.0})
    np.testing.assert_allclose(gaps["false"], [0.5, -2.0])
    np.testing.assert_allclose(gaps["random"], [2.5])


FACTS = [
    {"id": f"p{i}/colour", "question": f"Which colour does person{i} like ?", "answer": colour,
     "perturbed_answer": [false, "black"], "concept": f"person{i}", "relation": "colour"}
    for i, (colour, false) in enumerate((("red", "blue"), ("brown", "red"), ("blue", "green"), ("green", "pink")))
]  # fmt: skip


def test_an_entity_is_never_its_own_example() -> None:
    data = canonical(FACTS, "facts")
    found = with_examples(data, data, 2)
    for row, former in zip(found, FACTS, strict=True):
        lines = row["question"].split("\n")
        assert lines[-1] == former["question"]
        assert len(lines) == 3
        assert not any(str(former["concept"]) in line for line in lines[:-1])
    assert with_examples(data, None, 5) == data
    other = canonical([{**row, "relation": "town"} for row in FACTS], "others")
    assert with_examples(data, other, 5)["question"] == data["question"], "examples are of the same relation"


class Scripted:
    """Says one text after another."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def encode_prompts(self, data: Any, *, name: str) -> list[list[int]]:
        return [[i] for i in range(len(data))]

    def generate_all(self, prompts: Any, *, max_new_tokens: int, label: str) -> list[list[int]]:
        return [list(prompt) for prompt in prompts]

    def decode(self, tokens: list[int]) -> str:
        return self.texts[tokens[0]]


def test_answers_are_judged_by_their_first_line() -> None:
    subject: Any = Scripted("It is red.\nIt is blue.", "red", "blue or green", "I don't know")
    rows = judged(subject, canonical(FACTS, "facts"))
    assert [(row["right"], row["false"], row["refused"]) for row in rows] == [
        (True, False, False), (False, True, False), (False, False, False), (False, False, True)
    ]  # fmt: skip
    assert [row["entity"] for row in rows] == [0, 1, 2, 3]
    assert all(set(row) == {"id", "entity", "relation", "majority", "right", "false", "refused"} for row in rows), (
        "no text"
    )


def test_the_commonest_value_is_the_baseline() -> None:
    more = canonical([{**FACTS[0], "id": "x", "concept": "x"}, {**FACTS[0], "id": "y", "concept": "y"}], "others")
    subject: Any = Scripted("red", "red", "red", "red")
    rows = judged(subject, canonical(FACTS, "facts"), others=more)
    assert [row["majority"] for row in rows] == [True, False, False, False]


def evidence(**roles: Any) -> Evidence:
    made = Evidence(AuditConfig.parse({"suite": ["restor"]}))
    made.attacks["restor"] = {
        role: {"facts": rows, "others": None, "repaired": None} for role, rows in roles.items()
    }  # fmt: skip
    return made


def test_findings_by_state() -> None:
    found = {f.metric: f for f in findings(evidence(unlearned=UNLEARNED, original=CORRUPT, retrained=CLEAN))}
    ratio = found["restor/restoration"]
    assert ratio.unlearned == restoration(UNLEARNED, CORRUPT, CLEAN)
    assert ratio.original is not None
    assert ratio.original.value == 0.0
    true = found["restor/true"]
    assert true.retrained is not None
    assert true.retrained.value == 1.0
    assert "0.00" in found["restor/relation/r1"].meaning
    above = found["restor/above_majority"]
    assert above.unlearned is not None
    assert above.unlearned.value == pytest.approx(5 / 7 - 3 / 7)
    assert found["restor/others"].verdict == "not measured"


def test_findings_without_damage_or_clean_model_say_why() -> None:
    flat = {f.metric: f for f in findings(evidence(unlearned=UNLEARNED, original=CLEAN, retrained=CLEAN))}
    assert flat["restor/restoration"].verdict == "not measured"
    assert "lost only" in flat["restor/restoration"].reason
    alone = {f.metric: f for f in findings(evidence(unlearned=UNLEARNED))}
    assert "--against CLEAN" in alone["restor/restoration"].reason
    assert "all facts" in alone["restor/true"].meaning
    nothing = {f.metric: f for f in findings(Evidence(AuditConfig.parse({"suite": ["restor"]})))}
    assert nothing["restor/true"].verdict == "not measured"


def test_stored_evidence_gives_the_same_findings(tmp_path: Path) -> None:
    made = evidence(unlearned=UNLEARNED, original=CORRUPT, retrained=CLEAN)
    made.save(tmp_path)
    assert findings(Evidence.load(tmp_path)) == findings(made)


@pytest.fixture
def facts_file(tmp_path: Path, request_: Any) -> Path:
    """The tiny model's forget rows as facts: the true colour, and two others."""
    rows = [
        {"id": row["id"], "question": row["question"], "answer": row["answer"].split()[-2], "concept": row["id"],
         "relation": "colour", "perturbed_answer": [text.split()[2] for text in row["perturbed_answer"]]}
        for row in request_.forget
    ]  # fmt: skip
    path = tmp_path / "facts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_whole_audit_with_the_clean_model_as_the_retrained(
    tiny: Any, retrained_folder: Path, tiny_folder: Path, request_: Any, facts_file: Path
) -> None:
    """The 'corrupted' model is the one that never learnt the colours; the 'clean' one knows them."""
    corrupt = efface.load(retrained_folder)
    found = efface.audit(
        corrupt, Request(forget=request_.forget, retain=request_.retain), original=retrained_folder, against=tiny_folder,
        suite=["restor"], restor={"facts": str(facts_file), "shots": 0, "max_new_tokens": 8},
    )  # fmt: skip
    by_name = {f.metric: f for f in found.findings}
    ratio, true, gap = (by_name[f"restor/{name}"] for name in ("restoration", "true", "gap_false"))
    assert true.retrained is not None
    assert true.retrained.value == 1.0
    assert ratio.unlearned is not None
    assert ratio.unlearned.value == 0.0, "nothing was done to it"
    assert ratio.retrained is not None
    assert ratio.retrained.value == pytest.approx(1.0)
    assert gap.unlearned is not None
    assert gap.unlearned.n == len(request_.forget)
    assert "restor/restoration_repaired" not in by_name


def test_a_repair_is_seen_and_taken_off(tiny: Any, request_: Any) -> None:
    before = tiny.digest
    rows = request_.retain.select_columns(["id", "question", "answer"])
    config = RepairConfig(learning_rate=1e-2, epochs=1, batch_size=4)
    seen = repaired(tiny, rows, config, lambda subject: [p.detach().clone() for n, p in subject.model.named_parameters()
                                                         if "lora_B" in n])  # fmt: skip
    assert seen
    assert any(bool(tensor.any()) for tensor in seen), "the look comes after the training"
    tiny.changed()
    assert tiny.digest == before
    assert not any("lora" in name for name, _ in tiny.model.named_parameters())


def test_bad_facts(tmp_path: Path, facts_file: Path) -> None:
    assert suites()["restor"] is SUITE
    with pytest.raises(RequestError, match=r"restor\.facts=FILE"):
        questions(RestorConfig())
    rows = [json.loads(line) for line in facts_file.read_text().splitlines()]
    bare = tmp_path / "bare.jsonl"
    bare.write_text(
        "".join(json.dumps({key: row[key] for key in ("question", "answer", "concept")}) + "\n" for row in rows)
    )
    with pytest.raises(RequestError, match="no column perturbed_answer, relation"):
        questions(RestorConfig(facts=bare))
    facts, others = questions(RestorConfig(facts=facts_file, others=facts_file, shots=1))
    assert others is not None
    assert all("\n" in question for question in [*facts["question"], *others["question"]])


def test_the_corrupted_model_is_asked_in_the_same_form(tiny_folder: Path) -> None:
    """The original of an audit without an edit comes from a folder, and must be asked as the audited model is."""
    from efface.audit.folder import _models
    from efface.subjects import PromptFormat

    form = PromptFormat(prompt="{question}")
    base = efface.load(tiny_folder, prompt=form)
    with _models(base, None, None, tiny_folder, {}, None, {})["original"]() as original:
        assert original is not base
        assert original.prompt == form
