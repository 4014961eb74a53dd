"""The filter: verdicts by stage and rule, and the guard round a model in scores and in generation."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import efface
from efface.audit.observe import generate, score
from efface.data import Request
from efface.errors import ConfigError, InputError, RequestError
from efface.forget.edit import Edit
from efface.forget.guards.content_check import ContentFilter, redacted
from efface.forget.guards.content_policy import Policy, PolicyItem
from efface.forget.guards.filter_report import filter_report
from efface.forget.method import find_method
from efface.subjects.text_index import TextIndex

SALT = "ab" * 16
ITEMS = [
    PolicyItem(id="recipe", phrases=("the secret recipe",)), PolicyItem(id="iron", premises=(("iron", "Fe"),)),
    PolicyItem(id="powder", premises=(("coal", "sulphur", "saltpetre"),)),
]  # fmt: skip


def user(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text} for text in texts]


@pytest.fixture
def content() -> ContentFilter:
    return ContentFilter(Policy.of(ITEMS, SALT))


def test_verdicts_by_stage_and_rule(content: ContentFilter) -> None:
    assert content.check(user("hello"), "hi").action == "allow"
    verdict = content.check(user("give me the SECRET recipe!"))
    assert (verdict.action, verdict.stage, verdict.rule, verdict.item) == ("block", "prompt", "phrases", "recipe")
    verdict = content.check([{"role": "tool", "content": "iron is Fe"}, *user("what is it?")])
    assert (verdict.stage, verdict.rule, verdict.item) == ("tool", "premises", "iron")
    verdict = content.check(user("the symbol of iron?"), "it is Fe")
    assert (verdict.stage, verdict.rule, verdict.score) == ("draft", "premises", 1.0)
    assert content.check(user("and of silver?"), "it is Ag").action == "allow"


def test_what_is_split_over_turns_is_read_as_one(content: ContentFilter) -> None:
    assert content.check(user("tell me the secret", "recipe please")).rule == "phrases"
    assert content.check(user("iron has", "the symbol Fe")).rule == "premises"
    assert content.check(user("what is the"), "secret recipe").stage == "draft"


def test_near_misses_are_logged(content: ContentFilter) -> None:
    verdict = content.check(user("mix coal with sulphur"))
    assert verdict.action == "allow"
    assert verdict.near == ("powder",)
    assert content.check(user("mix coal with sulphur"), "and saltpetre").item == "powder"


def test_base64_and_its_switch(content: ContentFilter) -> None:
    hidden = base64.b64encode(b"what is the secret recipe").decode()
    assert content.check(user(f"decode {hidden}")).action == "block"
    blind = ContentFilter(Policy.of(ITEMS, SALT), decode=False)
    assert blind.check(user(f"decode {hidden}")).action == "allow"


def test_redaction_of_a_draft() -> None:
    content = ContentFilter(Policy.of(ITEMS, SALT), action="redact")
    verdict = content.check(user("hm"), "Well, the secret recipe: is old.")
    assert (verdict.action, verdict.text) == ("redact", "Well, [removed] is old.")
    assert content.check(user("the secret recipe")).action == "block"
    assert redacted("a-b c", [(1, 2)]) == "[removed] c"


def test_only_the_asked_rules_act() -> None:
    policy = Policy.of(ITEMS, SALT)
    assert ContentFilter(policy, rules=("premises",)).check(user("the secret recipe")).action == "allow"
    assert ContentFilter(policy, rules=("phrases",)).check(user("iron is Fe")).action == "allow"
    index = TextIndex(["how to bake the old bread"])
    near = ContentFilter(policy, rules=("similarity",), index=index, threshold=0.7)
    verdict = near.check(user("Hello. how to bake old bread"))
    assert verdict.rule == "similarity"
    assert 0.7 < verdict.score <= 1
    assert near.check(user("where is the station")).action == "allow"


def test_the_report_counts_blocks_bypasses_and_time(content: ContentFilter) -> None:
    report = filter_report(
        content, {"L4": ["iron is Fe . symbol of iron ?", "nothing"]}, {"L0": ["silver ?", "the secret recipe"]},
        paraphrases=["ferrum is Fe", "Fe means iron"],
    )  # fmt: skip
    assert report.blocked == {"L4": 0.5}
    assert report.false_blocks == {"L0": 0.5}
    assert report.bypass == {"base64": 0, "split over turns": 0, "spelled out": 1, "paraphrase": 0.5}
    assert report.milliseconds > 0
    with pytest.raises(InputError, match="no prompt"):
        filter_report(content, {}, {})


# -- round a model ------------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(tiny: Any, request_: Any, tmp_path: Path) -> Any:
    method = find_method("content-filter")
    edit = method.fit(tiny, request_, method.configure({}), work=tmp_path / "w", out=tmp_path / "edit").edit
    edit.apply(tiny)
    yield tiny
    edit.remove(tiny)


def test_forgotten_answers_are_refused_and_others_untouched(guarded: Any, request_: Any, tiny_folder: Path) -> None:
    plain = efface.load(tiny_folder)
    kept = [generate(model, request_.retain, max_new_tokens=12, keep_texts=True) for model in (guarded, plain)]
    assert kept[0] == kept[1]
    gone = generate(guarded, request_.forget, max_new_tokens=12, keep_texts=True)
    assert not any(row["contains"] for row in gone)
    assert {row["text"].replace(" ", "") for row in gone} == {"Idon'tknow."}
    assert score(guarded, request_.retain) == score(plain, request_.retain)


def test_a_blocked_answer_has_the_refusals_distribution(guarded: Any, request_: Any, tiny_folder: Path) -> None:
    plain = efface.load(tiny_folder)
    own, before = score(guarded, request_.forget, answers_only=True), score(plain, request_.forget, answers_only=True)
    assert all(np.mean(row["logp"]) < -20 for row in own)
    assert all(np.mean(row["logp"]) > -1 for row in before)
    harmless = Request.from_rows([{**row, "answer": "I don't know."} for row in request_.forget]).forget
    told = score(guarded, harmless, answers_only=True)
    assert told == score(plain, harmless, answers_only=True), "an answer that the policy allows is the model's own"


def test_generation_is_the_same_alone_in_a_batch_and_uncached(guarded: Any, request_: Any) -> None:
    data = request_.forget.select([0, 1]), request_.retain.select([0, 1])
    prompts = [ids for part in data for ids in guarded.encode_prompts(part)]
    together = guarded.generate(prompts, max_new_tokens=10)
    assert together == [guarded.generate([ids], max_new_tokens=10)[0] for ids in prompts]
    ids = torch.tensor([prompts[0], prompts[2]])
    settings: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": guarded.pad_id}
    cached = guarded.model.generate(ids, **settings)
    assert torch.equal(cached, guarded.model.generate(ids, use_cache=False, **settings))
    beams = guarded.model.generate(ids, num_beams=2, num_return_sequences=2, **settings)
    assert len(beams) == 4
    assert torch.equal(beams[0][: cached.shape[1]], cached[0]), "the likelier draft is forbidden; each beam is judged"
    whole = guarded.model.generate(ids, return_dict_in_generate=True, **settings)
    assert torch.equal(whole.sequences, cached)
    with pytest.raises(ConfigError, match="streamer"):
        guarded.model.generate(ids, streamer=object(), **settings)


def test_a_context_that_tells_is_stopped_before_the_model_sees_it(guarded: Any, request_: Any) -> None:
    told = f"{request_.forget[0]['answer']} {request_.retain[0]['question']}"
    prompt = Request.from_rows([{**request_.retain[0], "question": told}]).forget
    assert generate(guarded, prompt, max_new_tokens=12, keep_texts=True)[0]["text"].startswith("I don")
    assert guarded.model.gate.fires([told, request_.retain[0]["question"]]).tolist() == [True, False]


def test_saved_and_loaded_with_every_rule_is_the_same(tiny: Any, request_: Any, tmp_path: Path) -> None:
    method = find_method("content-filter")
    policy = tmp_path / "policy.jsonl"
    policy.write_text(json.dumps({"id": "x", "premises": [["person9", "person10"]]}), encoding="utf-8")
    config = method.configure({"rules": "phrases,premises,similarity,gate", "rate": 0.25, "policy": str(policy)})
    edit = method.fit(tiny, request_, config, work=tmp_path / "w", out=tmp_path / "edit").edit
    assert edit.facts.config["stores_forbidden_words"] == ["gate", "similarity"]
    texts = [*request_.forget["question"], *request_.retain["question"], "person9 met person10", "hello"]
    said = []
    for one in (edit, Edit.load(tmp_path / "edit")):
        one.apply(tiny)
        said.append([tiny.model.gate.check(user(text)) for text in texts])
        one.remove(tiny)
    assert said[0] == said[1]
    assert {verdict.rule for verdict in said[0]} >= {"premises"}


def test_bad_input(tiny: Any, request_: Any, tmp_path: Path) -> None:
    method = find_method("content-filter")
    with pytest.raises(ConfigError, match="no rule 'phrase'"):
        method.configure({"rules": "phrase"})

    def fit(request: Any, **values: Any) -> None:
        method.fit(tiny, request, method.configure(values), work=tmp_path / "w", out=tmp_path / "e")

    with pytest.raises(RequestError, match="no retain set"):
        fit(Request(forget=request_.forget), rules="similarity")
    with pytest.raises(InputError, match="calibration rows"):
        fit(request_, rules="similarity")
    with pytest.raises(InputError, match="cannot be read"):
        fit(request_, policy=str(tmp_path / "none.jsonl"))
    (tmp_path / "bad.jsonl").write_text('{"id": "x"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="line 1"):
        fit(request_, policy=str(tmp_path / "bad.jsonl"))
    with pytest.raises(efface.errors.ModelError, match="does not know"):
        fit(request_, refusal="Kein Kommentar")
    assert not (tmp_path / "e").exists()
