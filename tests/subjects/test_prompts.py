"""Prompts: joining, padding on both sides, pad equal to end of text, merged border tokens, empty parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

import efface
from efface.errors import ModelError, RequestError
from efface.learn.recipes.causal_lm import bpe_tokenizer
from efface.subjects.prompts import IGNORED, Encoded, PromptFormat, collate, encode, encode_prompt, pad

TEXTS = ["Question: where is it?\nAnswer: here it is", "Question: who?\nAnswer: nobody, she said"]


@pytest.fixture(scope="module")
def bpe() -> Any:
    """A byte-level tokenizer whose pad token is its end token."""
    return bpe_tokenizer(TEXTS, 300)


def test_pad_equal_to_end_of_text_does_not_hide_the_end(bpe: Any) -> None:
    assert bpe.pad_token_id == bpe.eos_token_id
    rows = [encode(bpe, PromptFormat(), "where is it?", text) for text in ("here", "here it is")]
    batch = collate(rows, bpe.pad_token_id)
    for index, row in enumerate(rows):
        labels = batch["labels"][index]
        assert int(labels[len(row.ids) - 1]) == bpe.eos_token_id, "the end of the answer is a target"
        assert (labels[len(row.ids) :] == IGNORED).all(), "padding is none"
        assert int(batch["attention_mask"][index].sum()) == len(row.ids)
        assert (labels[: row.n_prompt] == IGNORED).all()


def test_left_and_right_padding() -> None:
    right, left = (pad([[1, 2, 3], [4]], 0, side=side) for side in ("right", "left"))
    assert right["input_ids"].tolist() == [[1, 2, 3], [4, 0, 0]]
    assert left["input_ids"].tolist() == [[1, 2, 3], [0, 0, 4]]
    assert left["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


def test_left_padding_does_not_change_what_is_generated(tiny: Any, request_: Any) -> None:
    prompts = tiny.encode_prompts(request_.forget)
    prompts = [prompts[0][:4], prompts[1], prompts[2][:6]]
    together = tiny.generate(prompts, max_new_tokens=8)
    assert together == [tiny.generate([prompt], max_new_tokens=8)[0] for prompt in prompts]


def test_right_padding_does_not_change_scores(tiny: Any, request_: Any) -> None:
    from efface.subjects.answers import answer_logits

    rows = [tiny.encode("Which colour does person0 like ?", text) for text in ("red", "person0 likes the colour red .")]
    with torch.no_grad():
        joint = answer_logits(tiny.model, collate(rows, tiny.pad_id)).logp_sum
        alone = torch.cat([answer_logits(tiny.model, collate([row], tiny.pad_id)).logp_sum for row in rows])
    torch.testing.assert_close(joint, alone, atol=1e-5, rtol=1e-5)


def test_a_token_merged_across_the_border_is_the_answers() -> None:
    raw = Tokenizer(models.WordLevel({"[UNK]": 0, "[EOS]": 1, "a": 2, "b:c": 3, "d": 4}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="[EOS]", unk_token="[UNK]")
    row = encode(tokenizer, PromptFormat(prompt="{question} b:", separator=""), "a", "c d")
    assert row.ids == [2, 3, 4, 1]
    assert row.n_prompt == 1, "the token 'b:c' holds the answer's first letter and must be scored"
    whole = encode(tokenizer, PromptFormat(prompt="{question} b:", separator="", append_eos=False), "a", "c")
    assert whole.n_targets == 1


def test_no_target_token_is_an_error_not_a_zero(bpe: Any) -> None:
    form = PromptFormat(append_eos=False, separator="")
    with pytest.raises(RequestError, match="no token to predict"):
        encode(bpe, form, "where is it?", "", place="row 3")


def test_a_text_without_a_question_is_scored_from_its_second_token(bpe: Any) -> None:
    row = encode(bpe, PromptFormat(), "", "here it is")
    assert row.n_prompt == 1
    with pytest.raises(RequestError, match="nothing to generate from"):
        encode_prompt(bpe, PromptFormat(), "")


def test_longer_than_the_context(bpe: Any) -> None:
    with pytest.raises(RequestError, match=r"row 7: \d+ tokens; expected at most 8"):
        encode(bpe, PromptFormat(), "where is it?", "here it is", context=8, place="row 7")
    with pytest.raises(RequestError, match="the prompt has"):
        encode_prompt(bpe, PromptFormat(), "where is it?", context=3)


CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


def test_chat_template(bpe: Any) -> None:
    import copy

    tokenizer = copy.deepcopy(bpe)
    tokenizer.chat_template = CHAT
    form = PromptFormat(style="chat", system="be brief")
    assert form.prompt_text(tokenizer, "who?") == "<system>be brief</s><user>who?</s><assistant>"
    assert form.whole_text(tokenizer, "who?", "nobody").endswith("<assistant>nobody</s>")
    row = encode(tokenizer, form, "who?", "nobody")
    assert tokenizer.decode(row.ids[row.n_prompt :]) == "nobody</s>"
    tokenizer.chat_template = "{% for m in messages %}{{ messages | length }}{{ m.content }}{% endfor %}"
    with pytest.raises(ModelError, match="writes the prompt differently"):
        encode(tokenizer, PromptFormat(style="chat"), "who?", "nobody")


def test_chat_without_a_template_is_refused(tiny: Any) -> None:
    with pytest.raises(ModelError, match="no chat template"):
        efface.subjects.CausalLM(tiny.model, tiny.tokenizer, prompt=PromptFormat(style="chat"))


@settings(max_examples=60, deadline=None)
@given(question=st.text(max_size=30), answer=st.text(min_size=1, max_size=30))
def test_any_text_keeps_its_answer(bpe: Any, question: str, answer: str) -> None:
    """Unicode of any kind: the targets decode to the answer and the ids to the whole."""
    row = encode(bpe, PromptFormat(), question, answer)
    assert row.n_targets >= 1
    whole = PromptFormat().whole_text(bpe, question, answer)
    if "[EOS]" not in whole:
        plain = whole.encode("utf-8", "replace").decode("utf-8", "replace")
        assert bpe.decode(row.ids[:-1], clean_up_tokenization_spaces=False) == plain


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=6))
def test_collate_counts(lengths: list[tuple[int, int]]) -> None:
    rows = [Encoded([7] * (prompt + answer), prompt) for prompt, answer in lengths]
    batch = collate(rows, 7)
    assert batch["labels"].ne(IGNORED).sum(1).tolist() == [answer for _, answer in lengths]
    assert batch["attention_mask"].sum(1).tolist() == [prompt + answer for prompt, answer in lengths]
