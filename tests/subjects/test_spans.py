"""A name's tokens, found by offsets, in word and byte-pair tokenizers."""

from __future__ import annotations

import pytest

from efface.errors import ModelError, RequestError
from efface.learn.tokenizers import bpe_tokenizer, word_tokenizer
from efface.subjects.spans import locate, name_tokens, occurrences, same_last_token

TEXTS = ["what is the capital of south africa ?", "niger is not nigeria", "zoë saldaña , o'brien", "ask about paris ."]
WORDS = word_tokenizer(TEXTS, 200)
PIECES = bpe_tokenizer(TEXTS, 300)


@pytest.mark.parametrize("tokenizer", [WORDS, PIECES])
@pytest.mark.parametrize("name", ["south africa", " south africa ", "what", "capital"])
def test_the_tokens_spell_the_name(tokenizer: object, name: str) -> None:
    found = locate(tokenizer, TEXTS[0], name)
    text = tokenizer.decode(found.ids[found.first : found.last + 1]).strip()  # type: ignore[attr-defined]
    assert text == name.strip()
    assert list(found.tokens) == list(range(found.first, found.last + 1))


def test_several_tokens_and_their_last() -> None:
    found = locate(WORDS, TEXTS[0], "south africa")
    assert found.last == found.first + 1
    assert WORDS.convert_ids_to_tokens(found.ids[found.last]) == "africa"


def test_leading_space_changes_the_ids_and_not_the_place() -> None:
    bare, spaced = locate(PIECES, "paris", "paris"), locate(PIECES, "ask about paris", "paris")
    assert len(name_tokens(PIECES, "paris")) == 2
    assert len(name_tokens(WORDS, "paris")) == 1
    assert bare.ids[bare.first :] != spaced.ids[spaced.first :]
    assert spaced.last == len(spaced.ids) - 1


def test_whole_words_only() -> None:
    assert occurrences("nigeria", "niger") == []
    assert occurrences("niger is not nigeria", "niger") == [(0, 5)]
    assert occurrences("(paris) paris.", "paris") == [(1, 6), (8, 13)]
    with pytest.raises(RequestError, match="the name 'niger' is not in the prompt"):
        locate(WORDS, "nigeria", "niger")


def test_first_or_last_place() -> None:
    text = "paris is paris ."
    assert locate(WORDS, text, "paris").first == 2
    assert locate(WORDS, text, "paris", which="first").first == 0


def test_unicode_and_apostrophes() -> None:
    for name in ("zoë saldaña", "o'brien"):
        found = locate(PIECES, TEXTS[2], name)
        assert PIECES.decode(found.ids[found.first : found.last + 1]).strip() == name


def test_names_that_end_in_the_same_token() -> None:
    assert same_last_token(WORDS, "south africa", ["africa", "paris", "south africa"]) == ["africa"]


def test_what_cannot_be_found_raises() -> None:
    with pytest.raises(RequestError, match="is not in the prompt"):
        locate(WORDS, TEXTS[0], "Capital")
    with pytest.raises(RequestError, match="an empty name"):
        locate(WORDS, TEXTS[0], "  ")

    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="without character offsets"):
        locate(Slow(), TEXTS[0], "capital")


def test_no_token_covers_what_the_tokenizer_drops() -> None:
    dropping = word_tokenizer(["a b"], 10)
    from tokenizers import Regex, pre_tokenizers

    dropping.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[ab]"), behavior="removed", invert=True)
    with pytest.raises(RequestError, match="no token"):
        locate(dropping, "a cde", "cde")
