"""The trie of phrases against a search by slices."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efface.data.phrase_trie import Hit, PhraseTrie
from efface.errors import InputError

letters = st.text("ab", min_size=1, max_size=4)


@given(st.lists(letters, min_size=1, max_size=5), st.text("ab", max_size=12))
def test_every_phrase_is_found_where_it_stands(phrases: list[str], text: str) -> None:
    trie = PhraseTrie(phrases)
    slow = {
        Hit(number, start, start + len(phrase))
        for number, phrase in enumerate(phrases)
        for start in range(len(text))
        if text[start : start + len(phrase)] == phrase
    }
    assert set(trie.hits(text)) == slow


def test_what_may_come_next() -> None:
    trie = PhraseTrie([("new", "york"), ("new", "york", "city"), ("york",)])
    walk = trie.walk(["in", "new"])
    found = walk.symbols()
    assert found["york"] == (2, [0, 2], 1.0)  # the largest share: "york" alone would be whole
    assert trie.walk(["new", "york"]).symbols()["city"] == (3, [1], 1.0)
    assert found["new"][0] == 1
    assert walk.completes() == []
    assert sorted(walk.after("york").completes()) == [0, 2]
    assert walk.completes() == []  # walks are not changed


def test_spellings_share_a_number() -> None:
    trie = PhraseTrie(["ab", "a-b"], numbers=[7, 7])
    assert {hit.phrase for hit in trie.hits("xxa-bab")} == {7}
    with pytest.raises(InputError, match="empty phrase"):
        PhraseTrie([""])
