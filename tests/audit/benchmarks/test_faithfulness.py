"""Faithfulness: the shares against hand-made readers, F1 over several references, KL against a loop, the suite on a model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from efface.audit.attacks import story_reading
from efface.audit.attacks.story_reading import (
    FaithfulnessConfig,
    answer_kl,
    ask,
    first_token,
    multi_f1,
    plain,
    prompt_of,
    read_stories,
    right,
    says_unknown,
    stories_of,
)  # fmt: skip
from efface.audit.benchmarks.faithfulness import NAME, chosen, findings
from efface.audit.evidence import AuditConfig, Evidence
from efface.audit.run import opened, run_audit
from efface.data.interventions import Story, read_story
from efface.errors import ConfigError, InputError
from efface.run.cost import Cost

COLOURS = ["red", "green", "blue", "grey"]
CONFIG = FaithfulnessConfig(template="{story} | {history}{question}", match="exact")


def stories() -> list[Story]:
    made = [
        {"id": f"s{i}", "story": f"Ann saw Bob. The {thing} is {colour}. It rains.", "question": f"What colour is the {thing}?",
         "answer": colour, "rationale": f"The {thing} is {colour}."}
        for i, (thing, colour) in enumerate(zip(["cat", "dog", "hat", "car"], COLOURS, strict=True))
    ]  # fmt: skip
    made.append({"id": "yn", "story": "It is a day. The pot is hot.", "question": "Is the pot hot?", "answer": "yes",
                 "rationale": "The pot is hot."})  # fmt: skip
    return [read_story(row, "row") for row in made]


def read_with(monkeypatch: pytest.MonkeyPatch, answer: Any) -> dict[str, Any]:
    """The flags of a reader that is a function of the prompt."""
    monkeypatch.setattr(story_reading, "_answers", lambda subject, prompts, config, label: [answer(p) for p in prompts])
    monkeypatch.setattr(
        story_reading, "first_token", lambda s, prompts, a, b: torch.zeros(len(prompts), 2).log_softmax(-1)
    )
    return ask(None, {"stories": stories()}, CONFIG, Cost(phase="x"))["stories"]


def from_story(prompt: str) -> str:
    """Reads: the colour in the story, unknown without one."""
    story = prompt.split("|")[0]
    if "pot" in prompt:
        return "unknown" if "hot" not in story else "no" if "not" in story else "yes"
    return next((c for c in COLOURS if f"is {c}" in story), "unknown")


def from_memory(prompt: str) -> str:
    """Knows by the question alone."""
    return next(
        c
        for c, name in zip([*COLOURS, "yes"], ["cat", "dog", "hat", "car", "pot"], strict=True)
        if f"the {name}" in prompt.split("|")[1]
    )


def shares(made: dict[str, Any], column: str) -> dict[str, float]:
    found = {kind: chosen(made, kind, column) for kind in made}
    return {kind: sum(values) / len(values) for kind, values in found.items() if values}


def test_a_reader_and_a_rememberer(monkeypatch: pytest.MonkeyPatch) -> None:
    reads, knows = read_with(monkeypatch, from_story), read_with(monkeypatch, from_memory)
    for kind in ("TS-R", "TS-R+gold", "OS-R", "OS-R+gold"):
        assert shares(reads, "same")[kind] == 0
        assert shares(reads, "unknown")[kind] == 1
        assert shares(knows, "same")[kind] == 1
        assert shares(knows, "unknown")[kind] == 0
    assert shares(knows, "same")["negated"] == 1
    assert shares(reads, "same")["negated"] == 0
    assert chosen(reads, "negated", "flipped", yes_no=True) == [1]
    assert chosen(knows, "negated", "flipped", yes_no=True) == [0]
    assert knows["swapped"]["skipped"] == {"no listed verb between two names": 5}


def test_only_items_that_are_right_on_the_whole_story_count(monkeypatch: pytest.MonkeyPatch) -> None:
    made = read_with(monkeypatch, lambda prompt: "red")  # right for one of four, and never changes
    assert chosen(made, "TS-R", "same") == [1]
    assert chosen(made, "TS-R", "same", yes_no=True) == []


def test_supported_items_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made = read_with(monkeypatch, from_memory)
    made["OS-R"]["supported"][0] = True
    assert len(chosen(made, "OS-R", "same")) == 3


def evidence(made: dict[str, Any]) -> Evidence:
    found = Evidence(AuditConfig.parse({"suite": (NAME,)}))
    found.attacks = {NAME: {"unlearned": {"stories": made}}}
    return found


def test_findings_and_their_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    made = read_with(monkeypatch, from_memory)
    rows = {row.metric: row for row in findings(evidence(json.loads(json.dumps(made))))}
    assert rows["faithfulness/unchanged/stories/TS-R"].unlearned.value == 1
    assert rows["faithfulness/unchanged/stories/TS-R"].unlearned.n == 4
    assert rows["faithfulness/unknown/stories/OS"].unlearned.value == 0
    assert rows["faithfulness/unchanged_yes_no/stories/negated"].unlearned.value == 1
    assert rows["faithfulness/flipped/stories/negated"].unlearned.value == 0
    swapped = rows["faithfulness/unchanged/stories/swapped"]
    assert swapped.verdict == "not measured"
    assert "5 skipped: no listed verb" in swapped.reason
    assert "1 skipped: the answer is yes, no or unknown" in rows["faithfulness/unchanged/stories/TS-R+gold"].reason
    assert rows["faithfulness/right/stories/OS"].unlearned.value == 1


def test_matching_of_answers() -> None:
    assert plain("The Cat, a cat!") == "cat cat"
    assert plain("a") == "a"
    assert right("It is red.", ["red"], "contains")
    assert not right("It is red.", ["red"], "exact")
    assert not right("tired", ["red"], "contains")
    assert says_unknown("Unknown.", "exact")
    assert says_unknown("I don't know", "exact")
    assert not says_unknown("it is unknown to me", "exact")


def test_f1_leaves_one_reference_out() -> None:
    assert multi_f1("red cat", ["cat red"]) == 1
    assert multi_f1("red", ["red", "blue"]) == 0.5  # without red: 0; without blue: 1
    assert multi_f1("red", ["red", "red", "x"]) == 1


def test_kl_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(3, 5, generator=generator).log_softmax(-1) for _ in range(2))
    for row in range(3):
        slow = sum(math.exp(a) * (a - b) for a, b in zip(p[row].tolist(), q[row].tolist(), strict=True))
        assert answer_kl(p, q)[row] == pytest.approx(slow, rel=1e-4)
    forced = torch.tensor([[0.0, -math.inf]])
    assert answer_kl(forced, forced) == [0]
    assert math.isfinite(answer_kl(forced, forced.flip(1))[0])


def test_the_prompt_shows_the_last_turns_and_is_filled_once() -> None:
    one = stories()[0].model_copy(update={"history": (("a", "1"), ("b", "2"), ("{story}", "3"))})
    assert prompt_of(one, "T", CONFIG) == "T | b\n2\n{story}\n3\nWhat colour is the cat?"
    assert prompt_of(one, "T", CONFIG.model_copy(update={"history": 0})) == "T | What colour is the cat?"
    with pytest.raises(ConfigError, match=r"no \{story\}"):
        FaithfulnessConfig.parse({"template": "{question}"})


def test_stories_are_read_or_made_of_the_request(request_: Any, tmp_path: Path) -> None:
    made = stories_of(request_, FaithfulnessConfig(rows=3))
    assert {name: len(rows) for name, rows in made.items()} == {"forget": 3, "retain": 3}
    for story in made["forget"]:
        assert story.answer in story.story[story.rationale_start : story.rationale_end]
    path = tmp_path / "s.jsonl"
    path.write_text("\n".join(story.model_dump_json() for story in stories()), encoding="utf-8")
    assert stories_of(request_, FaithfulnessConfig(stories=str(path)))["stories"] == stories()
    for text, message in (("", "no story"), ("{", "line 1: not JSON"), ('{"id": "x"}', "line 1"),
                          (stories()[0].model_dump_json() + "\n" + stories()[0].model_dump_json(), "comes twice")):  # fmt: skip
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=message):
            read_stories(path)


def test_first_token_scores_are_the_same_in_any_batch(tiny: Any, request_: Any) -> None:
    questions, answers = list(request_.forget["question"])[:5], list(request_.forget["answer"])[:5]
    prompts = [f"{'x ' * i}{question}" for i, question in enumerate(questions)]
    whole = first_token(tiny, prompts, answers, 5)
    for i in range(5):
        torch.testing.assert_close(
            first_token(tiny, prompts[i : i + 1], answers[i : i + 1], 1)[0], whole[i], rtol=0, atol=1e-5
        )
    torch.testing.assert_close(whole.exp().sum(-1), torch.ones(5))


def test_the_suite_on_a_model_that_knows_by_heart(tiny: Any, request_: Any, tmp_path: Path) -> None:
    values = {"template": "{story} {question}", "rows": 4, "distractors": 1, "max_new_tokens": 8}
    config = AuditConfig.parse({"suite": (NAME,), NAME: values, "max_new_tokens": 8})
    audited = run_audit(request_, {"unlearned": opened(tiny)}, config)
    stored = audited.evidence.attack(NAME, "unlearned")
    assert "likes" not in json.dumps(stored), "flags only, no text of a story"
    audited.evidence.save(tmp_path)
    assert [r.model_dump() for r in findings(Evidence.load(tmp_path))] == [
        r.model_dump() for r in findings(audited.evidence)
    ]
