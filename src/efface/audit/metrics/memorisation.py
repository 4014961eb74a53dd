"""What a model still completes word by word: exact memorisation and extraction strength.

Both read the ranks of the answer tokens (0 = the model's first choice, given the true tokens before it), so
they cost no further pass. Extraction strength follows Carlini et al. 2023 in the form of Wang et al. 2024 (1
- k/L); a text whose last token is wrong scores 0, where open-unlearning's loop leaves 1/L.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from efface.audit.table import TokenScores
from efface.errors import InputError

Floats = npt.NDArray[np.float64]


def exact_memorisation(scores: TokenScores, *, drop_last: bool = False) -> Floats:
    """[N] share of each text's tokens that are the model's first choice.

    Args:
        scores: of one answer form.
        drop_last: leave out the last token, the end of the answer, as open-unlearning does.

    Raises:
        InputError: a text with no token left.
    """
    right, starts, lengths = _first_choices(scores, drop_last)
    if not len(starts):
        return np.zeros(0)
    result: Floats = np.add.reduceat(right.astype(np.float64), starts) / lengths
    return result


def extraction_strength(scores: TokenScores, *, drop_last: bool = False) -> Floats:
    """[N] 1 - k/L, where k is the smallest start from which every later token is the model's first choice.

    1 means that the prompt alone brings back the whole text, 0 that not even the last token comes back.

    Args:
        scores: of one answer form.
        drop_last: leave out the last token, the end of the answer.

    Raises:
        InputError: a text with no token left.
    """
    right, starts, lengths = _first_choices(scores, drop_last)
    if not len(starts):
        return np.zeros(0)
    position = np.arange(len(right)) - np.repeat(starts, lengths)
    after_mistake = np.where(right, 0, position + 1)  # one past the last mistake is where the tail begins
    result: Floats = 1.0 - np.maximum.reduceat(after_mistake, starts) / lengths
    return result


def _first_choices(
    scores: TokenScores, drop_last: bool
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All texts' "is the first choice" end to end, each text's start, and its length."""
    rows = [row[:-1] for row in scores.rank] if drop_last else list(scores.rank)
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    if (lengths == 0).any():
        raise InputError(
            f"the text of id '{scores.ids[int(np.argmin(lengths))]}' has no token to score",
            "one token or more, the dropped last one not counted",
            "drop that example or score with drop_last=False",
        )
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)[: len(rows)]
    right = np.concatenate(rows) == 0 if rows else np.zeros(0, dtype=np.bool_)
    return right, starts, lengths
