"""Form bias: does a forgotten fact come back when it is asked for in another form?

The audit of ORT (Ye, Zhang, Wu, arXiv 2506.07795): fill in the blank, question, adversarial prompt, multiple choice by
letter, and answers spelled one character a line. The score of an item is exp(mean log p) of the gold answer's tokens under
the model's own prompt; each form has the mean of its items and its change relative to the original model. The paper speaks
of the bias in words; here it is the largest minus the smallest relative change, so an untouched model gives exactly 0 and
an edit that acts on one form alone gives nearly 1. Items of one subject are resampled together where groups are given.

Multiple choice by letter needs its letters balanced: `letters` counts them. True/false, whose answer was always "true" in
the official scripts, is no form here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from efface.audit.finding import Estimate
from efface.audit.metrics.intervals import LEVEL, RESAMPLES
from efface.errors import InputError
from efface.subjects.causal_lm import CausalLM
from efface.train.reference import answer_probabilities

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FormScore:
    """One form: mean score before and after, and (after - before) / before with its interval."""

    before: float
    after: float
    change: Estimate


@dataclass(frozen=True)
class FormBias:
    """All forms.

    Attributes:
        forms: by name, in the order given.
        spread: max - min of the relative changes, with its interval; 0 for an untouched model. A spread cannot be below 0,
            so its interval lies above 0 for any noise: read it beside the forms' own.
    """

    forms: dict[str, FormScore]
    spread: Estimate

    def lines(self) -> list[str]:
        """One line a form, then the spread."""
        found = [
            f"{name}: {one.before:.3f} -> {one.after:.3f} ({one.change.value:+.1%}{_interval(one.change)})"
            for name, one in self.forms.items()
        ]
        return [*found, f"form bias (max - min): {self.spread.value:.3f}{_interval(self.spread)}"]


def _interval(estimate: Estimate) -> str:
    return "" if estimate.low is None else f" [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def item_scores(subject: CausalLM, data: Dataset, *, name: str = "form") -> Floats:
    """[N] exp(mean log p) of the gold answers' tokens; which tokens these are is found by offsets."""
    return np.asarray(answer_probabilities(subject, subject.encode_rows(data, name=name)), dtype=np.float64)


def form_bias(
    before: Mapping[str, npt.ArrayLike], after: Mapping[str, npt.ArrayLike], *,
    groups: Mapping[str, Sequence[object]] | None = None, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL,
) -> FormBias:  # fmt: skip
    """Relative change of each form and their spread.

    Args:
        before, after: form -> [n] scores of the same items under the original and the edited model.
        groups: form -> [n] keys (the subject asked about). Whole subjects are resampled, in all forms at once, so that the
            spread's interval knows that forms share their subjects. Default: items, each form on its own.

    Raises:
        InputError: fewer than two forms, other forms or items after, scores that are not probabilities, an original whose
            mean score in a form is 0 (no relative change exists).
    """
    if len(before) < 2 or list(before) != list(after):
        raise InputError(f"forms {list(before)} before and {list(after)} after", "the same two forms or more")
    pairs: dict[str, tuple[Floats, Floats]] = {}
    for name in before:
        x, y = (np.asarray(side[name], dtype=np.float64) for side in (before, after))
        if x.shape != y.shape or x.ndim != 1 or not len(x):
            raise InputError(f"form '{name}': {list(x.shape)} scores before, {list(y.shape)} after", "the same items")
        if not (
            np.isfinite(x).all() and np.isfinite(y).all() and min(x.min(), y.min()) >= 0 and max(x.max(), y.max()) <= 1
        ):
            raise InputError(f"form '{name}': a score outside 0 to 1", "probabilities")
        if x.mean() == 0:
            raise InputError(
                f"form '{name}': the original model's score is 0", "a form that it answers", "leave it out"
            )
        pairs[name] = (x, y)
    draws = _draws(pairs, groups, seed, resamples)  # [B, F]
    change = {name: float((y.mean() - x.mean()) / x.mean()) for name, (x, y) in pairs.items()}
    forms = {
        name: FormScore(float(x.mean()), float(y.mean()), _estimate(change[name], draws[:, i], len(x), level))
        for i, (name, (x, y)) in enumerate(pairs.items())
    }
    spread = max(change.values()) - min(change.values())
    total = sum(len(x) for x, _ in pairs.values())
    return FormBias(forms, _estimate(spread, draws.max(1) - draws.min(1), total, level))


def _draws(
    pairs: Mapping[str, tuple[Floats, Floats]], groups: Mapping[str, Sequence[object]] | None, seed: int, resamples: int
) -> Floats:  # fmt: skip
    """[B, F] relative changes of the resamples."""
    rng = np.random.default_rng(seed)
    found = np.empty((resamples, len(pairs)))
    if groups is None:
        for i, (x, y) in enumerate(pairs.values()):
            index = rng.integers(0, len(x), (resamples, len(x)))
            found[:, i] = _change(x[index].sum(1), y[index].sum(1))
        return found
    keys: list[object] = []
    for name, (x, _) in pairs.items():
        if name not in groups or len(groups[name]) != len(x):
            raise InputError(f"form '{name}': {len(groups.get(name, ()))} keys for {len(x)} items", "one key an item")
        keys += [key for key in dict.fromkeys(groups[name]) if key not in keys]
    place = {key: i for i, key in enumerate(keys)}
    counts = rng.multinomial(len(keys), np.full(len(keys), 1 / len(keys)), size=resamples)  # [B, G]
    for i, (name, (x, y)) in enumerate(pairs.items()):
        at = [place[key] for key in groups[name]]
        first, second = (np.bincount(at, weights=side, minlength=len(keys)) for side in (x, y))  # [G] each
        found[:, i] = _change(counts.astype(np.float64) @ first, counts.astype(np.float64) @ second)
    return found


def _change(before: Floats, after: Floats) -> Floats:
    """(after - before) / before; NaN where a resample has nothing before."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(before > 0, (after - before) / before, np.nan)


def _estimate(value: float, draws: Floats, n: int, level: float) -> Estimate:
    kept = draws[np.isfinite(draws)]
    if n < 2 or len(kept) < 0.99 * len(draws):
        return Estimate(value=value, n=n)
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value=value, low=float(low), high=float(high), n=n)


def spelled(text: str) -> str:
    """The text one character a line, spaces left out: the answer of the spelling form."""
    return "\n".join(char for char in text if not char.isspace())


def letters(answers: Sequence[str]) -> dict[str, int]:
    """How often each letter is the right one in a multiple-choice form; to be printed beside its score.

    Raises:
        InputError: an answer that does not begin with a letter.
    """
    found = Counter(answer.strip()[:1].upper() for answer in answers)
    wrong = [letter for letter in found if not letter.isalpha()]
    if wrong:
        raise InputError(f"an answer that begins with '{wrong[0]}'", "the letter of an option")
    return dict(sorted(found.items()))
