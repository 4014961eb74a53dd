"""Does this prompt aim at what is to be forgotten? A gate says so, with a threshold that bounds its false alarms.

A gate scores texts in [0, 1] and fires above its threshold. The threshold is calibrated on prompts that must pass
(`calibrated`): a new prompt like them is stopped with probability at most the given rate. Which words a gate knows is not
what it must learn, but whom: fit on some forms of the question, and test on others.

Kinds: `WordGate` here (TF-IDF and logistic regression; no model needed); others stand with the systems that brought them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from efface.errors import RequestError, RunError
from efface.numerics.conformal import upper_quantile
from efface.run.files import read_json, storage, write_json

Floats = npt.NDArray[np.float64]


class PromptGate(ABC):
    """The base class of gates.

    Attributes:
        threshold: a prompt with a score above it is stopped.
    """

    kind: ClassVar[str]
    threshold: float = 0.5

    @abstractmethod
    def scores(self, texts: Sequence[str]) -> Floats:
        """[n] p(forget) of each prompt's text, in [0, 1]."""

    @abstractmethod
    def _write(self, folder: Path) -> dict[str, Any]:
        """Write tensors and return the rest as JSON values."""

    @classmethod
    @abstractmethod
    def _read(cls, folder: Path, facts: dict[str, Any]) -> Self: ...

    def bind(self, subject: Any) -> None:  # noqa: B027 - most gates have nothing to do
        """Give the gate the bare model that it stands before; most need none."""

    def fires(self, texts: Sequence[str]) -> npt.NDArray[np.bool_]:
        """[n] whether each prompt is stopped."""
        return np.asarray(self.scores(texts) > self.threshold)

    def calibrated(self, passing: Sequence[str], rate: float) -> Self:
        """This gate with the conformal threshold of prompts that must pass; they must not be those that it was fitted on.

        Args:
            passing: n prompts like those that the model answers.
            rate: the share of them that may be stopped, at most (in expectation).

        Raises:
            InputError: too few prompts for the rate.
        """
        self.threshold = upper_quantile(self.scores(passing), rate)
        return self

    def write(self, folder: Path) -> None:
        """Store the gate in a folder of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        with storage(folder):
            facts = self._write(folder)
        write_json(folder / "gate.json", {"kind": self.kind, "threshold": self.threshold, **facts})

    @staticmethod
    def read(folder: Path) -> PromptGate:
        """A stored gate of any kind.

        Raises:
            RunError: no gate there, or of an unknown kind.
        """
        facts = read_json(folder / "gate.json")
        kinds = {cls.kind: cls for cls in _subclasses(PromptGate) if "kind" in vars(cls)}
        if not isinstance(facts, dict) or facts.get("kind") not in kinds:
            raise RunError(f"{folder / 'gate.json'} is no gate", f"a kind among {', '.join(kinds)}", "fit it again")
        gate: PromptGate = kinds[facts["kind"]]._read(folder, facts)
        gate.threshold = float(facts["threshold"])
        return gate


def _subclasses(parent: type[Any]) -> list[type[Any]]:
    own: list[type[Any]] = parent.__subclasses__()
    return [cls for child in own for cls in (child, *_subclasses(child))]


def check_both(forget: Sequence[str], keep: Sequence[str]) -> None:
    """Refuse a gate that would see one class only."""
    if not len(forget) or not len(keep):
        raise RequestError(
            f"{len(forget)} prompts to stop and {len(keep)} to let pass", "some of each", "give a retain set"
        )


class WordGate(PromptGate):
    """TF-IDF over words and word pairs, and logistic regression with balanced classes.

    Args:
        vocabulary: term -> column.
        idf: [D] inverse document frequencies.
        weights: [D], and `bias`.
    """

    kind = "words"

    def __init__(self, vocabulary: dict[str, int], idf: Floats, weights: Floats, bias: float) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.vocabulary, self.idf, self.weights, self.bias = vocabulary, idf, weights, bias
        self._vectors = TfidfVectorizer(vocabulary=vocabulary, **_WORDS)
        self._vectors.idf_ = idf

    @classmethod
    def fit(cls, forget: Sequence[str], keep: Sequence[str], *, seed: int = 0) -> WordGate:
        """Fit on prompts to stop and prompts to let pass.

        Raises:
            RequestError: one of the two is empty.
        """
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        check_both(forget, keep)
        vectors = TfidfVectorizer(**_WORDS)
        features = vectors.fit_transform([*forget, *keep])
        model = LogisticRegression(max_iter=1000, C=10.0, class_weight="balanced", random_state=seed)
        model.fit(features, [1] * len(forget) + [0] * len(keep))
        vocabulary = {str(term): int(column) for term, column in vectors.vocabulary_.items()}
        return cls(vocabulary, vectors.idf_, model.coef_[0], float(model.intercept_[0]))

    def scores(self, texts: Sequence[str]) -> Floats:
        features = self._vectors.transform(list(texts))
        p = 1 / (1 + np.exp(-(features @ self.weights + self.bias)))
        return np.asarray(np.where(np.diff(features.indptr) > 0, p, 0.0), dtype=np.float64)  # no known word: no reason

    def _write(self, folder: Path) -> dict[str, Any]:
        tensors = {"idf": torch.from_numpy(self.idf), "weights": torch.from_numpy(np.array(self.weights))}
        save_file(tensors, folder / "gate.safetensors")
        return {"vocabulary": self.vocabulary, "bias": self.bias}

    @classmethod
    def _read(cls, folder: Path, facts: dict[str, Any]) -> WordGate:
        tensors = load_file(folder / "gate.safetensors")
        return cls(facts["vocabulary"], tensors["idf"].numpy(), tensors["weights"].numpy(), float(facts["bias"]))


_WORDS: dict[str, Any] = {"sublinear_tf": True, "ngram_range": (1, 2), "token_pattern": r"(?u)\S+"}
"""A token is what stands between spaces, in lower case: names of one letter count."""

__all__ = ["PromptGate", "WordGate", "check_both"]
