"""Blocks and their translations: the position map holds token by token, by byte pairs and by words."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from efface.data.anchors import Anchors
from efface.data.columns import canonical
from efface.errors import ConfigError, RequestError
from efface.forget.blocks import NONE, Block, build_blocks
from efface.learn.recipes.causal_lm import CausalLMConfig, new_model
from efface.subjects import CausalLM, PromptFormat

TERMS = {"Zorbin Quaxel": "Tom", "Zorbin": "Jonathan Applewhite", "Veltria": "the old town"}
TEXT = (
    "One day Zorbin Quaxel, who came from Veltria's hills, saw Zorbin. Zorbin Quaxel said: naïve 🐉 words in Veltria; "
    "then (Zorbin) left, and nobody ever spoke of the matter again in that quiet house."
)


def subject(tokenizer: str, context: int = 256) -> CausalLM:
    config = CausalLMConfig(tokenizer=tokenizer, vocabulary=300, width=16, depth=1, heads=2, context=context)
    return new_model(config, [TEXT, *TERMS.values(), "who is it ? nobody"], PromptFormat(prompt="{question}"))


def rows(*found: dict[str, Any]) -> Dataset:
    return canonical(found, "forget")


def blocks_of(model: CausalLM, data: Dataset, terms: dict[str, str], tokens: int = 200) -> list[Block]:
    return build_blocks(model, data, Anchors(terms), block_tokens=tokens, name="forget")


@pytest.mark.parametrize("tokenizer", ["bpe", "words"])
def test_without_anchors_a_block_is_its_own_translation(tokenizer: str) -> None:
    model = subject(tokenizer)
    data = rows({"question": "who ?", "answer": TEXT}, {"question": "who is it ?", "answer": "nobody"})
    for index, block in enumerate(blocks_of(model, data, {})):
        assert block.row == model.encode(data["question"][index], data["answer"][index])
        assert block.translated == block.row.ids
        assert block.counterpart == list(range(len(block.row.ids)))
        assert all(block.counted)
        assert not block.lowered


@pytest.mark.parametrize("tokenizer", ["bpe", "words"])
@pytest.mark.parametrize("plain", [False, True])
def test_the_map_joins_tokens_at_the_same_place(tokenizer: str, plain: bool) -> None:
    model = subject(tokenizer)
    asked = rows({"question": "who is it ?", "answer": TEXT})
    (block,) = _joined(model) if plain else blocks_of(model, asked, TERMS)
    mapped = [(t, other) for t, other in enumerate(block.counterpart) if other != NONE]
    assert [other for _, other in mapped] == sorted(other for _, other in mapped)
    spelled = {t: model.tokenizer.decode([block.row.ids[t]]) for t in range(len(block.row.ids))}
    inside = [t for t in range(len(block.row.ids)) if block.counterpart[t] == NONE]
    same = [t for t, other in mapped if block.row.ids[t] == block.translated[other]]
    replaced = [(t, other) for t, other in mapped if block.row.ids[t] != block.translated[other]]
    assert len(same) > 25
    # what differs at the same place is the first token of a term, beside the first token of its generic term
    starts = {"".join(spelled[t].split()) for t, _ in replaced}
    assert starts, "every term's first token has a counterpart"
    assert all(any(term.startswith(start) for term in TERMS) for start in starts)
    begins = {"".join(model.tokenizer.decode([block.translated[other]]).split()) for _, other in replaced}
    assert all(any(generic.startswith(begin) for generic in TERMS.values()) for begin in begins)
    # what has no counterpart lies inside a term
    assert all(any("".join(spelled[t].split()) in term.replace(" ", "") for term in TERMS) for t in inside)
    assert len(block.translated) != len(block.row.ids)


def _joined(model: CausalLM) -> list[Block]:
    found = build_blocks(model, rows({"text": TEXT}), Anchors(TERMS), block_tokens=250, name="forget", short=True)
    assert len(found) == 1
    return found


def test_only_the_first_occurrence_counts_and_its_translation_is_lowered_afterwards() -> None:
    model = subject("words")
    (block,) = _joined(model)
    tokens = [model.tokenizer.decode([token]) for token in block.row.ids]
    hidden = [tokens[t] for t in range(len(tokens)) if not block.counted[t]]
    assert hidden == ["Zorbin", "Quaxel", "Veltria", "Zorbin"], "second occurrences, whole"
    first = {tokens.index("Zorbin"), tokens.index("Quaxel"), tokens.index("Veltria")}
    assert all(block.counted[t] for t in first), "the whole span counts the first time"
    lowered = {model.tokenizer.decode(ids): t for t, ids in block.lowered}
    assert lowered == {
        "Tom": tokens.index("Quaxel") + 1, "the": tokens.index("Veltria") + 1, "Jonathan": tokens.index("saw") + 2,
    }  # fmt: skip


@pytest.mark.parametrize("tokenizer", ["bpe", "words"])
@pytest.mark.parametrize("size", [8, 11, 17])
def test_plain_text_is_cut_whole_and_never_inside_a_term(tokenizer: str, size: int) -> None:
    model = subject(tokenizer)
    data = rows({"text": TEXT * 3})
    whole = model.tokenizer(TEXT * 3, add_special_tokens=True)["input_ids"]
    found = blocks_of(model, data, TERMS, size)
    assert [token for block in found for token in block.row.ids] in (whole, whole[:-1]), (
        "a lone last token has no context"
    )
    assert all(2 <= len(block.row.ids) <= size for block in found)
    if tokenizer == "words":
        openings = [model.tokenizer.decode(block.row.ids[:1]) for block in found]
        assert "Quaxel" not in openings, "a block would begin in the middle of a name"
    joined = [token for block in found for token in block.translated]
    assert len(joined) > 100
    for block in found:
        for t, other in enumerate(block.counterpart):
            assert other == NONE or 0 <= other < len(block.translated)
            if other != NONE and block.row.ids[t] != block.translated[other]:
                assert any(
                    term.startswith("".join(model.tokenizer.decode([block.row.ids[t]]).split())) for term in TERMS
                )


def test_bad_input_is_refused_by_name() -> None:
    model = subject("words", context=64)
    with pytest.raises(RequestError, match=r"plain text has 3 tokens; expected at least one block of 50"):
        blocks_of(model, rows({"text": "the old town"}), TERMS, 50)
    with pytest.raises(ConfigError, match="block_tokens=65; expected at most 64"):
        blocks_of(model, rows({"text": TEXT}), TERMS, 65)
    many = {"question": "who ?", "answer": "Veltria " * 30}
    with pytest.raises(RequestError, match=r"row 0: a translated block has \d+ tokens; expected at most 64"):
        blocks_of(model, rows(many), TERMS)
