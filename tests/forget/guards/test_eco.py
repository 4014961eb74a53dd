"""ECO: what passes keeps its bits, what is stopped is corrupted alike in every way of running; the gate; the traps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from efface.audit.observe import score
from efface.data.request import Request
from efface.errors import ConfigError, InputError, RequestError
from efface.forget.edit import Edit
from efface.forget.guards.corrupting_model import Corruption, EcoModel, token_mask
from efface.forget.guards.corruption import request_generator
from efface.forget.guards.eco_fit import Scorer, expected_calibration_error, forgotten_names, two_sided
from efface.forget.guards.prompt_gate import PromptGate
from efface.forget.method import find_method
from efface.numerics.conformal import class_quantiles, prediction_sets
from efface.subjects.prompts import pad

pytestmark = pytest.mark.filterwarnings("ignore:eco. .*:UserWarning")
GIVEN: dict[str, Any] = {"sigma": 20.0, "n": 8}


def fit(tiny: Any, request: Any, folder: Path, **values: Any) -> Edit:
    method = find_method("eco")
    return method.fit(tiny, request, method.configure(values), work=folder / "work", out=folder / "edit").edit


@pytest.fixture
def guarded(tiny: Any, request_: Any, tmp_path: Path) -> Iterator[Any]:
    """The subject behind a guard that stops the forget prompts and no other."""
    edit = fit(tiny, request_, tmp_path, **GIVEN)
    edit.apply(tiny)
    yield tiny
    edit.remove(tiny)


def open_guard(tiny: Any, **more: Any) -> EcoModel:
    """Stops everything."""
    how = Corruption(**{"kind": "rand_noise_first_n", "n": 4, "sigma": [5.0], "seed": 0, "names": [], **more})
    return EcoModel(
        tiny.model, None, stops=lambda rows: [True] * len(rows), mask=token_mask(tiny, how.names, None), corruption=how
    ).eval()


def prompts(tiny: Any, data: Any, n: int = 3) -> list[list[int]]:
    """Of several lengths."""
    return [ids[i:] for i, ids in enumerate(tiny.encode_prompts(data)[:n])]


def test_what_passes_keeps_its_bits_beside_what_is_stopped(guarded: Any, request_: Any) -> None:
    rows = [*guarded.encode_prompts(request_.forget)[:2], *guarded.encode_prompts(request_.retain)[:2]]
    batch = pad(rows, guarded.pad_id, side="left")
    ours, plain = guarded.model(**batch).logits, guarded.model.base(**batch).logits
    assert torch.equal(ours[2:], plain[2:])
    assert not torch.allclose(ours[:2], plain[:2], atol=0.1)
    with torch.no_grad():
        assert score(guarded, request_.retain) == score_of_base(guarded, request_.retain)
    said = guarded.model.generate(**batch, max_new_tokens=8, pad_token_id=guarded.pad_id, do_sample=False)
    bare = guarded.model.base.generate(**batch, max_new_tokens=8, pad_token_id=guarded.pad_id, do_sample=False)
    assert torch.equal(said[2:], bare[2:])
    assert not torch.equal(said[:2], bare[:2])
    assert not guarded.model.base.get_input_embeddings()._forward_hooks, "no hook is left behind"


def score_of_base(subject: Any, data: Any) -> Any:
    guard, subject.model = subject.model, subject.model.base
    try:
        return score(subject, data)
    finally:
        subject.model = guard


def test_only_the_prompt_is_corrupted_under_teacher_forcing(tiny: Any, request_: Any) -> None:
    """The official mask covers the answer too; here the embeddings of the answer keep their bits, and so do the last prompt
    token's."""
    model = open_guard(tiny)
    row = tiny.encode_rows(request_.forget)[0]
    seen: list[Tensor] = []
    layer = tiny.model.model.layers[0]
    handle = layer.register_forward_pre_hook(lambda _, args, kwargs: seen.append(args[0]), with_kwargs=True)
    try:
        model(torch.tensor([row.ids]), prompt_lengths=torch.tensor([row.n_prompt]))
        tiny.model(torch.tensor([row.ids]))
    finally:
        handle.remove()
    moved = (seen[0] != seen[1]).any(-1)[0]
    assert moved.tolist() == [i < row.n_prompt - 1 for i in range(len(row.ids))]
    noise = torch.randn(row.n_prompt - 1, 4, generator=request_generator(0, row.ids[: row.n_prompt]))
    got = (seen[0] - seen[1])[0, : row.n_prompt - 1]
    torch.testing.assert_close(got[:, :4], 5 * noise, rtol=0, atol=1e-4)
    assert not got[:, 4:].any()


def test_teacher_forcing_is_generation(tiny: Any, request_: Any) -> None:
    model = open_guard(tiny)
    ids = torch.tensor([tiny.encode_prompts(request_.forget)[0]])
    out = model.generate(
        ids, max_new_tokens=6, do_sample=False, pad_token_id=tiny.pad_id, eos_token_id=None,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    forced = model(out.sequences, prompt_lengths=torch.tensor([ids.shape[1]])).logits[:, ids.shape[1] - 1 : -1]
    torch.testing.assert_close(forced, torch.stack(out.logits, 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("how", [{"use_cache": False}, {"num_beams": 2}])
def test_cached_uncached_and_beams(tiny: Any, request_: Any, how: dict[str, Any]) -> None:
    model = open_guard(tiny)
    batch = pad(prompts(tiny, request_.forget), tiny.pad_id, side="left")
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": tiny.pad_id, "eos_token_id": None}
    both = {**settings, **({} if "use_cache" in how else how)}
    first = model.generate(**batch, **both)
    assert torch.equal(model.generate(**batch, **{**both, "use_cache": False}), first)
    alone = [
        model.generate(torch.tensor([row]), **both)[0, len(row) :] for row in prompts(tiny, request_.forget)
    ]  # batch of one, no padding
    assert torch.equal(first[:, batch["input_ids"].shape[1] :], torch.stack(alone))


def test_left_and_right_padding(tiny: Any, request_: Any) -> None:
    """The mask is made after padding, and the noise belongs to the tokens, wherever they stand."""
    model = open_guard(tiny)
    rows = prompts(tiny, request_.forget)
    ends = []
    for side in ("left", "right"):
        batch = pad(rows, tiny.pad_id, side=side)
        places = batch["attention_mask"].cumsum(1) - 1
        out = model(**batch, position_ids=places.clamp_min(0)).logits
        last = [-1] * len(rows) if side == "left" else [len(row) - 1 for row in rows]
        ends.append(torch.stack([out[i, at] for i, at in enumerate(last)]))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-4)
    alone = torch.stack([model(torch.tensor([row])).logits[0, -1] for row in rows])
    torch.testing.assert_close(ends[0], alone, rtol=0, atol=1e-4)


def test_a_chunked_prompt(tiny: Any, request_: Any) -> None:
    """`Longer than one token means prompt` breaks here; positions do not."""
    model = open_guard(tiny)
    ids = torch.tensor([tiny.encode_prompts(request_.forget)[0]])
    whole = model(ids).logits
    how: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": tiny.pad_id, "eos_token_id": None}
    said = model.generate(ids, **how)
    assert torch.equal(model.generate(ids, **how, prefill_chunk_size=2), said)
    assert not torch.allclose(whole, tiny.model(ids).logits, atol=0.1)


def test_a_prompt_of_one_token(tiny: Any) -> None:
    model = open_guard(tiny)
    ids = torch.tensor([[5]])
    assert not torch.allclose(model(ids).logits, tiny.model(ids).logits, atol=1e-3)


def test_the_tokens_of_names(tiny: Any, request_: Any) -> None:
    ids = tiny.encode_prompts(request_.forget)[2]
    text = [tiny.tokenizer.decode([i]) for i in ids]
    marks = token_mask(tiny, ["person2", "person3"], None)(ids)
    assert [word for word, here in zip(text, marks, strict=True) if here] == ["person2"]
    assert token_mask(tiny, ["person9"], None)(ids) == [True] * (len(ids) - 1) + [False], "no name: all but the last"
    own = dataclasses.replace(request_, concepts={"person0": None})
    assert forgotten_names(own) == ["person0"]
    rows = [{"question": "who ?", "answer": "x", "concept": "a b", "aliases": ["c"]}]
    assert forgotten_names(Request.from_rows(rows, [{"question": "q", "answer": "y"}])) == ["a b", "c"]


def test_saved_and_loaded(tiny: Any, request_: Any, tmp_path: Path) -> None:
    request = dataclasses.replace(request_, concepts={f"person{i}": None for i in range(8)})
    edit = fit(tiny, request, tmp_path, **GIVEN, mask="entity")
    assert edit.facts.claim == "suppressed"
    assert edit.facts.tensors == 0
    found = edit.facts.config["found"]
    assert found["sigma_over_rms"] == pytest.approx(20 / found["embedding_rms"])
    assert (found["forget_stopped"], found["retain_stopped"]) == (1.0, 0.0)
    assert "person0" not in str(edit.facts.config), "names stay in the edit's own files"
    edit.save(tmp_path / "copy")
    batch = pad(tiny.encode_prompts(request_.forget), tiny.pad_id, side="left")
    outs = []
    for one in (edit, Edit.load(tmp_path / "copy")):
        one.apply(tiny)
        outs.append(tiny.model(**batch).logits)
        one.remove(tiny)
    assert torch.equal(*outs)
    assert not torch.allclose(outs[0], tiny.model(**batch).logits, atol=0.1)


def test_the_search_aims_at_the_target(tiny: Any, request_: Any, tmp_path: Path) -> None:
    edit = fit(tiny, request_, tmp_path, n=8, target=0.5, search={"tolerance": 0.05})
    found = edit.facts.config["found"]
    assert found["reached"]
    edit.apply(tiny)
    assert Scorer(tiny, request_.forget, "probability")(tiny.model) == pytest.approx(found["score"], abs=1e-6)
    edit.remove(tiny)
    assert abs(found["score"] - 0.5) < 0.05 < found["score_before"] - 0.5
    assert len({sigma for sigma, _ in found["tried"]}) == len(found["tried"])


def test_targets_without_a_number(tiny: Any, request_: Any, tmp_path: Path) -> None:
    quick = {"steps": 1, "refine": 0}
    found = fit(tiny, request_, tmp_path / "a", search=quick).facts.config["found"]
    assert found["target"] == pytest.approx(Scorer(tiny, request_.holdout, "probability")(tiny.model))
    found = fit(tiny, request_, tmp_path / "b", search=quick, metric="choice").facts.config["found"]
    assert found["target"] == pytest.approx(1 / 3), "one right answer and two wrong ones"
    lone = Request(forget=request_.forget, retain=request_.retain)
    with pytest.raises(RequestError, match="without a target"):
        fit(tiny, lone, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_strength_for_each_dimension(tiny: Any, request_: Any, tmp_path: Path) -> None:
    edit = fit(tiny, request_, tmp_path, n=3, by_dimension=True, target=0.5, search={"steps": 3, "refine": 2})
    text = (edit.folder / "corruption.json").read_text(encoding="utf-8")
    assert len(Corruption.model_validate_json(text).sigma) == 3


def test_the_threshold_keeps_its_promise(tiny: Any, request_: Any, tmp_path: Path) -> None:
    edit = fit(tiny, request_, tmp_path / "a", **GIVEN, false_alarms=0.25, calibration_share=0.5)
    found = edit.facts.config["found"]
    assert found["rows"] == {"forget": 8, "retain": 4}
    assert found["fitted_on_these"] == {"forget": True, "retain": False}
    assert PromptGate.read(edit.folder / "gate").threshold == found["threshold"]
    assert found["retain_stopped"] == 0.0
    with pytest.raises(InputError, match="at least 99"):
        fit(tiny, request_, tmp_path / "b", **GIVEN, false_alarms=0.01)
    with pytest.raises(InputError, match="at least 9"):  # a set of forget needs forget prompts
        fit(tiny, request_, tmp_path / "c", **GIVEN, false_alarms=0.1, rule="strict", calibration_share=0.5)


@pytest.mark.parametrize("rule", ["strict", "safe"])
def test_two_sided_sets_are_one_threshold(rule: str) -> None:
    rng = np.random.default_rng(0)
    y = np.repeat([1.0, 0.0], [40, 60])
    for spread in (0.1, 0.5):  # sets that never meet, and sets that overlap
        p = np.clip(np.where(y == 1, 1 - spread * rng.random(100), spread * rng.random(100)), 0, 1)
        threshold = two_sided(p, y, 0.1, rule)
        both = np.stack([1 - p, p], axis=1)
        sets = prediction_sets(both, class_quantiles(both, y, 0.1))
        wanted = sets[:, 1] & ~sets[:, 0] if rule == "strict" else sets[:, 1]
        assert ((p > threshold) == wanted).all()


def test_reliability_against_a_loop() -> None:
    p, y = np.array([0.05, 0.08, 0.95, 0.91, 1.0]), np.array([0.0, 1.0, 1.0, 1.0, 0.0])
    low, high = abs((0.05 + 0.08) / 2 - 0.5) * 2 / 5, abs((0.95 + 0.91 + 1.0) / 3 - 2 / 3) * 3 / 5
    assert expected_calibration_error(p, y) == pytest.approx(low + high)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"threshold": 0.5, "false_alarms": 0.1}, "not both"),
        ({"rule": "strict"}, "needs false_alarms"),
        ({"corruption": "shuffle"}, "no strength to search"),
        ({"sigma": 1.0, "by_dimension": True}, "for sigma=search"),
        ({"search": {"mu": 0.5}}, "larger than mu"),
        ({"corruption": "blur"}, "rand_noise_first_n"),
    ],
)
def test_bad_settings(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        find_method("eco").configure(values)


def test_bad_requests(tiny: Any, request_: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="mask=entity without a name"):
        fit(tiny, request_, tmp_path, **GIVEN, mask="entity")
    with pytest.raises(ConfigError, match="at most 32"):
        fit(tiny, request_, tmp_path, sigma=1.0, n=33)
    lone = Request.from_rows([{"question": "a b", "answer": "c"}], [{"question": "d e", "answer": "f"}])
    with pytest.raises(RequestError, match="without wrong answers"):
        fit(tiny, lone, tmp_path, metric="choice")
    assert not (tmp_path / "edit").exists()


def test_a_guard_that_will_not_do_says_so(tiny: Any, request_: Any, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="stops 0% of the forget prompts"):
        fit(tiny, request_, tmp_path / "a", **GIVEN, threshold=0.999)
    with pytest.warns(UserWarning, match=r"nearest score to the target 0\.500"):
        fit(tiny, request_, tmp_path / "b", target=0.5, search={"steps": 1, "refine": 0, "start": 1e6})
