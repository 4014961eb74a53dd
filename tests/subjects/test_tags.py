"""New rows: trained alone, written into spare or added rows, and off again without a trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from efface.errors import ModelError
from efface.learn.tokenizers import bpe_tokenizer, word_tokenizer
from efface.subjects import CausalLM
from efface.subjects.tags import (
    can_write,
    first_rows,
    new_tokens,
    spare_rows,
    take_rows_off,
    tokenizer_with,
    training_rows,
    write_rows,
)

TEXTS = ["where is the tower of anna ? paris", "where is the house of otto ? rome"]
TAGS = ["<<UNL>>", "<</UNL>>"]


def small(*, tied: bool = True, spare: int = 0, words: bool = True) -> CausalLM:
    """An untrained two-layer Llama; `spare` embedding rows lie beyond the tokenizer's."""
    tokenizer = word_tokenizer(TEXTS, 100) if words else bpe_tokenizer(TEXTS, 300)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + spare, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return CausalLM(LlamaForCausalLM(config).eval(), tokenizer)


CASES = [(tied, spare) for tied in (True, False) for spare in (0, 1, 5)]


@pytest.mark.parametrize(("tied", "spare"), CASES)
def test_the_trained_frame_and_the_written_rows_give_the_same_logits(tied: bool, spare: int) -> None:
    subject = small(tied=tied, spare=spare)
    start, before = len(subject.tokenizer), subject.digest
    ids = torch.tensor([[start, 3, start + 1, 4, 5], [2, 3, 4, start + 1, 0]])
    size = subject.model.get_input_embeddings().weight.shape[0]
    plain = subject.model(ids.clamp(max=start - 1)).logits
    old = spare_rows(subject, start, 2)
    with training_rows(subject, first_rows(subject, start, 2, seed=1)) as rows:
        assert torch.allclose(subject.model(ids.clamp(max=start - 1)).logits[..., :start], plain[..., :start])
        framed = subject.model(ids).logits
        trained = type(rows)(
            start, rows.embedding.detach().clone(), None if rows.head is None else rows.head.detach().clone()
        )
    assert framed.shape[-1] == max(size, start + 2)
    assert subject.digest == before
    assert type(subject.model.get_input_embeddings()) is torch.nn.Embedding
    write_rows(subject, trained)
    assert torch.allclose(subject.model(ids).logits, framed, atol=1e-6)
    assert subject.digest != before
    assert subject.model.config.vocab_size == max(size, start + 2)
    take_rows_off(subject, size, old)
    assert subject.digest == before
    assert subject.model.config.vocab_size == size


@pytest.mark.parametrize(("tied", "spare"), CASES)
def test_only_the_rows_learn_and_decay_reaches_no_other_row(tied: bool, spare: int) -> None:
    subject = small(tied=tied, spare=spare)
    before = {name: value.clone() for name, value in subject.weights().items()}
    start = len(subject.tokenizer)
    with training_rows(subject, first_rows(subject, start, 2, seed=1)) as rows:
        own = [p for p in (rows.embedding, rows.head) if p is not None]
        assert len(own) == (1 if tied else 2)
        for parameter in subject.model.parameters():
            parameter.requires_grad_(any(parameter is p for p in own))
        first = [p.detach().clone() for p in own]
        optimiser = torch.optim.AdamW(
            [p for p in subject.model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5
        )
        for _ in range(2):
            ids = torch.tensor([[start, 3, start + 1, 4]])
            optimiser.zero_grad()
            logits = subject.model(ids).logits[0, :-1]
            torch.nn.functional.cross_entropy(logits, ids[0, 1:]).backward()
            optimiser.step()
        assert all(not torch.equal(old, p) for old, p in zip(first, own, strict=True))
    assert all(torch.equal(before[name], value) for name, value in subject.weights().items())


def test_a_row_that_is_only_padding_is_not_learnt() -> None:
    subject = small()
    start = len(subject.tokenizer)
    with training_rows(subject, first_rows(subject, start, 2, seed=1)) as rows:
        ids = torch.tensor([[2, 3, start, start]])
        mask, labels = torch.tensor([[1, 1, 0, 0]]), torch.tensor([[-100, 3, -100, -100]])
        out = subject.model(input_ids=ids, attention_mask=mask).logits
        torch.nn.functional.cross_entropy(out[0, :-1], labels[0, 1:], ignore_index=-100).backward()
        # tied: the row takes part in the softmax as an output; as an input it got nothing from the padded places
        with_pad = rows.embedding.grad.clone()
        rows.embedding.grad = None
        out = subject.model(input_ids=ids[:, :2], attention_mask=mask[:, :2]).logits
        torch.nn.functional.cross_entropy(out[0, :1], labels[0, 1:2]).backward()
        assert torch.allclose(with_pad, rows.embedding.grad, atol=1e-7)


def test_the_tokenizer_sees_each_tag_as_one_visible_token() -> None:
    for words in (True, False):
        tokenizer = small(words=words).tokenizer
        made = tokenizer_with(tokenizer, TAGS)
        assert len(tokenizer) + 2 == len(made)
        ids = made("<<UNL>>anna<</UNL>> where is the tower ?")["input_ids"]
        assert ids.count(len(tokenizer)) == ids.count(len(tokenizer) + 1) == 1
        assert ids[0] == len(tokenizer)
        assert "<<UNL>>" in made.decode(ids, skip_special_tokens=True)  # a generated tag is not hidden
        assert len(tokenizer.get_vocab()) == len(tokenizer)


def test_a_word_that_cannot_be_written_gets_a_token() -> None:
    subject = small()
    assert not can_write(subject.tokenizer, "forgot")
    assert new_tokens(subject.tokenizer, TAGS, ["forgot"]) == [*TAGS, "forgot"]
    assert new_tokens(subject.tokenizer, TAGS, ["paris"]) == TAGS
    assert new_tokens(small(words=False).tokenizer, TAGS, ["forgot"]) == TAGS
    with pytest.raises(ModelError, match="has a token 'paris' already"):
        new_tokens(subject.tokenizer, ["paris"])


def test_rows_start_near_the_others_and_from_the_seed() -> None:
    subject = small()
    start = len(subject.tokenizer)
    first, again, other = (first_rows(subject, start, 2, seed).embedding for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    spread = subject.model.get_input_embeddings().weight.std()
    assert first.std() < 3 * spread


def test_an_embedding_of_another_kind_is_refused() -> None:
    subject = small()
    own: Any = subject.model.get_input_embeddings()

    class Odd(torch.nn.Embedding):
        """Not known."""

    odd = Odd(*own.weight.shape)
    subject.model.set_input_embeddings(odd)
    with pytest.raises(ModelError, match="class Odd"):
        first_rows(subject, 1, 1, 0)
