"""Form bias: exactly zero for an untouched model, one for a one-form edit, and its refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from efface.audit.benchmarks.form_bias import form_bias, item_scores, letters, spelled
from efface.data.columns import canonical
from efface.errors import InputError

RNG = np.random.default_rng(0)
BEFORE = {"qa": RNG.uniform(0.5, 1, 30), "blank": RNG.uniform(0.2, 1, 40), "spelled": RNG.uniform(0.1, 0.4, 20)}


def test_an_untouched_model_gives_zero() -> None:
    found = form_bias(BEFORE, BEFORE)
    assert found.spread.value == found.spread.low == found.spread.high == 0.0
    assert all(one.change.value == one.change.low == one.change.high == 0.0 for one in found.forms.values())


def test_one_form_only_and_an_even_fall() -> None:
    one = form_bias(BEFORE, {**BEFORE, "qa": BEFORE["qa"] * 0})
    assert one.spread.value == 1.0
    assert one.forms["qa"].change.value == -1.0
    even = form_bias(BEFORE, {name: scores / 4 for name, scores in BEFORE.items()})
    assert even.spread.value == pytest.approx(0.0, abs=1e-12)
    assert even.forms["blank"].change.value == pytest.approx(-0.75)


def test_relative_change_is_of_the_means_not_a_mean_of_changes() -> None:
    found = form_bias({"a": [1.0, 0.1], "b": [0.5, 0.5]}, {"a": [0.5, 0.1], "b": [0.5, 0.5]})
    assert found.forms["a"].change.value == pytest.approx((0.6 - 1.1) / 1.1)


def test_intervals_cover_and_groups_widen_them() -> None:
    names = [i // 10 for i in range(40)]
    after = {"qa": np.repeat(RNG.uniform(0, 1, 4), 10), "blank": np.repeat(RNG.uniform(0, 1, 4), 10)}
    before = {"qa": np.ones(40), "blank": np.ones(40)}
    alone = form_bias(before, after)
    grouped = form_bias(before, after, groups={"qa": names, "blank": names})
    for found in (alone, grouped):
        for one in found.forms.values():
            assert one.change.low is not None
            assert one.change.low <= one.change.value <= one.change.high
    width = [found.forms["qa"].change.high - found.forms["qa"].change.low for found in (alone, grouped)]  # type: ignore[operator]
    assert width[1] > 1.5 * width[0], "four subjects say less than forty items"
    again = form_bias(before, after, groups={"qa": names, "blank": names})
    assert again.spread == grouped.spread, "the same seed gives the same interval"


def test_lines_show_every_form() -> None:
    lines = form_bias(BEFORE, BEFORE).lines()
    assert [line.split(":")[0] for line in lines] == ["qa", "blank", "spelled", "form bias (max - min)"]


def test_scores_are_length_normalised_probabilities(tiny: Any, request_: Any) -> None:
    scores = item_scores(tiny, request_.forget)
    rows = tiny.encode_rows(request_.forget)
    from efface.train.reference import reference_logp

    expected = np.exp(reference_logp(tiny, rows).double().numpy() / [row.n_targets for row in rows])
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert scores.shape == (len(request_.forget),)


def test_spelling_and_letters(tiny: Any) -> None:
    assert spelled("new york") == "n\ne\nw\ny\no\nr\nk"
    assert letters(["A", "b) Paris", " A.", "C"]) == {"A": 2, "B": 1, "C": 1}
    rows = canonical([{"question": "who ?", "answer": spelled("red")}], "rows")
    assert item_scores(tiny, rows).shape == (1,)


@pytest.mark.parametrize(
    ("before", "after", "match"),
    [
        ({"a": [1.0]}, {"a": [1.0]}, "two forms"),
        ({"a": [1.0], "b": [1.0]}, {"a": [1.0], "c": [1.0]}, "two forms"),
        ({"a": [1.0], "b": [1.0]}, {"a": [1.0], "b": [1.0, 1.0]}, "the same items"),
        ({"a": [1.0], "b": [1.5]}, {"a": [1.0], "b": [1.0]}, "outside 0 to 1"),
        ({"a": [1.0], "b": [np.nan]}, {"a": [1.0], "b": [1.0]}, "outside 0 to 1"),
        ({"a": [1.0], "b": [0.0]}, {"a": [1.0], "b": [1.0]}, "score is 0"),
    ],
)
def test_bad_scores(before: Any, after: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        form_bias(before, after)


def test_bad_groups_and_letters() -> None:
    with pytest.raises(InputError, match="one key an item"):
        form_bias(BEFORE, BEFORE, groups={"qa": [1]})
    with pytest.raises(InputError, match="letter of an option"):
        letters(["A", "1"])
