"""The exponential mechanism on the words of a text, what it covers, and what it does not.

DP2Unlearning, arXiv 2504.13774, mechanism b (DP-MLM). A protected word is replaced by a token w of the vocabulary, drawn with

    P(w) = softmax(clip(logits) * epsilon / (2 Delta)),   Delta = c_max - c_min

from the logits of a masked language model. Two texts, however different, move a clipped logit by at most Delta, so a draw is
epsilon-private with respect to any change of its text; m draws from one row compose to m epsilon.

The candidates are the whole vocabulary. A mask may take special tokens out, provided that it is made from the vocabulary
alone. Candidates that are chosen by looking at the text (the ten best, say) have no such bound, and are not offered.
"""

from __future__ import annotations

import math
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from efface.errors import ConfigError, InputError, RequestError, nearest

EMPTY_BOUND = 10.0
"""Above this epsilon a bound says nearly nothing: e^10 is 22 000."""
JOINERS = frozenset("'’-‐‑\u200c\u200d")
"""Within a word these join its parts: an apostrophe, hyphens, and the zero-width joiners of Persian and Indic scripts."""

Clip = tuple[float, float]
"""(c_min, c_max)."""
Span = tuple[int, int]
"""Characters [start, end) of a text."""
Protect = Callable[[str], Sequence[Span]]
"""A text to the spans of its protected words."""
Rule = Literal["words", "capitalised", "listed"]
RULES: dict[Rule, str] = {
    "words": "every word",
    "capitalised": "words with a capital letter",
    "listed": "the words of a list",
}


class TextPrivacyWarning(UserWarning):
    """The bound of a row's replaced words is so large that it says nearly nothing."""


# -- the mechanism -----------------------------------------------------------------------------------------------------


def check_clip(clip: Clip) -> float:
    """Delta = c_max - c_min.

    Raises:
        ConfigError: a bound that is not finite, or c_max <= c_min.
    """
    low, high = clip
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"clip [{low:g}, {high:g}]", "finite c_min < c_max", "take them from logits of public texts")
    return high - low


def check_epsilon(epsilon: float) -> None:
    """Raise ConfigError where epsilon is not a positive number."""
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ConfigError(f"epsilon={epsilon}", "a number above 0", "the paper sweeps 0.1 to 250 per token")


def check_logits(logits: Tensor) -> None:
    """Raise InputError where logits are not [n, V] with n, V > 0, or hold NaN or infinity."""
    if logits.ndim != 2 or 0 in logits.shape:
        raise InputError(f"logits of shape {list(logits.shape)}", "[n, V] with at least one row and one token")
    if not bool(torch.isfinite(logits).all()):
        row = int((~torch.isfinite(logits)).any(1).int().argmax())
        raise InputError(f"logits of row {row} hold NaN or infinity", "finite numbers", "use float32 or a sound model")


def clip_range(public: Iterable[Tensor]) -> Clip:
    """(c_min, c_max), the smallest and the largest logit of a model on public texts.

    The bound assumes a range that no private row has touched: compute it from other texts, once for each model.

    Args:
        public: batches [n, V] of logits of public texts.

    Raises:
        InputError: no logits, NaN or infinity, or all logits equal.
    """
    ends = []
    for batch in public:
        check_logits(batch)
        ends.append((float(batch.min()), float(batch.max())))
    if not ends:
        raise InputError("no logits for a clip range", "logits of public texts", "give at least one text")
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if low == high:
        raise InputError(f"public logits that are all {low:g}", "logits that differ", "use a trained model")
    return low, high


def probabilities(logits: Tensor, clip: Clip, epsilon: float, allowed: Tensor | None = None) -> Tensor:
    """softmax(clip(logits) epsilon / (2 Delta)), float64 [n, V].

    Args:
        logits: [n, V].
        clip: (c_min, c_max), fixed beforehand from public texts.
        epsilon: of one draw.
        allowed: [V] bool, tokens that may be drawn; a function of the vocabulary alone. Default: all.

    Raises:
        InputError: logits of another shape, with NaN or infinity; a mask of another shape or without any token.
        ConfigError: epsilon <= 0, or c_max <= c_min.
    """
    check_epsilon(epsilon)
    delta = check_clip(clip)
    check_logits(logits)
    scores = logits.double().clamp(*clip) * (epsilon / (2 * delta))
    if allowed is not None:
        if allowed.shape != logits.shape[1:] or allowed.dtype != torch.bool or not bool(allowed.any()):
            raise InputError(
                f"a mask {list(allowed.shape)} of {allowed.dtype} with {int(allowed.sum())} tokens",
                f"[{logits.shape[1]}] bool with at least one",
            )  # fmt: skip
        scores = scores.masked_fill(~allowed.to(scores.device), -math.inf)
    return scores.softmax(1)


def exponential_mechanism(
    logits: Tensor, clip: Clip, epsilon: float, generator: torch.Generator, *, allowed: Tensor | None = None
) -> Tensor:
    """One token for each row of logits; see `probabilities`.

    The bound is that of exact arithmetic; draws are made in float64. With one generator state the draws of several epsilons
    share their noise.

    Returns:
        token ids [n], on the generator's device.
    """
    chances = probabilities(logits.to(generator.device), clip, epsilon, allowed)
    return torch.multinomial(chances, 1, generator=generator).squeeze(1)


# -- which words -------------------------------------------------------------------------------------------------------


def word_spans(text: str) -> list[Span]:
    """Every word: a run of letters, digits and their marks, with single apostrophes and hyphens inside.

    Punctuation is outside: of "Paris, it is" the first word is "Paris".
    """
    inside = [c.isalnum() or c == "_" or unicodedata.category(c)[0] == "M" for c in text]
    for i in range(1, len(text) - 1):
        if text[i] in JOINERS and inside[i - 1] and text[i - 1] not in JOINERS and inside[i + 1]:
            inside[i] = True
    spans, start = [], None
    for i, kept in enumerate([*inside, False]):
        if kept and start is None:
            start = i
        elif not kept and start is not None:
            spans.append((start, i))
            start = None
    return spans


def capitalised_spans(text: str) -> list[Span]:
    """Words with a capital letter anywhere: names, and the first word of a sentence."""
    return [(a, b) for a, b in word_spans(text) if any(c.isupper() or c.istitle() for c in text[a:b])]


def listed_words(words: Sequence[str]) -> Protect:
    """The words of a list wherever they stand as whole words, in any case; "New York" is replaced as one.

    Raises:
        ConfigError: no words, or an empty one.
    """
    bare = sorted({" ".join(word.split()) for word in words}, key=lambda word: (-len(word), word))
    if not bare or "" in bare:
        raise ConfigError(f"{len(words)} words to protect{', one of them empty' if bare else ''}", "words", "list them")
    either = "|".join(r"\s+".join(map(re.escape, word.split())) for word in bare)  # the longest comes first
    pattern = re.compile(rf"(?<![^\W_])(?:{either})(?![^\W_])", re.IGNORECASE)
    return lambda text: [match.span() for match in pattern.finditer(text)]


def rule(name: str, words: Sequence[str] = ()) -> Protect:
    """A rule by its name; `words` belong to `listed`.

    Raises:
        ConfigError: no such rule, a list without `listed`, or `listed` without a list.
    """
    if name not in RULES:
        raise ConfigError(f"rule '{name}'", None, nearest(name, RULES))
    if words and name != "listed":
        raise ConfigError(f"a list of words with the rule '{name}'", "the rule 'listed'", "set protect=listed")
    return {"words": word_spans, "capitalised": capitalised_spans}.get(name) or listed_words(words)


def check_spans(text: str, spans: Sequence[Span], place: str = "text") -> list[Span]:
    """The spans in their order.

    Raises:
        RequestError: a span outside the text, empty, or over another one.
    """
    ordered, reached = sorted((int(a), int(b)) for a, b in spans), 0
    for start, end in ordered:
        if not reached <= start < end <= len(text):
            raise RequestError(
                f"{place}: span [{start}, {end}) after {reached} of {len(text)} characters",
                "spans within the text, not empty, that do not overlap", "mend the rule that gives them",
            )  # fmt: skip
        reached = end
    return ordered


def replaced(text: str, spans: Sequence[Span], words: Sequence[str]) -> str:
    """The text with each span's word at that span's own place.

    Raises:
        RequestError: spans that do not fit the text.
        InputError: not one word for each span.
    """
    if len(spans) != len(words):
        raise InputError(f"{len(words)} words for {len(spans)} spans", "one for each")
    parts, done = [], 0
    for (start, end), word in zip(check_spans(text, spans), words, strict=True):
        parts += [text[done:start], word]
        done = end
    return "".join([*parts, text[done:]])


# -- what it guarantees ------------------------------------------------------------------------------------------------


class TextPrivacyReport(BaseModel):
    """What a set of privatised texts guarantees, with all that the number depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epsilon: float = Field(gt=0, description="of one replaced word")
    most: int = Field(ge=0, description="m, replaced words of the row that has most of them")
    replaced: int = Field(ge=0, description="words replaced in all rows")
    rows: int = Field(ge=1)
    untouched: int = Field(ge=0, description="rows without a protected word")
    clip: Clip = Field(description="(c_min, c_max)")
    candidates: int = Field(ge=1, description="tokens that can be drawn")
    columns: tuple[str, ...]
    rule: str = Field(description="which words are protected")
    noise_from: str

    @property
    def row_epsilon(self) -> float:
        """m epsilon."""
        return self.most * self.epsilon

    def lines(self) -> list[str]:
        """The guarantee in words, with its assumptions."""
        low, high = self.clip
        held = [
            f"epsilon {self.epsilon:g} for each replaced word, against any change of its text (exponential mechanism, logits "
            f"clipped to [{low:g}, {high:g}], sensitivity {high - low:g})",
            f"composed: epsilon {self.row_epsilon:g} for a row, of which at most {self.most} words are replaced",
            f"candidates: the whole vocabulary but special and blank tokens, {self.candidates} of them, whatever the text",
            f"replaced: {self.rule}, in {' and '.join(self.columns)}: {self.replaced} words of {self.rows} rows; "
            f"{self.untouched} rows have none and are as they were",
            "not covered: every word that is not replaced stands there as it was and may tell who is meant; so do the number "
            "and the places of the replaced words, other columns, and ids",
            "assumes a clip range and a masked language model that no row of this data took part in; a second run on the same "
            "rows adds its own bound",
        ]
        if self.row_epsilon > EMPTY_BOUND:
            held.append(f"an epsilon above {EMPTY_BOUND:g} says nearly nothing")
        if self.noise_from == "seed":
            held.append("the draws come from a seed: the bound holds against those who do not know it")
        return held


def warn_of_empty_bound(found: TextPrivacyReport, *, stacklevel: int = 2) -> None:
    """Warn where the composed bound is above `EMPTY_BOUND`."""
    if found.row_epsilon > EMPTY_BOUND:
        warnings.warn(
            f"epsilon {found.epsilon:g} a word and up to {found.most} words a row compose to {found.row_epsilon:g}: above "
            f"{EMPTY_BOUND:g} the bound says nearly nothing; lower epsilon or protect fewer words",
            TextPrivacyWarning, stacklevel=stacklevel + 1,
        )  # fmt: skip
