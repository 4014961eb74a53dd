"""Two models, one distribution: the rule against loops, both caches against none, and the guard as an edit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import efface
from efface.errors import ConfigError, ModelError, RunError
from efface.forget.edit import Edit
from efface.forget.guards.logit_ensemble import (
    Ensemble,
    EnsembleEdit,
    LogitEnsemble,
    generic_logits,
    refuse_other_tokens,
    subtracted_logits,
)
from efface.forget.method import find_method


def test_the_rule_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    base, other = torch.randn(2, 5, generator=generator), torch.randn(2, 5, generator=generator)
    for alpha in (0.0, 1.0, 5.0):
        ours = generic_logits(base, other, alpha)
        for row in range(2):
            b = [float(x) - float(base[row].mean()) for x in base[row]]
            r = [float(x) - float(other[row].mean()) for x in other[row]]
            slow = [x - alpha * max(0.0, y - x) for x, y in zip(b, r, strict=True)]
            assert ours[row].tolist() == pytest.approx(slow, abs=1e-5)
            slow = [x - alpha * y for x, y in zip(b, r, strict=True)]
            assert subtracted_logits(base, other, alpha)[row].tolist() == pytest.approx(slow, abs=1e-5)


def test_a_constant_a_row_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    base, other = torch.randn(3, 7, generator=generator), torch.randn(3, 7, generator=generator)
    shift = torch.tensor([[4.0], [-9.0], [0.5]])
    torch.testing.assert_close(
        generic_logits(base, other + shift, 5.0), generic_logits(base, other, 5.0), rtol=0, atol=1e-4
    )
    raw = base - 5 * torch.relu(other + shift - base)
    assert not torch.allclose(raw.softmax(-1), generic_logits(base, other, 5.0).softmax(-1), atol=0.01)


def test_a_model_that_has_not_moved_takes_nothing_away() -> None:
    base = torch.randn(3, 7, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(generic_logits(base, base, 5.0).softmax(-1), base.softmax(-1))


@pytest.fixture
def pair(tiny: Any, retrained_folder: Path) -> tuple[Any, Any]:
    """A model and another one with the same tokenizer."""
    other = efface.load(retrained_folder)
    refuse_other_tokens(tiny, other)
    return tiny, other


@pytest.mark.parametrize("rule", ["reinforced", "subtract"])
def test_both_caches_give_what_no_cache_gives(pair: tuple[Any, Any], request_: Any, rule: Any) -> None:
    base, other = pair
    guarded = LogitEnsemble(base.model, other.model, Ensemble(combine=rule, alpha=0.7)).eval()
    combine = {"reinforced": generic_logits, "subtract": subtracted_logits}[rule]
    prompts = base.encode_prompts(request_.forget)[:4]
    ids = torch.tensor(prompts)
    assert len({len(row) for row in prompts}) == 1
    expected = ids
    with torch.no_grad():
        for _ in range(8):  # by hand, both models over the whole text at every step
            logits = combine(
                base.model(input_ids=expected).logits[:, -1], other.model(input_ids=expected).logits[:, -1], 0.7
            )
            expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], dim=1)
    plain = base.model
    base.model = guarded
    stop = base.stop_ids()
    for use_cache in (True, False):
        out = guarded.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, use_cache=use_cache,
            pad_token_id=base.pad_id, eos_token_id=None,
        )  # fmt: skip
        for ours, hand in zip(out[:, ids.shape[1] :].tolist(), expected[:, ids.shape[1] :].tolist(), strict=True):
            until = next((i for i, token in enumerate(hand) if token in stop), len(hand))
            assert ours[:until] == hand[:until]
    assert base.generate(prompts, max_new_tokens=8), "the subject generates through the guard, padded left"
    base.model = plain
    assert not plain._forward_hooks, "no hook is left behind"


def test_left_padding_changes_nothing(pair: tuple[Any, Any], request_: Any) -> None:
    base, other = pair
    prompts = [base.encode_prompts(request_.forget)[0], base.encode_prompts(request_.forget)[1][:5]]
    base.model = LogitEnsemble(base.model, other.model, Ensemble(combine="reinforced", alpha=2.0)).eval()
    together = base.generate(prompts, max_new_tokens=6)
    assert together == [base.generate([prompt], max_new_tokens=6)[0] for prompt in prompts]


def test_what_two_models_cannot_do(pair: tuple[Any, Any], tmp_path: Path) -> None:
    base, other = pair
    guarded = LogitEnsemble(base.model, other.model, Ensemble(combine="reinforced", alpha=1.0)).eval()
    ids = torch.tensor([[3, 4, 5]])
    with pytest.raises(ConfigError, match="beam search with two models"):
        guarded.generate(input_ids=ids, num_beams=2)
    with pytest.raises(ModelError, match="save the edit"):
        guarded.save_pretrained(tmp_path)
    seen = base.model(input_ids=ids, use_cache=True).past_key_values
    with pytest.raises(ModelError, match="whose beginning only the base has seen"):
        guarded(input_ids=ids, past_key_values=seen, use_cache=True)
    other.model.resize_token_embeddings(len(other.tokenizer) + 3)
    with pytest.raises(ModelError, match="over the same tokens"):
        LogitEnsemble(base.model, other.model, Ensemble(combine="reinforced", alpha=1.0))
    other.tokenizer.add_tokens(["<<one>>"])
    with pytest.raises(ModelError, match="different tokenizers"):
        refuse_other_tokens(base, other)


def decode(tiny: Any, request: Any, folder: Path, **values: Any) -> Edit:
    method = find_method("who-is-harry-potter")
    config = method.configure({
        "mode": "decode", "learning_rate": 3e-3, "reinforce_epochs": 4, "batch_size": 4, **values,
    })  # fmt: skip
    return method.fit(tiny, request, config, work=folder / "work", out=folder / "edit").edit


@pytest.mark.parametrize("scope", ["all", "lora"])
def test_the_guard_is_an_edit_like_any_other(tiny: Any, request_: Any, tmp_path: Path, scope: str) -> None:
    before, digest, plain = {k: v.clone() for k, v in tiny.weights().items()}, tiny.digest, tiny.model
    edit = decode(tiny, request_, tmp_path, reinforce_scope=scope)
    tiny.changed()
    assert tiny.digest == digest
    assert tiny.model is plain
    assert isinstance(edit, EnsembleEdit)
    assert (edit.facts.claim, edit.facts.tensors) == ("suppressed", 0)
    assert not (tmp_path / "work").exists()
    edit.save(tmp_path / "copy")
    again = Edit.load(tmp_path / "copy")
    assert again.facts == edit.facts
    again.apply(tiny)
    assert tiny.digest == edit.facts.edited_digest != digest
    with pytest.raises(RunError, match="applied already"):
        again.apply(tiny)
    prompts = tiny.encode_prompts(request_.forget)
    guarded = tiny.generate(prompts, max_new_tokens=8)
    again.remove(tiny)
    assert tiny.digest == digest
    assert tiny.model is plain
    assert all(torch.equal(before[key], value) for key, value in tiny.weights().items())
    assert tiny.generate(prompts, max_new_tokens=8) != guarded


def test_the_strength_is_part_of_the_digest(tiny: Any, request_: Any, tmp_path: Path) -> None:
    """Score tables are cached by digest: two guards that differ in alpha alone must not share one."""
    digests = {decode(tiny, request_, tmp_path / str(a), alpha=a).facts.edited_digest for a in (1.0, 5.0)}
    assert len(digests) == 2


def test_a_changed_guard_is_refused(tiny: Any, request_: Any, tmp_path: Path) -> None:
    edit = decode(tiny, request_, tmp_path)
    path = edit.folder / "ensemble.json"
    path.write_text(path.read_text(encoding="utf-8").replace("5.0", "0.0"), encoding="utf-8")
    with pytest.raises(RunError, match=r"ensemble\.json was changed"):
        edit.apply(tiny)
