"""Fluency: how varied a text is, as the entropy of its word n-grams.

F = 100 * (2/3 H2 + 4/3 H3) / 2, with Hn the base-2 entropy of the frequencies of a text's word n-grams (Zhang et al. 2018, as
ROME and RWKU report it). A text that repeats one word gives 0; one of n different words about 100 log2 n. It grows with
length, so compare texts of one limit. Departures from the official code: words and marks are split here, not by NLTK (which
downloads its tables), and a text too short for any n-gram gives 0, where the official code gives NaN.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""Weight of each n (RWKU, eval_fluency)."""
_TOKEN = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")


def entropy(tokens: Sequence[str], n: int) -> float:
    """Entropy in bits of the n-grams' frequencies; 0 where there is none."""
    counts = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)).values()
    total = sum(counts)
    return math.fsum(-c / total * math.log2(c / total) for c in counts) + 0.0 if total else 0.0


def ngram_entropy(text: str) -> float:
    """F of one text, >= 0."""
    tokens = _TOKEN.findall(text)
    return 100 * sum(weight * entropy(tokens, n) for n, weight in WEIGHTS.items()) / len(WEIGHTS)


__all__ = ["entropy", "ngram_entropy"]
