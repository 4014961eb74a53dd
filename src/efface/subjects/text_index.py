"""Nearest texts by cosine: of a sentence encoder, or of TF-IDF words where there is none.

Small and exact: the texts of one request, not a corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from efface.errors import InputError

Floats = npt.NDArray[np.float64]
Embed = Callable[[Sequence[str]], Floats]
"""[n] texts -> [n, D] rows of any length."""


def unit_rows(rows: npt.ArrayLike) -> Floats:
    """[n, D] rows of length one; a row of zeros stays."""
    values = np.asarray(rows, dtype=np.float64)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.where(norms > 0, norms, 1.0))


def word_embedding(texts: Sequence[str]) -> Embed:
    """TF-IDF over the words of some texts; a text without any of them is a row of zeros."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\S+").fit(list(texts))
    return lambda rows: np.asarray(vectors.transform(list(rows)).toarray(), dtype=np.float64)


def sentence_embedding(encoder: str = "sentence-transformers/all-MiniLM-L6-v2") -> Embed:
    """A sentence encoder by folder or hub id (see `load_encoder`)."""
    from efface.subjects.load import load

    subject = load(encoder, "encoder")
    return lambda rows: np.asarray(subject.embed(list(rows)), dtype=np.float64)


class TextIndex:
    """Some texts and their unit embeddings.

    Args:
        texts: at least one.
        embed: default: TF-IDF words of the texts themselves.

    Raises:
        InputError: no text.
    """

    def __init__(self, texts: Sequence[str], embed: Embed | None = None) -> None:
        if not len(texts):
            raise InputError("no text to search", "at least one")
        self.texts = list(texts)
        self.embed = embed or word_embedding(self.texts)
        self.rows = unit_rows(self.embed(self.texts))

    def similarities(self, queries: Sequence[str]) -> Floats:
        """[q, n] cosines."""
        return np.asarray(unit_rows(self.embed(list(queries))) @ self.rows.T)

    def nearest(self, queries: Sequence[str], k: int = 1) -> npt.NDArray[np.int64]:
        """[q, k] indices, the nearest first; ties by index."""
        order = np.argsort(-self.similarities(queries), axis=1, kind="stable")
        return np.asarray(order[:, : min(k, len(self.texts))], dtype=np.int64)


__all__ = ["Embed", "TextIndex", "sentence_embedding", "unit_rows", "word_embedding"]
