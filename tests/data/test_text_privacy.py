"""The exponential mechanism against exact probabilities, its bound, the spans of words, and what the report says."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from efface.data.text_privacy import (
    TextPrivacyReport,
    TextPrivacyWarning,
    capitalised_spans,
    check_spans,
    clip_range,
    exponential_mechanism,
    listed_words,
    probabilities,
    replaced,
    rule,
    warn_of_empty_bound,
    word_spans,
)
from efface.errors import ConfigError, InputError, RequestError

LOGITS = torch.tensor([[-9.0, 0.5, 2.0, 30.0, 1.0], [0.0, 0.0, 4.0, -1.0, 2.5]])
CLIP = (-2.0, 6.0)


def by_loop(row: list[float], epsilon: float, allowed: list[bool]) -> list[float]:
    low, high = CLIP
    weights = [
        math.exp(min(max(x, low), high) * epsilon / (2 * (high - low))) if ok else 0.0
        for x, ok in zip(row, allowed, strict=True)
    ]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("epsilon", [0.1, 3.0, 250.0])
@pytest.mark.parametrize("mask", [None, [True, False, True, True, False]])
def test_probabilities_are_the_loops(epsilon: float, mask: list[bool] | None) -> None:
    found = probabilities(LOGITS, CLIP, epsilon, None if mask is None else torch.tensor(mask))
    wanted = [by_loop(row, epsilon, mask or [True] * 5) for row in LOGITS.tolist()]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), atol=1e-12, rtol=1e-9)


def test_draws_have_the_probabilities() -> None:
    n, epsilon = 20_000, 8.0
    drawn = exponential_mechanism(LOGITS[:1].expand(n, -1), CLIP, epsilon, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=5).double().numpy()
    right = chisquare(counts, [n * p for p in by_loop(LOGITS[0].tolist(), epsilon, [True] * 5)]).pvalue
    without_two = chisquare(counts, [n * p for p in by_loop(LOGITS[0].tolist(), 2 * epsilon, [True] * 5)]).pvalue
    assert right > 0.01
    assert without_two < 1e-6, "the test tells the missing factor 2"


def test_every_token_can_be_drawn_and_no_excluded_one() -> None:
    generator = torch.Generator().manual_seed(0)
    many = LOGITS[:1].expand(4000, -1)
    assert set(exponential_mechanism(many, CLIP, 1.0, generator).tolist()) == set(range(5))
    mask = torch.tensor([True, True, False, False, True])
    assert set(exponential_mechanism(many, CLIP, 1.0, generator, allowed=mask).tolist()) == {0, 1, 4}


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(*[st.floats(-50, 50)] * 2), min_size=2, max_size=12),
    st.floats(0.01, 50),
)
def test_no_two_texts_differ_by_more_than_epsilon(pairs: list[tuple[float, float]], epsilon: float) -> None:
    """The guarantee itself: whatever the logits of two texts, log P(w | x) - log P(w | x') <= epsilon."""
    both = probabilities(torch.tensor(pairs).T, CLIP, epsilon).log()
    assert float((both[0] - both[1]).abs().max()) <= epsilon + 1e-9


def test_the_bound_is_nearly_reached() -> None:
    """Half the sensitivity comes from the score and half from its normaliser: with many tokens both count in full."""
    one, other = torch.full((1, 50_000), -2.0), torch.full((1, 50_000), 6.0)
    one[0, 0], other[0, 0] = 6.0, -2.0
    both = probabilities(torch.cat([one, other]), CLIP, 2.0).log()
    assert 1.99 < float(both[0, 0] - both[1, 0]) <= 2.0


def test_the_same_generator_repeats() -> None:
    def run(seed: int) -> list[int]:
        many = LOGITS.repeat(30, 1)
        return exponential_mechanism(many, CLIP, 1.0, torch.Generator().manual_seed(seed)).tolist()  # type: ignore[no-any-return]

    assert run(1) == run(1) != run(2)


def test_the_clip_range_is_that_of_public_logits() -> None:
    assert clip_range([LOGITS[:1], LOGITS[1:]]) == (-9.0, 30.0)
    with pytest.raises(InputError, match="no logits"):
        clip_range([])
    with pytest.raises(InputError, match="all 1"):
        clip_range([torch.ones(2, 3)])
    with pytest.raises(InputError, match="row 0 hold NaN"):
        clip_range([torch.tensor([[1.0, math.nan]])])


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
def test_epsilon_must_be_positive(epsilon: float) -> None:
    with pytest.raises(ConfigError, match="epsilon="):
        probabilities(LOGITS, CLIP, epsilon)


@pytest.mark.parametrize("clip", [(1.0, 1.0), (2.0, 1.0), (math.nan, 1.0), (0.0, math.inf)])
def test_the_clip_range_must_be_one(clip: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=r"clip \["):
        probabilities(LOGITS, clip, 1.0)


def test_bad_logits_and_masks() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        broken = LOGITS.clone()
        broken[1, 2] = bad
        with pytest.raises(InputError, match="row 1 hold NaN or infinity"):
            probabilities(broken, CLIP, 1.0)
    for shape in ((5,), (0, 5), (2, 0)):
        with pytest.raises(InputError, match="logits of shape"):
            probabilities(torch.zeros(shape), CLIP, 1.0)
    for mask in (torch.zeros(5, dtype=torch.bool), torch.ones(4, dtype=torch.bool), torch.ones(5)):
        with pytest.raises(InputError, match="mask"):
            probabilities(LOGITS, CLIP, 1.0, mask)


def found(spans: list[tuple[int, int]], text: str) -> list[str]:
    return [text[a:b] for a, b in spans]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Paris, it is.", ["Paris", "it", "is"]),
        ("(Paris)", ["Paris"]),
        ("", []),
        (" ... ", []),
        ("O'Brien's twenty-one cats' -", ["O'Brien's", "twenty-one", "cats"]),
        ("born 12/05/1990", ["born", "12", "05", "1990"]),
        ("Jose\u0301 e\u0301t", ["Jose\u0301", "e\u0301t"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("می\u200cروم", ["می\u200cروم"]),
        ("a--b", ["a", "b"]),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert found(word_spans(text), text) == words


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=40))
def test_words_of_any_text_are_sound_and_leave_no_letter_out(text: str) -> None:
    spans = check_spans(text, word_spans(text))
    assert not any(c.isalnum() for c in replaced(text, spans, [""] * len(spans)))
    assert replaced(text, spans, [text[a:b] for a, b in spans]) == text


def test_capitals_and_lists() -> None:
    text = "The poet McKay met iPhone users in New  York, not York; yorkshire, PARIS's café"
    assert found(capitalised_spans(text), text) == ["The", "McKay", "iPhone", "New", "York", "York", "PARIS's"]
    listed = listed_words(["York", "New York", "paris", "café"])
    assert found(list(listed(text)), text) == ["New  York", "York", "PARIS", "café"]
    assert rule("words") is word_spans
    assert found(list(rule("listed", ["a.b"])("a.b axb")), "a.b axb") == ["a.b"], "no pattern, but a word"
    for words in ([], ["x", " "]):
        with pytest.raises(ConfigError, match="words to protect"):
            rule("listed", words)
    with pytest.raises(ConfigError, match="did you mean 'capitalised'"):
        rule("capitalized")
    with pytest.raises(ConfigError, match="protect=listed"):
        rule("words", ["x"])


def test_repeated_words_are_replaced_each_at_its_own_place() -> None:
    text = "the cat saw the other cat, the cat"
    spans = [span for span in word_spans(text) if text[slice(*span)] == "cat"]
    assert replaced(text, spans, ["one", "two", "three"]) == "the one saw the other two, the three"
    assert replaced(text, spans[1:2], ["dog"]) == "the cat saw the other dog, the cat"
    with pytest.raises(InputError, match="2 words for 3 spans"):
        replaced(text, spans, ["a", "b"])


@pytest.mark.parametrize("spans", [[(0, 0)], [(2, 1)], [(0, 4), (3, 5)], [(0, 9)], [(-1, 2)]])
def test_bad_spans(spans: list[tuple[int, int]]) -> None:
    with pytest.raises(RequestError, match="row 7: span"):
        check_spans("abcdef", spans, "row 7")


def told(epsilon: float = 0.5, most: int = 20) -> TextPrivacyReport:
    return TextPrivacyReport(
        epsilon=epsilon, most=most, replaced=31, rows=4, untouched=1, clip=(-5.0, 20.0), candidates=50, columns=("answer",),
        rule="every word", noise_from="seed",
    )  # fmt: skip


def test_the_composed_bound_and_its_words() -> None:
    assert told().row_epsilon == 10.0
    text = " ".join(told().lines())
    for part in ("epsilon 0.5 for each replaced word", "sensitivity 25", "epsilon 10 for a row", "at most 20 words",
                 "whole vocabulary", "not replaced stands there as it was", "do not know it", "1 rows have none"):  # fmt: skip
        assert part in text
    assert "nearly nothing" not in text
    assert "nearly nothing" in " ".join(told(most=21).lines())


def test_above_ten_it_warns() -> None:
    with pytest.warns(TextPrivacyWarning, match="compose to 2000"):
        warn_of_empty_bound(told(100.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_empty_bound(told())
