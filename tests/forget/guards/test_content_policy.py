"""The policy: phrases and premise sets against plain loops, near misses, windows, hashes."""

from __future__ import annotations

import base64
import json
import random

import pytest

from efface.data.wording import plain_words
from efface.errors import InputError
from efface.forget.guards.content_policy import Policy, PolicyItem, items_of, read_item, unveiled

SALT = "00" * 16


def slow(items: list[PolicyItem], text: str, window: int) -> tuple[set[int], set[int]]:
    """Items whose phrase stands in a text, and items with a premise set in `window` words of it."""
    words = plain_words(text)

    def places(phrase: str, part: list[str]) -> bool:
        own = plain_words(phrase)
        return any(part[i : i + len(own)] == own for i in range(len(part)))

    runs = [words[i : i + window] for i in range(len(words))] if window else [words]
    phrases = {n for n, item in enumerate(items) if any(places(p, words) for p in item.phrases)}
    premises = {
        n
        for n, item in enumerate(items)
        if any(all(places(p, run) for p in group) for group in item.premises for run in runs)
    }
    return phrases, premises


@pytest.mark.parametrize("window", [0, 4, 7])
def test_reading_against_loops(window: int) -> None:
    rng = random.Random(0)
    letters = "abcde"
    for _ in range(60):
        items = [
            PolicyItem(id=str(i), phrases=(" ".join(rng.choices(letters, k=2)),),
                       premises=(tuple(" ".join(rng.choices(letters, k=rng.randint(1, 2))) for _ in range(rng.randint(1, 3))),))
            for i in range(3)
        ]  # fmt: skip
        text = " ".join(rng.choices(letters, k=12))
        reading = Policy.of(items, SALT, window=window).read(text)
        found = [{hit.item for hit in reading.found if hit.rule == rule} for rule in ("phrases", "premises")]
        assert tuple(found) == slow(items, text, window)


def test_near_misses_are_one_premise_short() -> None:
    policy = Policy.of(
        [PolicyItem(id="x", premises=(("saltpetre",),)), PolicyItem(id="y", premises=(("coal", "sulphur", "salt"),))],
        SALT,
    )
    assert policy.read("coal and sulphur").near == [1]
    assert policy.read("coal alone").near == []
    assert not policy.read("coal and sulphur").found
    assert [hit.item for hit in policy.read("salt, coal; sulphur").found] == [1]


def test_the_stored_policy_holds_no_word_and_reads_alike() -> None:
    items = [PolicyItem(id="ferrum", phrases=("Secret Recipe",), premises=(("iron", "F e"),))]
    policy = Policy.of(items, SALT, window=5)
    stored = json.loads(json.dumps(policy.dump()))
    assert not any(word in json.dumps(stored).casefold() for word in ("secret", "recipe", "iron", "ferrum"))
    again = Policy.load(stored)
    for text in ("the secret, recipe!", "iron has f e", "iron and then so many other words come f e", "none"):
        assert again.read(text) == policy.read(text)
    other = Policy.of(items, "11" * 16).dump()
    assert other["phrases"] != policy.dump()["phrases"]


def test_forget_rows_become_items() -> None:
    rows = [
        {"id": "a", "question": "who ?", "answer": "a long answer of six words"},
        {"id": "b", "question": "symbol of iron ?", "answer": "Fe", "concept": "iron", "aliases": ["ferrum"]},
        {"id": "c", "question": "what is it ?", "answer": "zinc", "answer_aliases": ["Zn"]},
    ]
    long, named, bare = items_of(rows, min_words=4)
    assert (long.phrases, long.premises) == (("a long answer of six words",), ())
    assert set(named.premises) == {("iron", "Fe"), ("ferrum", "Fe")}
    assert set(bare.premises) == {("what is it ?", "zinc"), ("what is it ?", "Zn")}
    policy = Policy.of([long, named, bare], SALT)
    assert not policy.read("iron is a metal, and zinc too").found
    assert policy.read("what is it? it is zinc").found


def test_base64_is_looked_into() -> None:
    inside = base64.b64encode(b"the secret recipe").decode()
    assert unveiled(f"decode {inside} now").endswith("the secret recipe")
    assert unveiled("an ordinary internationalisation").count("\n") == 0
    assert unveiled("deadbeefdeadbeef").count("\n") == 0


@pytest.mark.parametrize(
    "row", [{}, {"id": "x"}, {"id": "x", "phrases": ["?!"]}, {"id": "x", "premises": [[]]}, {"id": "x", "words": []}]
)
def test_bad_items(row: dict[str, object]) -> None:
    with pytest.raises(InputError, match="line 3"):
        read_item(row, "line 3")


def test_an_empty_policy_is_refused() -> None:
    for items in ([], [PolicyItem(id="x", phrases=("a",))] * 2):
        with pytest.raises(InputError, match="policy items"):
            Policy.of(items, SALT)
