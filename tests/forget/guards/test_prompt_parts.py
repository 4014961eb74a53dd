"""Names by character offsets, in tokens of any kind; the last turn of a chat."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from efface.forget.guards.prompt_parts import (
    PromptReader,
    all_but_last,
    covering,
    name_ranges,
    prompt_ids,
    put_back,
    token_ranges,
)
from efface.learn.recipes.causal_lm import bpe_tokenizer
from efface.subjects.guarded import Asked
from efface.subjects.prompts import PromptFormat

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


@pytest.fixture(scope="module")
def bpe() -> Any:
    return bpe_tokenizer(["Question: where is Niger?\nAnswer: here it is", "who is Zoë Niger-Delta?"], 300)


def test_names_are_whole_words_in_any_case(bpe: Any) -> None:
    for text, wanted in [
        ("where is niger today", " niger"), ("NIGER, or Nigeria", "NIGER"), ("Nigeria", ""), ("is Zoë here", " Zoë"),
    ]:  # fmt: skip
        ids = bpe(text)["input_ids"]
        marks = covering(bpe, ids, name_ranges(["Niger", "Zoë"]))
        assert len(marks) == len(ids)
        assert bpe.decode([i for i, here in zip(ids, marks, strict=True) if here]).strip() == wanted.strip()


def test_tokens_that_the_tokenizer_would_not_give_itself(bpe: Any) -> None:
    """Offsets from decoding, where the text has another tokenisation."""
    text = "is Niger here"
    letters = [i for letter in text for i in bpe(letter, add_special_tokens=False)["input_ids"]]
    assert letters != bpe(text)["input_ids"]
    found, places = token_ranges(bpe, letters)
    assert found == text
    assert places == [(i, i + 1) for i in range(len(text))]
    marks = covering(bpe, letters, name_ranges(["Niger"]))
    assert [i for i, here in enumerate(marks) if here] == list(range(3, 8))


def test_all_tokens_but_the_last() -> None:
    assert all_but_last(3) == [True, True, False]
    assert all_but_last(1) == [True], "a prompt of one token is corrupted too"
    assert all_but_last(0) == []


def test_places_follow_the_padding() -> None:
    ids = torch.tensor([[0, 0, 7, 8], [7, 8, 9, 0]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    asked = Asked(ids, mask, mask.bool())
    assert prompt_ids(asked) == [[7, 8], [7, 8, 9]]
    assert put_back(asked.prompt[0], [True, False]).tolist() == [False, False, True, False]
    assert put_back(asked.prompt[1], [False, True, True]).tolist() == [False, True, True, False]


def test_the_last_turn_is_judged_as_if_it_were_alone(bpe: Any) -> None:
    tokenizer = copy.deepcopy(bpe)
    tokenizer.chat_template = CHAT
    for form in (PromptFormat(style="chat"), PromptFormat(style="chat", system="be brief")):
        reader = PromptReader(tokenizer, form)
        alone = tokenizer(form.prompt_text(tokenizer, "who is Niger?"), add_special_tokens=False)["input_ids"]
        assert reader.views(alone) == [reader.text(alone)]
        turns = [("user", "hello"), ("assistant", "good day"), ("user", "who is Niger?")]
        text = tokenizer.apply_chat_template(
            [{"role": role, "content": words} for role, words in turns], tokenize=False, add_generation_prompt=True
        )
        whole, last = reader.views(tokenizer(text, add_special_tokens=False)["input_ids"])
        assert "hello" in whole
        assert last == reader.text(alone)


def test_plain_prompts_have_one_view(bpe: Any) -> None:
    reader = PromptReader(bpe, PromptFormat())
    assert reader.views(bpe("who is it?")["input_ids"]) == ["who is it?"]
