"""LiRA: the likelihood ratio attack. How does this model treat an example, against models that saw it and did not?

Every example is scored by one number, phi = log p_y / (1 - p_y). Shadow models on random halves of the data say how
phi falls for each example when it was in training (IN) and when it was not (OUT). Larger score = member.

Source: Carlini et al., Membership inference attacks from first principles, arXiv 2112.03570. The offline score is the
paper's one-sided tail, where the official code takes a two-sided density; and the fixed variance of OUT is that of OUT,
where the official code reuses that of IN. The variance is pooled around each example's own centre.
With models that were trained with x and then unlearned it as IN, and models that never saw x as OUT, `online` is
U-LiRA (arXiv 2403.01218).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp
from scipy.stats import norm

from efface.errors import InputError

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Centre = Literal["mean", "median"]

FEW_SHADOWS = 64  # below this many shadow models the paper pools the variance over examples


@dataclass(frozen=True)
class Side:
    """Gaussians of one side (IN or OUT): `centre` [n] and `std` [n], the latter equal everywhere where it was pooled."""

    centre: Floats
    std: Floats


def logit_margin(logits: npt.ArrayLike, labels: npt.ArrayLike) -> Floats:
    """phi = f_y - logsumexp over v != y of f_v: the log-odds of the label.

    Taken from logits, so that a probability which rounds to 1 does not saturate it.

    Args:
        logits: [..., n, C], C >= 2.
        labels: [n] whole numbers below C.

    Returns:
        [..., n].

    Raises:
        InputError: shapes that do not fit, fewer than two classes, an unknown label, NaN or +infinity.
    """
    f = np.asarray(logits, dtype=np.float64)
    y = np.asarray(labels)
    if f.ndim < 2 or y.ndim != 1 or f.shape[-2] != len(y) or f.shape[-1] < 2:
        raise InputError(
            f"logits {list(f.shape)} with labels {list(y.shape)}", "logits [..., n, C >= 2] and labels [n]"
        )
    if not np.issubdtype(y.dtype, np.integer) or (y < 0).any() or (y >= f.shape[-1]).any():
        raise InputError("a label that is not a class", f"whole numbers from 0 to {f.shape[-1] - 1}")
    if np.isnan(f).any() or np.isposinf(f).any():
        raise InputError("a logit that is NaN or infinite", "numbers", "check the model")
    own = np.zeros(f.shape[-2:], dtype=bool)
    own[np.arange(len(y)), y] = True
    others = np.asarray(logsumexp(np.where(own, -np.inf, f), axis=-1), dtype=np.float64)
    with np.errstate(invalid="ignore"):
        result: Floats = f[..., np.arange(len(y)), y] - others
    if np.isnan(result).any():
        raise InputError("an example all of whose logits are minus infinity", "one finite logit an example")
    return result


def online(
    phi: npt.ArrayLike, shadows: npt.ArrayLike, keep: npt.ArrayLike, *, fixed_variance: bool | None = None,
    centre: Centre = "mean",
) -> Floats:  # fmt: skip
    """Log-likelihood ratio: log N(phi; IN) - log N(phi; OUT).

    Args:
        phi: [n] under the attacked model.
        shadows: [N, n] phi under the shadow models.
        keep: [N, n], true where the shadow model was trained on the example.
        fixed_variance: pool the standard deviation over examples, IN and OUT each their own; default: below 64
            shadow models, as the paper advises.
        centre: of the Gaussians (paper: mean, official code: median).

    Returns:
        [n].

    Raises:
        InputError: shapes that do not fit, an example without models on both sides, no spread on a side.
    """
    values, table, kept = _checked(phi, shadows, keep)
    pooled = _pooled(fixed_variance, len(table))
    inside, outside = side(table, kept, "in", pooled, centre), side(table, ~kept, "out", pooled, centre)
    with_it, without = norm.logpdf(values, inside.centre, inside.std), norm.logpdf(values, outside.centre, outside.std)
    return np.asarray(with_it - without, dtype=np.float64)


def offline(
    phi: npt.ArrayLike, shadows: npt.ArrayLike, keep: npt.ArrayLike, *, fixed_variance: bool | None = None,
    centre: Centre = "mean", log_odds: bool = False,
) -> Floats:  # fmt: skip
    """One-sided tail under the models that did not see the example: Pr[Z <= phi], Z ~ N(OUT). Arguments as `online`.

    Args:
        log_odds: give log Pr[Z <= phi] - log Pr[Z > phi], the same order without ties where the probability rounds to 1.

    Raises:
        InputError: shapes that do not fit, an example that every shadow model saw, no spread.
    """
    values, table, kept = _checked(phi, shadows, keep)
    outside = side(table, ~kept, "out", _pooled(fixed_variance, len(table)), centre)
    z = (values - outside.centre) / outside.std
    result: Floats = norm.logcdf(z) - norm.logsf(z) if log_odds else norm.cdf(z)
    return result


def calibrated(phi: npt.ArrayLike, shadows: npt.ArrayLike, keep: npt.ArrayLike) -> Floats:
    """phi minus its median under the models that did not see the example: calibration for how hard it is.

    Source: Watson et al., arXiv 2111.08440. Arguments and errors as `offline`.
    """
    values, table, kept = _checked(phi, shadows, keep)
    _require(~kept, "out", 1)
    result: Floats = values - np.nanmedian(np.where(kept, np.nan, table), axis=0)
    return result


def side(shadows: Floats, chosen: Flags, name: str, pooled: bool, centre: Centre) -> Side:
    """The Gaussian of every example over the chosen models, [N, n] each.

    The variance is the sum of squares around each example's centre over (models - 1); pooled, both sums run over all
    examples of this side.

    Raises:
        InputError: an example with too few models (one where pooled, else two), or no spread.
    """
    counts = _require(chosen, name, 1 if pooled else 2)
    masked = np.where(chosen, shadows, np.nan)
    middle: Floats = np.nanmean(masked, axis=0) if centre == "mean" else np.nanmedian(masked, axis=0)
    squares = np.where(chosen, np.square(shadows - middle), 0.0).sum(axis=0)  # [n]
    free = counts - 1
    if pooled:
        if free.sum() < 1:
            raise InputError(
                f"one '{name}' model an example", "two or more for some example", "train more shadow models"
            )
        variance = np.full(len(middle), squares.sum() / free.sum())
    else:
        variance = squares / free
    if (variance <= 0).any():
        row = int(np.argmax(variance <= 0))
        raise InputError(
            f"the '{name}' models all give example {row} one score", "scores that differ", "use fixed_variance"
        )
    return Side(middle, np.sqrt(variance))


def _pooled(fixed_variance: bool | None, shadows: int) -> bool:
    return shadows < FEW_SHADOWS if fixed_variance is None else fixed_variance


def _require(chosen: Flags, name: str, least: int) -> npt.NDArray[np.int64]:
    counts: npt.NDArray[np.int64] = chosen.sum(axis=0).astype(np.int64)
    if (counts < least).any():
        row = int(np.argmax(counts < least))
        raise InputError(
            f"example {row} has {counts[row]} '{name}' model(s)", f"{least} or more for every example",
            "train more shadow models, each on a random half",
        )  # fmt: skip
    return counts


def _checked(phi: npt.ArrayLike, shadows: npt.ArrayLike, keep: npt.ArrayLike) -> tuple[Floats, Floats, Flags]:
    values, table = np.asarray(phi, dtype=np.float64), np.asarray(shadows, dtype=np.float64)
    kept = np.asarray(keep)
    if (
        values.ndim != 1
        or not len(values)
        or table.shape != kept.shape
        or table.ndim != 2
        or table.shape[1] != len(values)
    ):
        raise InputError(
            f"phi {list(values.shape)}, shadows {list(table.shape)}, keep {list(kept.shape)}", "[n], [N, n] and [N, n]"
        )
    if kept.dtype != np.bool_:
        raise InputError(f"a keep matrix of {kept.dtype}", "true and false")
    if not (np.isfinite(values).all() and np.isfinite(table).all()):
        raise InputError("a score phi that is NaN or infinite", "finite numbers", "take phi from finite logits")
    return values, table, kept
