"""Membership inference scores from a score table, PrivLeak, and a baseline that never queries the model.

One sign convention: a larger score speaks for membership (several published codes return the negative).
Scores are functions of `TokenScores`, so every attack costs nothing after the one pass. The blind baseline
sees only the texts: where it tells members from non-members, the two sets differ in kind, and no attack on
them measures membership.

Sources: LOSS (Yeom et al. 2018), Zlib and reference (Carlini et al. 2012.07805), Min-K% (2310.16789),
Min-K%++ (2404.02936), PrivLeak (MUSE, 2407.06460). Departures from the official codes: floor(kT) is at least
one token, the deviation in Min-K%++ is clamped and the hits are counted, and reference scores are matched by
id.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from efface.audit.finding import Estimate
from efface.audit.metrics.intervals import LEVEL, RESAMPLES, bootstrap
from efface.audit.metrics.roc import auc_of_levels, to_levels
from efface.audit.table import TokenScores
from efface.errors import InputError

Floats = npt.NDArray[np.float64]

K = 0.2  # Min-K% paper and both official codes
MIN_TOKENS = 2
MIN_DEVIATION = 1e-6
_WORD = re.compile(r"\w+")
BLIND_LIMIT = 0.6  # a blind AUC from here on: the sets differ in kind


@dataclass(frozen=True)
class Clamped:
    """Min-K%++ scores [N] and the number of tokens whose deviation was raised to `MIN_DEVIATION`."""

    scores: Floats
    hits: int
    tokens: int


@dataclass(frozen=True)
class Blind:
    """AUC of a classifier that never queries the model; `leaks` when it reaches `BLIND_LIMIT`."""

    auc: Estimate
    leaks: bool


def loss(scores: TokenScores) -> Floats:
    """[N] LOSS: mean log-probability per token, in nats.

    Raises:
        InputError: a text without tokens.
    """
    _require_tokens(scores, 1)
    return scores.mean_logp


def zlib(scores: TokenScores) -> Floats:
    """[N] Zlib: mean log-probability per token over the compressed size in bytes (the official form).

    A mean over a total favours long texts: compare texts of like length.

    Raises:
        InputError: a text without tokens or without a compressed size.
    """
    _require_tokens(scores, 1)
    if (scores.zlib_bytes <= 0).any():
        row = int(np.argmax(scores.zlib_bytes <= 0))
        raise InputError(f"id '{scores.ids[row]}' has a compressed size of {scores.zlib_bytes[row]}", "a positive size")
    result: Floats = scores.mean_logp / scores.zlib_bytes
    return result


def lowercase(scores: TokenScores, lowered: TokenScores) -> Floats:
    """[N] loss of the lower-cased text over the loss of the text (MUSE's PPL/lower, member-like): a member loses more.

    Raises:
        InputError: other texts in the two tables, or a text without tokens.
    """
    _require_tokens(scores, 1)
    _require_tokens(lowered, 1)
    if scores.ids != lowered.ids:
        raise InputError("other texts among the lower-cased ones", "the same ids in the same order")
    result: Floats = -lowered.mean_logp / np.maximum(-scores.mean_logp, 1e-12)
    return result


def min_k(scores: TokenScores, k: float = K, *, min_tokens: int = MIN_TOKENS) -> Floats:
    """[N] Min-K%: mean of the max(1, floor(kT)) lowest token log-probabilities, in nats.

    Raises:
        InputError: k outside (0, 1], or a text of fewer than `min_tokens` tokens.
    """
    _require_tokens(scores, min_tokens)
    return np.array([_lowest(row, k) for row in scores.logp], dtype=np.float64)


def min_k_plus_plus(scores: TokenScores, k: float = K, *, min_tokens: int = MIN_TOKENS) -> Clamped:
    """Min-K%++: Min-K% over (log p - mu) / sigma, mu and sigma under the whole next-token distribution.

    Raises:
        InputError: k outside (0, 1], or a text of fewer than `min_tokens` tokens.
    """
    _require_tokens(scores, min_tokens)
    values, hits, tokens = [], 0, 0
    for logp, mean, var in zip(scores.logp, scores.mean, scores.var, strict=True):
        deviation = np.sqrt(np.maximum(var, 0.0))
        hits += int((deviation < MIN_DEVIATION).sum())
        tokens += len(logp)
        values.append(_lowest((logp - mean) / np.maximum(deviation, MIN_DEVIATION), k))
    return Clamped(scores=np.array(values, dtype=np.float64), hits=hits, tokens=tokens)


def reference_calibrated(scores: TokenScores, reference: TokenScores) -> Floats:
    """[N] mean log-probability minus that of a reference model on the same tokens, in nats per token.

    Raises:
        InputError: other ids, another order, or texts that the two models split into different numbers of
        tokens.
    """
    _require_tokens(scores, 1)
    if len(scores) != len(reference):
        raise InputError(f"{len(scores)} texts and {len(reference)} reference texts", "the same texts")
    for row, identity in enumerate(scores.ids):
        if identity != reference.ids[row] or scores.variants[row] != reference.variants[row]:
            raise InputError(
                f"row {row} is id '{identity}' here and '{reference.ids[row]}' in the reference",
                "the same ids and variants in the same order",
                "score the reference model on the same data",
            )
        ours, theirs = len(scores.logp[row]), len(reference.logp[row])
        if ours != theirs:
            raise InputError(
                f"id '{identity}' has {ours} tokens here and {theirs} in the reference",
                "one tokenizer for both models",
                "use a reference model of the same family",
            )
    return scores.mean_logp - reference.mean_logp


def priv_leak(
    forget: npt.ArrayLike,
    holdout: npt.ArrayLike,
    forget_retrained: npt.ArrayLike,
    holdout_retrained: npt.ArrayLike,
    *,
    seed: int | np.random.Generator = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Estimate:
    """PrivLeak = 100 (A_u - A_r) / A_r in percent, A the share of holdout above forget, r the retrained
    model.

    0 is ideal, near -100 says that the forget set still looks like training data, a positive value that it
    stands out the other way. Scores are member-like (MUSE: Min-40%), [F] and [H]; the retrained model's are
    over the same texts in the same order, so that a text is resampled for both models together.

    Raises:
        InputError: sets of different sizes, or a retrained model with A = 0 (the ratio is not defined).
    """
    inside, outside, levels = to_levels(forget, holdout)
    inside_r, outside_r, levels_r = to_levels(forget_retrained, holdout_retrained)
    if len(inside) != len(inside_r) or len(outside) != len(outside_r):
        sizes = f"{len(inside)} + {len(outside)} scores and {len(inside_r)} + {len(outside_r)} retrained ones"
        raise InputError(sizes, "the same texts for both models")

    def statistic(members: npt.NDArray[np.int64], others: npt.NDArray[np.int64]) -> Floats:
        ours = 1.0 - auc_of_levels(members[..., 0], others[..., 0], levels)
        theirs = 1.0 - auc_of_levels(members[..., 1], others[..., 1], levels_r)
        with np.errstate(divide="ignore", invalid="ignore"):
            result: Floats = 100.0 * (ours - theirs) / theirs
        return result

    paired, paired_out = np.stack([inside, inside_r], axis=1), np.stack([outside, outside_r], axis=1)
    estimate = bootstrap(statistic, paired, paired_out, seed=seed, resamples=resamples, level=level)
    if not math.isfinite(estimate.value):
        raise InputError(
            "the retrained model puts every forget text above every holdout text",
            "a retrained model that never saw the forget set",
            "check which model is which",
        )
    return estimate


def blind_baseline(
    members: Sequence[str],
    nonmembers: Sequence[str],
    *,
    seed: int = 0,
    folds: int = 4,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> Blind:
    """Cross-validated AUC of a bag-of-words logistic regression on the texts alone.

    Folds are contiguous runs of each side: texts about one person or author stand together in such sets, and a name
    that is in training and test at once would tell the sides apart without any difference in kind.

    The value is the mean of the folds' AUC on texts held out of training, the interval resamples texts
    within folds.

    Raises:
        InputError: fewer than two texts on a side, fewer than two folds, or no word in any text.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    smaller = min(len(members), len(nonmembers))
    if smaller < 2 or folds < 2:
        raise InputError(
            f"{len(members)} members, {len(nonmembers)} non-members and {folds} folds", "two or more of each"
        )
    texts = [*members, *nonmembers]
    labels = np.array([1] * len(members) + [0] * len(nonmembers))
    try:
        words: Any = CountVectorizer(analyzer=_words, binary=True).fit_transform(texts)
    except ValueError as error:
        raise InputError(f"no words to compare: {error}", "texts with words") from error
    splitter = StratifiedKFold(n_splits=min(folds, smaller), shuffle=False)
    samples: list[npt.NDArray[np.int64]] = []
    counts: list[int] = []
    for train, test in splitter.split(words, labels):
        model = LogisticRegression(solver="liblinear", max_iter=1000, random_state=seed)
        model.fit(words[train], labels[train])
        scores = np.asarray(model.decision_function(words[test]), dtype=np.float64)
        inside, outside, levels = to_levels(scores[labels[test] == 1], scores[labels[test] == 0])
        samples += [inside, outside]
        counts.append(levels)

    def statistic(*parts: npt.NDArray[np.int64]) -> Floats:
        pairs = zip(parts[::2], parts[1::2], counts, strict=True)
        result: Floats = np.mean([auc_of_levels(inside, outside, n) for inside, outside, n in pairs], axis=0)
        return result

    estimate = bootstrap(statistic, *samples, seed=seed, resamples=resamples, level=level)
    return Blind(auc=estimate, leaks=estimate.value >= BLIND_LIMIT)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _lowest(values: Floats, k: float) -> float:
    if not 0 < k <= 1:
        raise InputError(f"k = {k}", "a share of the tokens between 0 and 1")
    count = max(1, math.floor(k * len(values) + 1e-9))
    return float(np.mean(np.partition(values, count - 1)[:count]))


def _require_tokens(scores: TokenScores, minimum: int) -> None:
    for identity, row in zip(scores.ids, scores.logp, strict=True):
        if len(row) < minimum:
            raise InputError(
                f"the text of id '{identity}' has {len(row)} tokens",
                f"{minimum} or more",
                "drop or join short texts",
            )
