"""Phrases in letters and in tokens, what stands in the prompt, the nearest rows, and hashes that hold no text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.data.phrase_trie import PhraseTrie
from efface.errors import RequestError, RunError
from efface.forget.guards.forbidden_phrases import (
    HashedIndex,
    PhraseIndex,
    PhraseSet,
    PlainIndex,
    letters,
    prefix_leakage,
    spellings,
)
from efface.learn.tokenizers import bpe_tokenizer, word_tokenizer
from efface.run.files import write_json

PROMPTS = ["where was anna born ?", "what does anna do ?", "where was bruno born ?"]
PHRASES = [["New York"], ["baker"], ["Lima"]]
SALT = "00" * 16


def test_a_phrase_is_found_however_it_is_cut_and_never_inside_a_word() -> None:
    own = PhraseSet.of(["New York", "he", "", "..."])
    assert len(own) == 2
    for text in ("in new york.", "NEW-YORK", "New\u00adYork", "newyork", "New  York!"):
        assert own.keys_in(text) == {"newyork"}
    assert own.keys_in("the shed in new yorkshire") == set()
    assert PhraseSet.of(["東京"]).keys_in("私は東京に") == {"東京"}


@given(st.lists(st.text("ab ", min_size=1, max_size=4), max_size=4), st.text("ab ", max_size=12))
def test_keys_against_a_search_by_slices(phrases: list[str], text: str) -> None:
    words = text.split()
    joined = {"".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
    wanted = {letters(phrase) for phrase in phrases} - {""}
    assert PhraseSet.of(phrases).keys_in(text) == wanted & joined


def test_what_stands_in_the_prompt_is_no_secret_there() -> None:
    own = PhraseSet.of(["New York", "baker"]).without("was she a Baker ?")
    assert own.texts == ("New York",)
    assert own.keys == {"newyork"}


def test_every_spelling_is_in_the_trie_and_unknown_tokens_are_not() -> None:
    bpe = bpe_tokenizer(["New York new york is NEW"], 400)
    trie = PhraseSet.of(["New-York"]).trie(bpe)
    for text in ("New York", " New York", "new york", "NEW YORK", "New-York", " new-york"):
        ids = bpe(text, add_special_tokens=False)["input_ids"]
        assert tuple(ids) in trie.phrases, text
    words = word_tokenizer(["in new york"], 50)
    assert PhraseSet.of(["New York"]).trie(words).phrases == [tuple(words("new york")["input_ids"])]
    assert not PhraseSet.of(["Lima"]).trie(words).phrases  # an unknown word must not ban all unknown words


def test_a_single_letter_keeps_its_case() -> None:
    assert spellings("A") == [" A", "A"]
    assert "a b" not in spellings("A B")
    assert "new york" in spellings("New York")


def test_the_nearest_rows_are_put_together() -> None:
    one = PlainIndex(PROMPTS, PHRASES, top_k=1)
    assert one.forbidden("anna , where born").texts == ("New York",)
    assert set(PlainIndex(PROMPTS, PHRASES, top_k=2).forbidden("where was anna born").texts) == {"New York", "Lima"}
    entity = PlainIndex(PROMPTS, PHRASES, ["anna", "anna", "bruno"], top_k=1, retrieve="entity")
    assert set(entity.forbidden("anna , where born").texts) == {"New York", "baker"}
    assert len(one.forbidden("was anna born in New York ?")) == 0
    with pytest.raises(RequestError, match="column 'concept'"):
        PlainIndex(PROMPTS, PHRASES, retrieve="entity")


def test_the_nearest_rows_by_a_given_embedding() -> None:
    def lengths(texts: object) -> np.ndarray:
        return np.array([[1.0, 0.0] if "anna" in text else [0.0, 1.0] for text in texts])  # type: ignore[attr-defined]

    assert PlainIndex(PROMPTS, PHRASES, top_k=1, embed=lengths).forbidden("zzz").texts == ("Lima",)


def test_hashes_forbid_the_same_and_hold_no_text(tmp_path: Path) -> None:
    index = HashedIndex.of([phrase for row in PHRASES for phrase in row], SALT)
    index.write(tmp_path / "index.json")
    stored = (tmp_path / "index.json").read_text(encoding="utf-8").lower()
    assert not any(word in stored for word in ("york", "baker", "lima", "anna"))
    read = PhraseIndex.read(tmp_path / "index.json").forbidden("where was anna born ?")
    assert read.texts == ()
    assert len(read) == 3
    for text, found in (("in new-york", 1), ("a baker of Lima", 2), ("in newer york", 0)):
        assert len(read.keys_in(text)) == found
    assert len(index.forbidden("is she a baker ?")) == 2
    other = HashedIndex.of(["New York"], "11" * 16).forbidden("")
    assert not other.keys & read.keys


def test_a_stored_index_is_the_same(tmp_path: Path) -> None:
    index = PlainIndex(PROMPTS, PHRASES, ["anna", "anna", "bruno"], top_k=2, retrieve="entity")
    index.write(tmp_path / "index.json")
    assert PhraseIndex.read(tmp_path / "index.json").facts() == index.facts()
    write_json(tmp_path / "index.json", {"prompts": []})
    with pytest.raises(RunError, match="no index of phrases"):
        PhraseIndex.read(tmp_path / "index.json")


def test_prefix_leakage_is_the_largest_beginning() -> None:
    trie = PhraseTrie([(1, 2, 3, 4), (5,), (7, 8)])
    assert prefix_leakage([9, 1, 2, 9], trie) == 0.5
    assert prefix_leakage([1, 9, 1, 2, 3], trie) == 0.75
    assert prefix_leakage([5, 9], trie) == 0.0  # one token has no beginning
    assert prefix_leakage([], trie) == 0.0
