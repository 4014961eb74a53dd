"""Sentence BLEU with smoothing method 3 (Chen and Cherry, WMT 2014: NIST's geometric sequence).

BLEU-4 of Papineni et al. (ACL 2002): the geometric mean of clipped n-gram precisions, n = 1 to 4, times exp(1 - r / c) for
a candidate of c words shorter than its reference of r. Where a precision is 0 it becomes 1 / (2^i * number of n-grams), with
i = 1 for the first such n, 2 for the second. BLEU is not symmetric: which text is the reference matters.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu(candidate: str, reference: str, *, order: int = 4) -> float:
    """BLEU of a candidate against one reference, words by white space; in [0, 1].

    0 without a common word; 1 for equal texts, two empty ones included, however short.
    """
    ours, theirs = candidate.split(), reference.split()
    if ours == theirs:
        return 1.0
    if not ours or not theirs:
        return 0.0
    logs, smoothed = 0.0, 0
    for n in range(1, order + 1):
        grams = _grams(ours, n)
        total = max(1, sum(grams.values()))
        hits = sum((grams & _grams(theirs, n)).values())
        if hits == 0:
            if n == 1:
                return 0.0
            smoothed += 1
            logs -= math.log(2.0**smoothed * total)
        else:
            logs += math.log(hits / total)
    penalty = 1.0 if len(ours) > len(theirs) else math.exp(1 - len(theirs) / len(ours))
    return penalty * math.exp(logs / order)
