"""Intrinsic scores on edits of known size, and the similarity of answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from efface.audit.metrics.concept_vectors import answers, article_tokens, behaviour, capture, intrinsic, jaccard
from efface.errors import ConfigError, InputError, RequestError
from efface.measure.value_vectors import Place, value_vector

PLACES = [Place(0, 3), Place(1, 5), Place(1, 6)]


def test_an_untouched_model_scores_one(tiny: Any) -> None:
    before = capture(tiny, PLACES, k=10)
    found = intrinsic(before, capture(tiny, PLACES, k=10, before=before), article=before.top[0].tolist())
    for scores in (found.jaccard, found.jaccard_first_head, found.jaccard_bottom, found.cosine):
        np.testing.assert_allclose(scores, 1.0, atol=1e-9)
    np.testing.assert_allclose(found.l2, 0.0)
    assert found.related[0] == 1.0


def test_one_changed_vector(tiny: Any) -> None:
    before = capture(tiny, PLACES, k=10)
    with torch.no_grad():
        value_vector(tiny, PLACES[1]).mul_(-2.0)
    after = capture(tiny, PLACES, k=10, before=before)
    found = intrinsic(before, after)
    np.testing.assert_allclose(found.cosine, [1, -1, 1], atol=1e-6)
    np.testing.assert_allclose(found.l2, [0, 3 * float(before.vectors[1].norm()), 0], rtol=1e-6)
    assert after.top[1].tolist() == before.bottom[1].tolist()
    assert found.jaccard[0] == found.jaccard[2] == 1.0
    assert np.isnan(found.related).all()
    assert set(found.means()) == {"jaccard", "jaccard_first_head", "jaccard_bottom", "cosine", "l2"}


def test_both_embeddings_are_kept_apart(tiny: Any) -> None:
    before = capture(tiny, PLACES, k=10)
    with torch.no_grad():  # tied: T(v) moves though no value vector does
        tiny.model.get_output_embeddings().weight.copy_(tiny.model.get_output_embeddings().weight.flip(0))
    found = intrinsic(before, capture(tiny, PLACES, k=10, before=before))
    np.testing.assert_allclose(found.jaccard_first_head, 1.0)
    np.testing.assert_allclose(found.cosine, 1.0, atol=1e-9)
    assert found.jaccard.max() < 1.0


def test_related_tokens() -> None:
    assert jaccard(torch.tensor([[1, 2, 3]]), torch.tensor([[3, 4, 5]])).tolist() == [0.2]


def test_related_rate_counts_what_survives(tiny: Any) -> None:
    before = capture(tiny, PLACES[:1], k=6)
    with torch.no_grad():
        value_vector(tiny, PLACES[0]).copy_(torch.linspace(-1, 1, 32))
    after = capture(tiny, PLACES[:1], k=6, before=before)
    article = before.top[0, :4].tolist()
    expected = len(set(article) & set(after.top[0].tolist())) / 4
    assert intrinsic(before, after, article=article).related.tolist() == [expected]


def test_behaviour_of_equal_and_other_answers() -> None:
    same = behaviour(["the red box", ""], ["the red box", ""])
    assert (same.bleu.value, same.rouge_l.value, same.empty) == (1.0, 1.0, 1)
    other = behaviour(["nothing here", ""], ["the red box", "a box"])
    assert (other.bleu.value, other.rouge_l.value, other.empty) == (0.0, 0.0, 1)
    edited, original = ["the red"], ["the red box is here now"]
    assert behaviour(edited, original).bleu.value != behaviour(edited, original, published_direction=True).bleu.value
    assert behaviour(edited, original, published_direction=True).bleu.value == behaviour(original, edited).bleu.value


def test_a_model_against_itself(tiny: Any, request_: Any) -> None:
    texts = answers(tiny, request_.forget, max_new_tokens=12, batch_size=3)
    assert texts == answers(tiny, request_.forget, max_new_tokens=12, batch_size=8)
    assert any(texts)
    assert behaviour(texts, texts).bleu.value == 1.0


def test_bad_input(tiny: Any, retrained_folder: Any) -> None:
    with pytest.raises(ConfigError, match="value vector 200 of layer 1"):
        capture(tiny, [Place(1, 200)])
    with pytest.raises(InputError, match="no value vectors"):
        capture(tiny, [])
    before = capture(tiny, PLACES, k=5)
    with pytest.raises(InputError, match="do not belong together"):
        intrinsic(before, before)
    with pytest.raises(InputError, match="other vectors"):
        capture(tiny, PLACES[:1], before=before)
    with pytest.raises(RequestError, match="an empty article"):
        intrinsic(before, capture(tiny, PLACES, k=5, before=before), article=[])
    with pytest.raises(RequestError, match="an empty article"):
        article_tokens(tiny, "  ")
    assert article_tokens(tiny, "red red green") == sorted(tiny.tokenizer("red green")["input_ids"])
    for pair in (([], []), (["a"], [])):
        with pytest.raises(InputError, match="answers"):
            behaviour(*pair)
