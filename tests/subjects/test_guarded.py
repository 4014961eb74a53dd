"""Guards: a guard that does nothing changes nothing, and one that acts knows where the prompt is, in every way of running."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from efface.audit.observe import score
from efface.errors import ModelError
from efface.subjects.guarded import GuardedModel, Pass, bare, is_guarded, prompt_texts
from efface.subjects.hooks import Site, recorded, replaced
from efface.subjects.prompts import pad


class Idle(GuardedModel):
    """Does nothing but look."""

    def __init__(self, base: Any) -> None:
        super().__init__(base, "sha256:" + "00" * 32)
        self.begun: list[Any] = []
        self.passes: list[Tensor] = []

    def begin(self, asked: Any) -> None:
        self.begun.append(asked)

    def correct(self, now: Pass, output: Any) -> Any:
        self.passes.append(now.prompt)
        return output


class Louder(Idle):
    """Scales the embeddings of the prompt's tokens, and nothing else."""

    @contextlib.contextmanager
    def acting(self, now: Pass) -> Iterator[None]:
        def change(value: Tensor) -> Tensor:
            return torch.where(now.prompt[..., None], value * 3, value)

        with replaced(self.base, {Site("embedding"): change}):
            yield


@pytest.fixture
def prompts(tiny: Any, request_: Any) -> dict[str, Tensor]:
    rows = [tiny.encode_prompts(request_.forget)[i][i:] for i in range(3)]  # of three lengths
    return pad(rows, tiny.pad_id, side="left")


@pytest.mark.parametrize(
    "how", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}, {"use_cache": False}]
)
def test_an_idle_guard_changes_nothing(tiny: Any, prompts: dict[str, Tensor], how: dict[str, Any]) -> None:
    settings = {**prompts, "max_new_tokens": 5, "pad_token_id": tiny.pad_id, **how}
    torch.manual_seed(0)
    plain = tiny.model.generate(**settings)
    guarded = Idle(tiny.model).eval()
    torch.manual_seed(0)
    assert torch.equal(guarded.generate(**settings), plain)
    assert len(guarded.begun) == 1
    assert torch.equal(guarded(**prompts).logits, tiny.model(**prompts).logits)
    assert guarded.config is tiny.model.config
    assert not tiny.model._forward_hooks
    assert not tiny.model._forward_pre_hooks


def test_the_prompt_is_marked_in_every_pass(tiny: Any, prompts: dict[str, Tensor]) -> None:
    guarded = Idle(tiny.model).eval()
    guarded.generate(**prompts, max_new_tokens=4, pad_token_id=tiny.pad_id, eos_token_id=None)
    first, *rest = guarded.passes
    assert torch.equal(first, prompts["attention_mask"].bool())
    assert len(rest) == 3
    assert not any(bool(part.any()) for part in rest)
    guarded.passes.clear()
    guarded.generate(**prompts, max_new_tokens=2, num_beams=2, pad_token_id=tiny.pad_id)
    assert torch.equal(guarded.passes[0], prompts["attention_mask"].bool().repeat_interleave(2, 0))


def test_scores_are_told_where_the_prompt_ends(tiny: Any, request_: Any) -> None:
    plain = tiny.model
    guarded = Idle(plain).eval()
    try:
        before = score(tiny, request_.forget)
        tiny.model = guarded
        assert score(tiny, request_.forget) == before
    finally:
        tiny.model = plain
    lengths = {row.n_prompt for row in tiny.encode_rows(request_.forget)}
    assert {int(n) for part in guarded.passes for n in part.sum(1)} == lengths


def test_cached_and_uncached_are_one(tiny: Any, prompts: dict[str, Tensor]) -> None:
    guarded = Louder(tiny.model).eval()
    settings = {**prompts, "max_new_tokens": 6, "pad_token_id": tiny.pad_id, "eos_token_id": None}
    cached = guarded.generate(**settings)
    assert torch.equal(guarded.generate(**settings, use_cache=False), cached)
    ids = prompts["input_ids"][:1, -4:]
    whole = guarded(torch.cat([ids, cached[:1, -6:-5]], 1), prompt_lengths=torch.tensor([4])).logits
    first = guarded(ids, use_cache=True)
    second = guarded(cached[:1, -6:-5], past_key_values=first.past_key_values)
    torch.testing.assert_close(second.logits[:, -1], whole[:, -1], rtol=0, atol=1e-5)
    assert not torch.allclose(whole[:, -1], tiny.model(torch.cat([ids, cached[:1, -6:-5]], 1)).logits[:, -1], atol=1e-3)


def test_requests_do_not_mix(tiny: Any, prompts: dict[str, Tensor]) -> None:
    guarded = Louder(tiny.model).eval()
    ids = prompts["input_ids"][:1, -4:]
    open_ = guarded(ids, use_cache=True)
    expected = guarded(torch.tensor([[5]]), past_key_values=open_.past_key_values).logits
    open_ = guarded(ids, use_cache=True)
    guarded.generate(prompts["input_ids"], max_new_tokens=2, pad_token_id=tiny.pad_id)  # another request in between
    assert torch.equal(guarded(torch.tensor([[5]]), past_key_values=open_.past_key_values).logits, expected)


def test_a_cache_of_the_bare_model_is_refused(tiny: Any, prompts: dict[str, Tensor]) -> None:
    past = tiny.model(prompts["input_ids"], use_cache=True).past_key_values
    with pytest.raises(ModelError, match="whose beginning only the base has seen"):
        Idle(tiny.model)(torch.tensor([[5]] * 3), past_key_values=past)


def test_a_failed_pass_leaves_nothing_behind(tiny: Any) -> None:
    guarded = Louder(tiny.model).eval()
    with pytest.raises(IndexError):
        guarded(torch.tensor([[10**6]]))
    assert not tiny.model._forward_hooks
    assert not guarded._inside
    assert torch.isfinite(guarded(torch.tensor([[1, 2]])).logits).all()


def test_it_looks_like_the_base_and_is_no_checkpoint(tiny: Any, prompts: dict[str, Tensor], tmp_path: Any) -> None:
    from transformers import pipeline

    guarded = Idle(tiny.model).eval()
    with pytest.raises(ModelError, match="cannot be saved as one checkpoint"):
        guarded.save_pretrained(tmp_path)
    with pytest.raises(AttributeError):
        _ = guarded.no_such_thing
    text = tiny.tokenizer.decode(prompts["input_ids"][0].tolist(), skip_special_tokens=True)
    say = {"max_new_tokens": 4, "do_sample": False}
    plain = pipeline("text-generation", model=tiny.model, tokenizer=tiny.tokenizer)(text, **say)
    assert pipeline("text-generation", model=guarded, tokenizer=tiny.tokenizer)(text, **say) == plain
    with recorded(guarded, [Site("residual", 0)]) as seen:  # hooks find the layers of the base
        guarded(prompts["input_ids"])
    assert seen[Site("residual", 0)].shape[:2] == prompts["input_ids"].shape
    assert prompt_texts(tiny.tokenizer, guarded.begun[-1])[0].split()[-1] == text.split()[-1]


def test_the_bare_weights_stay_reachable(tiny: Any) -> None:
    digest, plain = tiny.digest, tiny.model
    tiny.model = Idle(plain)
    tiny.changed()
    try:
        assert is_guarded(tiny)
        guarded = tiny.digest
        assert guarded != digest
        with bare(tiny) as subject:
            assert subject.model is plain
            assert subject.digest == digest
        assert tiny.digest == guarded
    finally:
        tiny.model = plain
        tiny.changed()
