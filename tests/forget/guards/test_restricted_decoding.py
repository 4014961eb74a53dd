"""The penalties against slow loops, and every trap of the specification by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.forget.guards.forbidden_phrases import HashedIndex, PhraseSet
from efface.forget.guards.restricted_decoding import Restriction, Restrictor, Rules, hypotheses
from efface.learn.tokenizers import bpe_tokenizer, word_tokenizer
from efface.subjects.prompts import pad

WORDS = word_tokenizer(["a b c d in new york old city lima big apple is nice"], 60)
BPE = bpe_tokenizer(["in New York is nice , the café of a city and the old house"], 320)


def ids(text: str, tokenizer: Any = WORDS) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def token(text: str, tokenizer: Any = WORDS) -> int:
    (found,) = ids(text, tokenizer)
    return found


def restrictor(tokenizer: Any = WORDS, embed: Any = None, **rules: Any) -> Restrictor:
    return Restrictor(tokenizer, Rules(**rules), [tokenizer.eos_token_id], embed)


def banned(
    made: Restrictor, phrases: Sequence[str], said: list[int], before: Sequence[int] = (), scores: torch.Tensor | None = None
) -> set[int]:  # fmt: skip
    scores = torch.zeros(1, len(made.tokenizer)) if scores is None else scores
    found = made.restrict(scores, [said], [before], [made.forbidden(PhraseSet.of(phrases))])[0]
    return set(torch.isneginf(found).nonzero().flatten().tolist())


letter = st.sampled_from("abc")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(letter, min_size=1, max_size=3), min_size=1, max_size=3), st.lists(letter, max_size=4),
    st.lists(letter, max_size=2),
)  # fmt: skip
def test_the_ban_against_a_loop(phrases: list[list[str]], said: list[str], before: list[str]) -> None:
    made = restrictor(checked=len(WORDS))
    slow = set()
    for v in range(len(WORDS)):
        text = [*before, *said, WORDS.decode([v])]
        if v != WORDS.eos_token_id and any(
            text[i : i + len(phrase)] == phrase for phrase in phrases for i in range(len(text))
        ):
            slow.add(v)
    fast = banned(made, [" ".join(phrase) for phrase in phrases], ids(" ".join(said)), ids(" ".join(before)))
    assert fast == slow


def test_the_first_piece_of_a_phrase_is_an_ordinary_word() -> None:
    made = restrictor()
    assert banned(made, ["new york"], ids("in")) == set()
    assert banned(made, ["new york"], ids("in new")) == {token("york")}
    assert banned(made, ["new york"], ids("york")) == set()


def test_early_makes_room_to_leave() -> None:
    made = restrictor(early=1, early_penalty=5.0)
    own = made.forbidden(PhraseSet.of(["new york city"]))
    scores = torch.zeros(2, len(WORDS))
    found = made.restrict(scores, [ids("in"), ids("in new")], [[], []], [own, own])
    assert found[0, token("new")] == -5
    assert found[1, token("york")] == -5
    assert found[0, token("york")] == 0
    second = restrictor(early=2).restrict(scores[:1], [ids("in")], [[]], [own])
    assert second[0, token("new")] == 0


def test_one_text_has_many_tokenisations() -> None:
    """Spelled in bytes, which the trie does not hold, the phrase is found in the decoded text."""
    pieces = [token(char, BPE) for char in "York"]
    assert tuple(pieces) not in PhraseSet.of(["New York"]).trie(BPE).phrases
    said = [*ids("in New ", BPE), *pieces[:-1]]
    scores = torch.zeros(1, len(BPE))
    scores[0, pieces[-1]] = 1
    assert pieces[-1] in banned(restrictor(BPE, checked=1), ["New York"], said, scores=scores)
    assert pieces[-1] not in banned(restrictor(BPE, checked=1), ["New Yorker"], said, scores=scores)


def test_half_a_character_waits_for_the_other_half() -> None:
    tokenizer = bpe_tokenizer(["abc"], 260)
    caf, first, second = ids("caf", tokenizer), *ids("é", tokenizer)
    assert "\ufffd" in tokenizer.decode([*caf, first])
    made = restrictor(tokenizer, checked=1)
    for said, v, stopped in ((caf, first, False), ([*caf, first], second, True)):
        scores = torch.zeros(1, len(tokenizer))
        scores[0, v] = 1
        assert (v in banned(made, ["café"], said, scores=scores)) == stopped
        assert not made._text([*said, v]).endswith("\ufffd")


def test_a_phrase_may_begin_in_the_prompt() -> None:
    made = restrictor()
    assert banned(made, ["new york"], [], ids("it is in new")) == {token("york")}
    assert made.refuses(ids("york"), ids("it is in new"), made.forbidden(PhraseSet.of(["new york"])))
    assert not made.refuses(ids("york"), ids("it is in"), made.forbidden(PhraseSet.of(["new york"])))


def test_what_moves_up_after_a_ban_is_checked_too() -> None:
    """Hashed phrases have no trie: only the check of the text finds them."""
    order = ids("new york city lima old")
    scores = -torch.arange(len(WORDS)).float() - 10
    for place, v in enumerate(order):
        scores[v] = -place
    made = restrictor(checked=1)
    own = made.forbidden(HashedIndex.of(["new", "york", "city"], "ab" * 16).forbidden(""))
    assert not len(own.trie)
    found = made.restrict(scores[None], [[]], [[]], [own])[0]
    assert int(found.argmax()) == token("lima")
    assert set(torch.isneginf(found).nonzero().flatten().tolist()) == set(order[:3])


# -- meaning ----------------------------------------------------------------------------------------------------------

VECTORS = {"new york": [1.0, 0.0], "big apple": [0.8, 0.6], "apple": [0.3, 0.954], "big": [0.0, 1.0]}


def meaning(calls: list[str] | None = None) -> Any:
    def embed(texts: Sequence[str]) -> np.ndarray[Any, Any]:
        if calls is not None:
            calls.extend(texts)
        return np.array([VECTORS.get(text.lower(), [0.0, 1.0]) for text in texts])

    return embed


def test_meaning_is_seen_where_a_word_ends() -> None:
    made = restrictor(embed=meaning(), checked=len(WORDS))
    assert banned(made, ["new york"], ids("the big")) == {token("apple")}
    assert banned(made, ["new york"], ids("the")) == set()
    pieces = restrictor(BPE, meaning(), checked=len(BPE))
    stopped = banned(pieces, ["new york"], ids("the big apple", BPE))
    opening = {v for v in range(len(BPE)) if BPE.decode([v])[:1] in (" ", ",")}
    assert opening <= stopped  # what would end the word; what goes on with it may stay
    assert token("s", BPE) not in stopped
    assert BPE.eos_token_id in stopped


def test_a_soft_penalty_is_the_excess_over_delta() -> None:
    made = restrictor(embed=meaning(), strength=10.0, delta=0.5)
    scores = torch.zeros(1, len(WORDS))
    scores[0, token("apple")] = 1
    found = made.restrict(scores, [ids("big")], [[]], [made.forbidden(PhraseSet.of(["new york"]))])
    assert float(found[0, token("apple")]) == pytest.approx(1 - 10 * (0.8 - 0.5), abs=1e-6)
    assert float(found[0, token("nice")]) == 0


def test_each_text_is_embedded_once() -> None:
    calls: list[str] = []
    made = restrictor(embed=meaning(calls), checked=len(WORDS))
    for _ in range(2):
        banned(made, ["new york"], ids("big"))
    windows = [text for text in calls if text != "new york"]
    assert len(windows) == len(set(windows)) > 5
    assert "is" not in windows  # stop words alone mean nothing


# -- whole answers ----------------------------------------------------------------------------------------------------


def test_answers_that_hold_too_much_are_refused() -> None:
    own = restrictor().forbidden(PhraseSet.of(["new york city", "lima"]))
    made = restrictor()
    assert not made.refuses(ids("in new"), [], own)  # a third
    assert made.refuses(ids("in new york"), [], own)  # two thirds
    assert made.refuses(ids("lima"), [], own)
    assert not restrictor(max_prefix=0.7).refuses(ids("in new york"), [], own)
    sense = restrictor(embed=meaning())
    assert sense.refuses(ids("the big apple"), [], sense.forbidden(PhraseSet.of(["new york"])))
    assert not sense.refuses(ids("the apple"), [], sense.forbidden(PhraseSet.of(["new york"])))


def test_one_answer_alone_may_not_begin_more_than_half() -> None:
    assert banned(restrictor(decoding="masked"), ["new york city"], ids("in new")) == {token("york")}
    assert banned(restrictor(decoding="beam"), ["new york city"], ids("in new")) == set()
    assert banned(restrictor(decoding="masked"), ["new york city"], ids("in")) == set()


def test_where_all_is_banned_the_end_is_left() -> None:
    made = restrictor(checked=len(WORDS))
    phrases = [WORDS.decode([v]) for v in range(len(WORDS)) if v != WORDS.eos_token_id]
    own = made.forbidden(PhraseSet.of(phrases))
    scores = torch.full((4, len(WORDS)), -3.0)
    scores[:, [WORDS.eos_token_id, WORDS.unk_token_id]] = -torch.inf
    free = made.forbidden(PhraseSet.of(["lima"]))
    found = Restriction(made, [own, free], [[], []], 1)(torch.full((4, 1), 5), scores)
    assert (found[:2].argmax(-1) == WORDS.eos_token_id).all()
    assert torch.isneginf(found[2:, WORDS.eos_token_id]).all()
    assert int(torch.isneginf(found[2]).sum()) >= 2


# -- inside a search --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", [{"beams": 3}, {"decoding": "masked"}])
def test_a_search_never_says_the_phrase(rules: dict[str, Any], tiny: Any, request_: Any) -> None:
    made = Restrictor(tiny.tokenizer, Rules(**rules), tiny.stop_ids())
    prompts = [row[i % 2 :] for i, row in enumerate(tiny.encode_prompts(request_.forget)[:4])]
    answers = [text.split()[-2] for text in request_.forget["answer"][:4]]
    sets = [made.forbidden(PhraseSet.of([answer])) for answer in answers]
    batch = pad(prompts, tiny.pad_id, side="left")
    limits = {"max_new_tokens": 8, "pad_token_id": tiny.pad_id, "do_sample": False}

    def search(rows: list[int]) -> list[list[list[int]]]:
        part = {"attention_mask": batch["attention_mask"][rows], **limits}
        return hypotheses(
            tiny.model, batch["input_ids"][rows], part, made, [sets[i] for i in rows], [prompts[i] for i in rows]
        )

    with tiny.evaluating():
        together = search([0, 1, 2, 3])
        alone = [search([i])[0] for i in range(4)]
        plain = tiny.generate(prompts, max_new_tokens=8)
    assert together == alone
    for answer, found, free in zip(answers, together, plain, strict=True):
        assert answer in tiny.decode(free)
        assert found
        assert answer not in tiny.decode(found[0]).split()
        assert tiny.decode(found[0])


def test_masked_greedy_is_the_loop_by_hand(tiny: Any, request_: Any) -> None:
    made = Restrictor(tiny.tokenizer, Rules(decoding="masked"), tiny.stop_ids())
    prompt = tiny.encode_prompts(request_.forget)[0]
    answer = request_.forget["answer"][0].split()[-2]
    own = made.forbidden(PhraseSet.of([answer]))
    said: list[int] = []
    with tiny.evaluating() as model:
        while len(said) < 8 and not set(said) & made.stop:
            scores = model(torch.tensor([[*prompt, *said]])).logits[0, -1].clone()
            scores[[ids_[0] for ids_ in own.trie.phrases]] = -torch.inf  # one word, one token
            said.append(int(scores.argmax()))
        found = hypotheses(
            model, torch.tensor([prompt]), {"max_new_tokens": 8, "do_sample": False, "pad_token_id": tiny.pad_id}, made, [own],
            [prompt],
        )  # fmt: skip
    assert found == [[said]]
