"""The logit lens against the model's own logits and against its norm and head taken by hand."""

from __future__ import annotations

import pytest
import torch

from efface.data.columns import canonical
from efface.errors import ModelError
from efface.learn.recipes.causal_lm import CausalLMConfig, new_model
from efface.subjects import CausalLM, PromptFormat
from efface.subjects.lens import final_norm, hidden_states, logit_lens
from efface.subjects.prompts import Encoded, collate
from efface.train.scopes import ScopeConfig, scoped

ROWS = canonical(
    [{"question": "where is the red box ?", "answer": "here"}, {"question": "who ?", "answer": "the box is there"}],
    "rows",
)


def subject(seed: int = 0) -> CausalLM:
    texts = [f"{row['question']} {row['answer']}" for row in ROWS]
    config = CausalLMConfig(tokenizer="words", width=16, depth=3, heads=2, context=32, seed=seed)
    made = new_model(config, texts, PromptFormat(prompt="{question}", append_eos=False))
    with torch.no_grad():  # a norm that does something: all ones would hide its absence less well
        final_norm(made.model).weight.copy_(torch.linspace(0.5, 2.0, 16))
    return made


def own_logits(model: CausalLM, rows: list[Encoded]) -> torch.Tensor:
    """[N, V] log-probabilities of the first answer token, one row at a time, no padding."""
    found = []
    with torch.no_grad():
        for row in rows:
            logits = model.model(input_ids=torch.tensor([row.ids])).logits[0, row.n_prompt - 1]
            found.append(logits.log_softmax(-1))
    return torch.stack(found)


def test_the_last_layer_is_the_model_itself() -> None:
    model = subject()
    rows = model.encode_rows(ROWS)
    assert len(rows[0].ids) != len(rows[1].ids)  # so that one is padded
    lens = logit_lens(model, rows)
    assert lens.shape == (4, 2, len(model.tokenizer))
    torch.testing.assert_close(lens[-1], own_logits(model, rows))
    torch.testing.assert_close(lens.exp().sum(-1), torch.ones(4, 2))


def test_inner_layers_and_the_embedding_pass_the_final_norm() -> None:
    model = subject()
    rows = model.encode_rows(ROWS)
    states, lens = hidden_states(model, rows), logit_lens(model, rows)
    inner = model.model.model
    last_tokens = torch.tensor([row.ids[row.n_prompt - 1] for row in rows])
    with torch.no_grad():
        embedded = inner.embed_tokens(last_tokens)
        torch.testing.assert_close(states[0], embedded)
        for layer in range(3):
            x = states[layer]
            normed = x / (x.square().mean(-1, keepdim=True) + inner.norm.variance_epsilon).sqrt() * inner.norm.weight
            by_hand = (normed @ inner.embed_tokens.weight.T).log_softmax(-1)
            torch.testing.assert_close(lens[layer], by_hand, rtol=1e-4, atol=1e-5)
            bare = (x @ inner.embed_tokens.weight.T).log_softmax(-1)
            assert float((lens[layer] - bare).abs().max()) > 1e-3


def test_batches_make_no_difference_and_nothing_changes() -> None:
    model = subject()
    model.model.train()
    rows = model.encode_rows(ROWS)
    before = model.digest
    torch.testing.assert_close(hidden_states(model, rows, batch_size=1), hidden_states(model, rows))
    model.changed()
    assert model.digest == before
    assert model.model.training


def test_a_lora_wrapped_model() -> None:
    model = subject()
    rows = model.encode_rows(ROWS)
    plain = logit_lens(model, rows)
    bare = model.model
    with scoped(bare, ScopeConfig(scope="lora", lora_rank=2)) as adapted:
        model.model = adapted
        torch.testing.assert_close(logit_lens(model, rows), plain)  # a new adapter adds zero
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.fill_(0.3)
        changed = logit_lens(model, rows)
        torch.testing.assert_close(changed[-1], own_logits(model, rows))
        assert float((changed[1:] - plain[1:]).abs().amax(dim=(1, 2)).min()) > 1e-3
        torch.testing.assert_close(changed[0], plain[0])  # the embedding carries no adapter
        model.model = bare


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(ModelError, match="no final norm found in Linear"):
        final_norm(torch.nn.Linear(2, 2))


def test_the_fixture_is_padded_on_the_right() -> None:
    rows = subject().encode_rows(ROWS)
    mask = collate(rows, 0)["attention_mask"]
    assert mask[:, 0].tolist() == [1, 1]
    assert int(mask[:, -1].min()) == 0
