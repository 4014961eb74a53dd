"""A model under contrastive decoding: every pass by hand, cached and uncached, padded, in batches and sampled."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import efface
from efface.audit.observe import score
from efface.errors import ConfigError, ModelError
from efface.forget.guards.contrastive_model import Contrast, ContrastiveModel
from efface.forget.guards.early_exit import exit_logits, exit_site, refuse_other_head
from efface.forget.guards.instructed import instructed
from efface.subjects.answers import answer_logits
from efface.subjects.hooks import recorded
from efface.subjects.prompts import pad

TOLD = (5, 6, 7)
MODES: dict[str, dict[str, Any]] = {
    "icd": {"mode": "icd"},
    "relu": {"mode": "icd", "relu": True, "strength": 2.0},
    "cd": {"mode": "cd", "amateur_temperature": 0.5, "keep": 0.0, "alpha": 0.01},
    "dola": {"mode": "dola", "candidates": "0,1", "keep": 0.0, "alpha": 0.01},
    "lol": {"mode": "lol", "layer": 1, "omega": 0.5, "gamma": 0.5},
    "dynamic": {"mode": "lol", "layer": "dynamic", "candidates": "0,1", "gamma": 0.0},
    "plausible": {"mode": "lol", "alpha": 0.1, "keep": 0.0},
}


@pytest.fixture
def guarded(tiny: Any, retrained_folder: Any) -> Any:
    """Makes the tiny model under a mode; the amateur is another one with its tokens."""
    amateur = efface.load(retrained_folder)

    def make(bos: int | None = None, **values: Any) -> ContrastiveModel:
        contrast = Contrast(**values)
        other = None if contrast.mode == "dola" else amateur.model
        return ContrastiveModel(tiny.model, contrast, amateur=other, instruction=TOLD, bos=bos).eval()

    return make


def exits(model: Any, ids: Tensor, layer: int) -> Tensor:
    """Log-probabilities after a layer by transformers' own hidden states, normed here."""
    state = model(ids, output_hidden_states=True).hidden_states[layer]
    return exit_logits(model, state).log_softmax(-1)[0, -1]


def by_hand(guard: ContrastiveModel, row: list[int]) -> Tensor:
    """The scores [V] of the next token, from uncached passes over one unpadded row."""
    how, ids = guard.contrast, torch.tensor([row])
    b = guard.base(ids).logits[0, -1].log_softmax(-1)
    if how.mode == "dola":
        low = [exits(guard.base, ids, layer) for layer in guard.exits]
        js = []
        for each in low:
            m = (each.exp() + b.exp()) / 2
            js.append(float(0.5 * (b.exp() * (b - m.log())).sum() + 0.5 * (each.exp() * (each - m.log())).sum()))
        total = b - low[js.index(max(js))]
    else:
        temperature = how.amateur_temperature if how.mode == "cd" else 1.0
        a = (guard.amateur(ids).logits[0, -1] / temperature).log_softmax(-1)
        total = how.strength * (-torch.relu(a - b) if how.relu else b - a)
    if how.mode == "lol":
        if len(guard.exits) > 1:
            js = []
            for layer in guard.exits:
                each = exits(guard.base, ids, layer)
                m = (each.exp() + b.exp()) / 2
                js.append(float(0.5 * (b.exp() * (b - m.log())).sum() + 0.5 * (each.exp() * (each - m.log())).sum()))
            layer = guard.exits[js.index(max(js))]
        else:
            layer = guard.exits[0]
        total = total + how.omega * (exits(guard.base, ids, layer) - exits(guard.amateur, ids, layer))
        if how.gamma:
            told = guard.base(torch.tensor([[*TOLD, *row]])).logits[0, -1].log_softmax(-1)
            total = total + how.gamma * (told - b)
    total = how.keep * b + total
    return total.masked_fill(b.exp() < how.alpha * b.exp().max(), float("-inf"))


def greedy(guard: ContrastiveModel, row: list[int], steps: int) -> list[int]:
    made = list(row)
    with torch.no_grad():
        for _ in range(steps):
            made.append(int(by_hand(guard, made).argmax()))
    return made[len(row) :]


@pytest.mark.parametrize("mode", MODES)
def test_generation_is_what_passes_by_hand_say(mode: str, guarded: Any, tiny: Any, request_: Any) -> None:
    """In a left-padded batch of unequal prompts, with and without caches."""
    guard = guarded(**MODES[mode])
    prompts = [tiny.encode_prompts(request_.forget)[i][i:] for i in range(3)]
    batch = pad(prompts, tiny.pad_id, side="left")
    expected = [greedy(guard, prompt, 6) for prompt in prompts]
    layer = tiny.model.model.layers[0]
    hooks = list(layer._forward_hooks)  # transformers leaves one of its own where hidden states were asked for
    for use_cache in (True, False):
        out = guard.generate(
            **batch, max_new_tokens=6, do_sample=False, use_cache=use_cache, pad_token_id=tiny.pad_id, eos_token_id=None
        )
        assert out[:, batch["input_ids"].shape[1] :].tolist() == expected, f"use_cache={use_cache}"
    assert not tiny.model._forward_hooks
    assert list(layer._forward_hooks) == hooks


@pytest.mark.parametrize("mode", ["lol", "dola", "plausible"])
def test_scoring_is_what_passes_by_hand_say(mode: str, guarded: Any, tiny: Any, request_: Any) -> None:
    """Teacher-forced rows padded right, answers of unequal length: every answer position, by hand."""
    guard = guarded(**MODES[mode])
    rows = [tiny.encode("which colour does person1 like ?", "red"), *tiny.encode_rows(request_.forget)[:2]]
    with torch.no_grad():
        answer = answer_logits(guard, tiny.batch(rows))
        start = min(row.n_prompt for row in rows)
        for i, row in enumerate(rows):
            for t in range(row.n_prompt, len(row.ids)):
                hand = by_hand(guard, row.ids[:t]).clamp_min(-1000.0)
                torch.testing.assert_close(answer.logits[i, t - start], hand, rtol=1e-4, atol=1e-3)
    assert torch.isfinite(answer.logits).all(), "-1000, not -inf, where answers are scored"


def test_sampling_and_several_samples_a_prompt(guarded: Any, tiny: Any, request_: Any) -> None:
    guard = guarded(**MODES["lol"])
    batch = pad([tiny.encode_prompts(request_.forget)[i][i:] for i in range(2)], tiny.pad_id, side="left")
    found = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        found.append(
            guard.generate(
                **batch, do_sample=True, temperature=4.0, num_return_sequences=2, max_new_tokens=5, use_cache=use_cache,
                pad_token_id=tiny.pad_id, eos_token_id=None,
            ).tolist()
        )  # fmt: skip
    assert found[0] == found[1]
    assert found[0][0] != found[0][1], "it does sample"


def test_omega_and_gamma_zero_are_icd_exactly(guarded: Any, tiny: Any, request_: Any) -> None:
    batch = tiny.batch(tiny.encode_rows(request_.forget))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        icd = guarded(mode="icd", keep=0.0)(**inputs).logits
        lol = guarded(mode="lol", keep=0.0, omega=0.0, gamma=0.0)
        assert lol.exits == ()
        assert lol.instruction == ()
        assert torch.equal(lol(**inputs).logits, icd)


def test_an_amateur_that_has_not_moved_takes_nothing_away(tiny: Any, request_: Any) -> None:
    guard = ContrastiveModel(tiny.model, Contrast(mode="icd"), amateur=copy.deepcopy(tiny.model)).eval()
    ids = torch.tensor(tiny.encode_prompts(request_.forget)[:2])
    with torch.no_grad():
        torch.testing.assert_close(guard(ids).logits, tiny.model(ids).logits.log_softmax(-1))


def test_trap_no_state_is_normed_twice(tiny: Any, request_: Any) -> None:
    """Leaving after the last layer is what the model says itself; transformers' last hidden state is normed already."""
    ids = torch.tensor(tiny.encode_prompts(request_.forget)[:2])
    site = exit_site(2)
    with torch.no_grad(), recorded(tiny.model, [site]) as states:
        out = tiny.model(ids, output_hidden_states=True)
    torch.testing.assert_close(exit_logits(tiny.model, states[site]), out.logits)
    assert not torch.allclose(exit_logits(tiny.model, out.hidden_states[-1]), out.logits, atol=1e-2)
    with torch.no_grad(), recorded(tiny.model, [exit_site(0)]) as states:
        tiny.model(ids)
    torch.testing.assert_close(states[exit_site(0)], out.hidden_states[0])


def test_a_model_that_scales_its_logits_is_refused(tiny: Any) -> None:
    refuse_other_head(tiny.model)
    former = tiny.model.forward

    def capped(*args: Any, **more: Any) -> Any:
        out = former(*args, **more)
        out.logits = torch.tanh(out.logits / 2) * 2
        return out

    tiny.model.forward = capped
    with pytest.raises(ModelError, match="use mode=icd or cd"):
        refuse_other_head(tiny.model)


def test_trap_the_instruction_comes_before_each_rows_own_tokens() -> None:
    ids = torch.tensor([[0, 0, 1, 11, 12], [1, 21, 22, 23, 24]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    made = instructed(given, 0, (7, 8), bos=1)
    assert made["input_ids"].tolist() == [[0, 0, 1, 7, 8, 11, 12], [1, 7, 8, 21, 22, 23, 24]]
    assert made["attention_mask"].tolist() == [[0, 0, 1, 1, 1, 1, 1], [1] * 7]
    assert made["position_ids"].tolist() == [[0, 0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]]
    plain = instructed(given, 0, (7, 8), bos=None)
    assert plain["input_ids"].tolist() == [[0, 0, 7, 8, 1, 11, 12], [7, 8, 1, 21, 22, 23, 24]]
    right = torch.tensor([[11, 12, 0], [21, 22, 23]])
    made = instructed({"input_ids": right, "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]])}, 0, (7,), bos=1)
    assert made["input_ids"].tolist() == [[7, 11, 12, 0], [7, 21, 22, 23]]
    assert made["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    later = instructed(
        {"input_ids": ids[:, -1:], "attention_mask": mask, "position_ids": positions[:, -1:]}, 4, (7, 8), bos=1
    )  # fmt: skip
    assert later["input_ids"].tolist() == ids[:, -1:].tolist()
    assert later["attention_mask"].tolist() == [[0, 0, 1, 1, 1, 1, 1], [1] * 7]
    assert later["position_ids"].tolist() == [[4], [6]]
    lone = instructed({"input_ids": torch.tensor([[1]]), "position_ids": torch.tensor([[0]])}, 0, (7, 8), bos=1)
    assert lone["input_ids"].tolist() == [[1, 7, 8]]
    assert lone["position_ids"].tolist() == [[0, 1, 2]]


def test_beams_where_there_is_one_cache(guarded: Any, tiny: Any) -> None:
    ids = torch.tensor([[3, 4, 5]])
    how = {"num_beams": 2, "max_new_tokens": 3, "pad_token_id": tiny.pad_id}
    for mode in ("icd", "lol"):
        with pytest.raises(ConfigError, match="second cache"):
            guarded(**MODES[mode]).generate(ids, **how)
        guarded(**MODES[mode]).generate(ids, use_cache=False, **how)
    dola = guarded(**MODES["dola"])
    assert torch.equal(dola.generate(ids, **how), dola.generate(ids, use_cache=False, **how))


def test_a_cache_that_only_the_base_has_seen_is_refused(guarded: Any, tiny: Any) -> None:
    ids = torch.tensor([[3, 4, 5]])
    guard = guarded(**MODES["lol"])
    with pytest.raises(ModelError, match="whose beginning only the base has seen"):
        guard(ids, past_key_values=tiny.model(ids, use_cache=True).past_key_values, use_cache=True)
    first = guard(ids, use_cache=True)
    second = guard(torch.tensor([[6]]), past_key_values=first.past_key_values, use_cache=True)
    torch.testing.assert_close(second.logits[0, -1], by_hand(guard, [3, 4, 5, 6]), rtol=1e-4, atol=1e-4)


def test_trap_other_vocabularies_are_cut_to_the_common_tokens(guarded: Any, tiny: Any, retrained_folder: Any) -> None:
    padded = efface.load(retrained_folder).model
    rows = padded.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        expected = guarded(mode="icd", alpha=0.1)(ids).logits
        padded.resize_token_embeddings(rows + 3)
        found = ContrastiveModel(tiny.model, Contrast(mode="icd", alpha=0.1), amateur=padded).eval()(ids).logits
        assert found.shape == expected.shape
        assert torch.isfinite(found).all()
        small = efface.load(retrained_folder).model
        small.resize_token_embeddings(rows - 2)
        cut = ContrastiveModel(tiny.model, Contrast(mode="icd"), amateur=small).eval()(ids).logits
    assert cut.shape == expected.shape
    assert (cut[..., -2:] == -1000).all()
    assert (cut[..., :-2] > -1000).all()


def test_the_context_holds_the_instruction_too(guarded: Any, tiny: Any) -> None:
    guard = guarded(**MODES["lol"])
    limit = tiny.context
    long = torch.full((1, limit - 1), 5)
    with pytest.raises(ModelError, match="shorten the rows or the instruction"):
        guard(long)
    out = guard.generate(
        torch.tensor([[3, 4]]), max_new_tokens=500, pad_token_id=tiny.pad_id, eos_token_id=None, do_sample=False
    )
    assert out.shape[1] == limit - len(TOLD)


def test_the_score_table_goes_through(guarded: Any, tiny: Any, request_: Any) -> None:
    plain = tiny.model
    before = score(tiny, request_.forget)
    tiny.model = guarded(**MODES["lol"])
    after = score(tiny, request_.forget)
    tiny.model = plain
    assert [row["id"] for row in after] == [row["id"] for row in before]
    assert after != before


def test_bad_input(guarded: Any, tiny: Any) -> None:
    with pytest.raises(ConfigError, match="mode=icd without an amateur"):
        ContrastiveModel(tiny.model, Contrast(mode="icd"))
    with pytest.raises(ConfigError, match="mode=dola with an amateur"):
        ContrastiveModel(tiny.model, Contrast(mode="dola"), amateur=tiny.model)
    with pytest.raises(ConfigError, match="candidates='2' of a model of 2"):
        guarded(mode="lol", layer=2)
