"""Views of texts: the text itself under new dropout, or with words deleted, swapped or cropped.

Papers: SimCSE, Gao et al., arXiv 2104.08821: the same text twice, dropout the only difference, beats discrete changes
(its table 1); word deletion and swap as in EDA, Wei and Zou, arXiv 1901.11196; the crop keeps one span (SimCSE, table 1).
Words are what white space separates: in scripts without spaces the discrete views change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Generator

from efface.errors import InputError
from efface.run.settings import Settings


class TextViewConfig(Settings):
    """Which change, and how much of it."""

    view: Literal["same", "delete", "swap", "crop"] = Field(
        "same",
        description="same: dropout makes the difference (SimCSE); delete, swap: words (EDA); crop: keep one span",
    )
    share: float = Field(
        0.1, gt=0, lt=1, description="share of words deleted, swapped or cropped off; EDA, SimCSE: 0.1"
    )


class TextViews:
    """`views(texts, generator)` -> as many texts, none of them empty."""

    def __init__(self, config: TextViewConfig) -> None:
        self.config = config

    def __call__(self, texts: Sequence[str], generator: Generator) -> list[str]:
        """One view of each text. A text of one word, and with `same` every text, comes back as it is.

        Raises:
            InputError: a text without any word.
        """
        for i, text in enumerate(texts):
            if not text.strip():
                raise InputError(f"text {i} is empty", "texts with a word at least", "drop empty rows before training")
        if self.config.view == "same":
            return list(texts)
        change = {"delete": deleted, "swap": swapped, "crop": cropped}[self.config.view]
        found = []
        for text in texts:
            words = text.split()
            after = change(words, self.config.share, generator)
            found.append(text if after == words else " ".join(after))
        return found


def deleted(words: list[str], share: float, generator: Generator) -> list[str]:
    """Each word falls away with chance `share`; if all would, one of them stays."""
    gone = torch.rand(len(words), generator=generator, device=generator.device) < share
    kept = [word for word, out in zip(words, gone.tolist(), strict=True) if not out]
    return kept or [words[_index(len(words), generator)]]


def swapped(words: list[str], share: float, generator: Generator) -> list[str]:
    """Two words at different places change places, `share` of the number of words times, at least once."""
    n = len(words)
    if n < 2:
        return words
    found = list(words)
    for _ in range(max(1, round(share * n))):
        i = _index(n, generator)
        j = (i + 1 + _index(n - 1, generator)) % n
        found[i], found[j] = found[j], found[i]
    return found


def cropped(words: list[str], share: float, generator: Generator) -> list[str]:
    """A span of 1 - `share` of the words (rounded, at least one), at a random place."""
    keep = max(1, round((1 - share) * len(words)))
    start = _index(len(words) - keep + 1, generator)
    return words[start : start + keep]


def _index(n: int, generator: Generator) -> int:
    return int(torch.randint(n, (1,), generator=generator, device=generator.device))
