"""The share of flagged continuations: the continuation alone, the classifier's own error, fluency, and the relative drop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from efface.audit.metrics.harmful_rate import (
    classifier_error,
    continuation_nll,
    effectiveness,
    harmful_rate,
    text_classifier,
)
from efface.audit.observe import observe
from efface.errors import InputError


def bad_word(texts: Sequence[str]) -> list[bool]:
    return ["bad" in text for text in texts]


HELD = ["a bad one", "bad", "good", "fine", "not so bad", "well"]
TRUTH = [True, True, False, False, False, True]
ERROR = classifier_error(bad_word, HELD, TRUTH)


def test_the_classifiers_own_error() -> None:
    assert ERROR.error.value == pytest.approx(2 / 6)
    assert ERROR.false_flags.value == pytest.approx(1 / 3)
    assert ERROR.missed.value == pytest.approx(1 / 3)
    assert ERROR.error.low is not None
    assert ERROR.error.low < 2 / 6 < (ERROR.error.high or 0)
    with pytest.raises(InputError, match="one label a text"):
        classifier_error(bad_word, HELD, TRUTH[:2])
    with pytest.raises(InputError, match="one kind only"):
        classifier_error(bad_word, HELD, [True] * 6)


def test_the_share_with_fluency_beside_it() -> None:
    prompts, texts = ["how bad is it", "and this", "so", "then"], ["bad bad", "fine words here", "#### ####", ""]
    found = harmful_rate(prompts, texts, bad_word, ERROR, nll=[1.0, 2.0, 9.0, 4.0])
    assert found.rate.value == 0.25
    assert found.flags == (True, False, False, False), "the prompt is not scored"
    assert found.repeated.value == pytest.approx((0.5 + 0 + 0 + 0) / 4)
    assert found.empty.value == 0.5, "marks without a word are gibberish, not harmlessness"
    assert found.nll is not None
    assert found.nll.value == 4.0
    assert found.classifier is ERROR
    assert found.rate.low is not None
    assert harmful_rate(prompts, texts, bad_word, ERROR).nll is None


def test_a_text_that_holds_its_prompt_is_refused() -> None:
    with pytest.raises(InputError, match="text 1 begins with its prompt"):
        harmful_rate(["a", "How bad is it?"], ["b", "how bad is it? not very"], bad_word, ERROR)
    with pytest.raises(InputError, match="2 continuations of 1 prompts"):
        harmful_rate(["a"], ["b", "c"], bad_word, ERROR)
    with pytest.raises(InputError, match="1 values of nll"):
        harmful_rate(["a", "b"], ["c", "d"], bad_word, ERROR, nll=[0.0])
    with pytest.raises(InputError, match="gave 1 answers"):
        harmful_rate(["a", "b"], ["c", "d"], lambda texts: [True], ERROR)


def rate(flags: list[int]) -> Any:
    return harmful_rate(["p"] * len(flags), ["bad" if flag else "fine" for flag in flags], bad_word, ERROR)


def test_the_relative_drop_pairs_the_prompts() -> None:
    before, after = rate([1, 1, 1, 1, 0, 0, 0, 0] * 10), rate([1, 0, 0, 0, 0, 0, 0, 0] * 10)
    found = effectiveness(before, after)
    assert found.drop.value == pytest.approx(0.75)
    assert found.drop.n == 80
    assert found.drop.low is not None
    assert found.drop.high is not None
    assert found.drop.low < 0.75 < found.drop.high
    assert found.formula == "(rate before - rate after) / rate before"
    assert "Acc_cls" in found.alias
    rng = np.random.default_rng(0)  # the bootstrap by hand
    pairs = np.stack([before.flags, after.flags], axis=1).astype(float)
    draws = []
    for _ in range(2000):
        sample = pairs[rng.integers(0, 80, 80)].mean(axis=0)
        draws.append(1 - sample[1] / sample[0])
    assert found.drop.low == pytest.approx(np.quantile(draws, 0.025), abs=0.02)
    assert found.drop.high == pytest.approx(np.quantile(draws, 0.975), abs=0.02)
    with pytest.raises(InputError, match="no continuation was flagged before"):
        effectiveness(rate([0, 0]), rate([0, 0]))
    with pytest.raises(InputError, match="2 prompts before and 3 after"):
        effectiveness(rate([1, 0]), rate([1, 0, 0]))


def test_the_fluency_figure_is_the_mean_nll(tiny: Any, request_: Any) -> None:
    some = request_.forget.select(range(3))
    found = continuation_nll(tiny, some["question"], some["answer"])
    table = observe(tiny, some.select_columns(["id", "question", "answer"]), generations=False).select("answer")
    assert found == pytest.approx([-float(np.mean(logp)) for logp in table.logp], rel=1e-5)
    assert continuation_nll(tiny, ["Which colour does person0 like ?"], [""])[0] > 0, "an empty one is its end token"
    strange = continuation_nll(tiny, some["question"], ["red red red red"] * 3)
    assert min(strange) > 3 * max(found), "gibberish costs the model before many nats"


def test_a_classifier_and_its_held_out_error() -> None:
    rng = np.random.default_rng(0)
    words = {True: ["goal", "match", "team", "score"], False: ["bank", "share", "price", "trade"]}
    truth = [bool(i % 2) for i in range(200)]
    texts = [" ".join(rng.choice(words[kind], 5)) for kind in truth]
    found = text_classifier(texts, truth)
    assert found.error.error.value == 0.0
    assert found.error.error.n == 60, "measured on what it was not fitted on"
    assert found(["the team had a goal", "the price of a share"]) == [True, False]
    assert found([]) == []
    shuffled = text_classifier(texts, list(rng.permutation(truth)))
    assert shuffled.error.error.value > 0.25
    with pytest.raises(InputError, match="ten or more of each"):
        text_classifier(texts[:12], truth[:12])
