"""What the gallery says about a side: its headline, what is left in play, what the norm is worth, each diagnostic.

The figures come from the summary, all in nats; nothing is measured here. Sentences follow the specification's
traps: a value near log N means "out of samples", and an R^2 is never said without the scale and N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from efface.measure.gain_summary import GainSummary, Item, Relation, Side
from efface.report.words import number, plural, short_label

SMALL = 1.5
"""Mean k2/2 in nats up to which the norm is expected to follow the gain (specification, proof B)."""
CLOSE, ROUGH = 0.98, 0.90
"""R^2 from which the norm stands for the gain (proof B), and below which the relation counts as weak."""
FEW = 50
"""Effective sample size below which the measure marks a value as saturated."""

MODES: dict[str, tuple[str, str]] = {
    "kl": ("information gain", "KL(p(·|item) ‖ p(·)): how far the item moves the distribution over the sample."),
    "klr": ("reverse gain", "KL(p(·) ‖ p(·|item)): the same distance from the other side; not capped by log N."),
    "kl_fixed_z": (
        "gain, fixed Z",
        "The gain with SigLIP's trained normaliser instead of the sample's; may be negative.",
    ),
    "klr_fixed_z": ("reverse gain, fixed Z", "The reverse gain with SigLIP's trained normaliser; may be negative."),
    "cov_norm": ("norm, centred as set", "½ a² (u − c)ᵀG (u − c), with the centre c that the settings name."),
    "cov_norm_zero": ("norm, centred at zero", "½ a² uᵀG u: exactly the second-order term of the gain."),
    "cov_norm_paper": ("norm in the official scale", "As the official code has it, without ½ and 1/N: no unit."),
    "centered_norm": ("centred norm", "a² ‖u − c‖²: distance from the mean embedding; no covariance in it."),
    "raw_norm": ("raw norm", "a² ‖u‖²: the same for all items where embeddings have unit length."),
}
"""The modes that this page can name, with what each is."""

WITHOUT_UNIT = ("centered_norm", "raw_norm", "cov_norm_paper")
"""Modes that are no gains: neither nats nor bits, and nothing that log N could limit."""
CARRIED = ("kl", "klr", "cov_norm")
"""Modes whose value every item carries."""

NOUNS = {"images": ("picture", "pictures"), "texts": ("text", "texts")}


@dataclass(frozen=True)
class Unit:
    """How gains are printed: all are held in nats."""

    name: str

    @property
    def tail(self) -> str:
        """The name behind a number, with its blank; nothing where there is no unit."""
        return f" {self.name}" if self.name else ""

    def of(self, nats: float) -> float:
        """A value in this unit."""
        return nats / math.log(2) if self.name == "bits" else nats

    def text(self, nats: float | None) -> str:
        """A gain with two decimals and a real minus sign; a small one as it is, an absent one as a dash."""
        if nats is None or not math.isfinite(nats) or 0 < abs(self.of(nats)) < 0.005:
            return number(nats if nats is None else self.of(nats))
        return f"{self.of(nats):,.2f}".replace("-", "−")

    def pair(self, low: float, high: float) -> tuple[str, str]:
        """Two gains with one decimal, or with as many as it takes to tell them apart."""
        brief = [f"{self.of(value):,.1f}".replace("-", "−") for value in (low, high)]
        if brief[0] == brief[1] or "0.0" in brief or "−0.0" in brief:
            return self.text(low), self.text(high)
        return brief[0], brief[1]


def unit_of(mode: str, unit: Unit) -> Unit:
    """The unit of a mode's values: the run's, or none."""
    return Unit("") if mode in WITHOUT_UNIT else unit


def shown_mode(mode: str) -> str:
    """The mode whose value stands beside an item: the headline's, or the gain where items carry no other."""
    return mode if mode in CARRIED else "kl"


def nouns(name: str) -> tuple[str, str]:
    """One and many of a side's items, in words: `picture`, `pictures`."""
    if name in NOUNS:
        return NOUNS[name]
    many = short_label(name, 24)
    if many.isascii() and many.isalpha() and len(many) > 3 and many.endswith("s"):
        return (many[:-3] + "y" if many.endswith("ies") else many[:-1]), many
    return "item", many or "items"


def mode_name(mode: str) -> str:
    """A mode in words; an unknown one by its own name."""
    return MODES[mode][0] if mode in MODES else short_label(mode, 32)


def value_of(item: Item, mode: str) -> float | None:
    """An item's value in a mode, where the item carries it."""
    found = {"kl": item.kl, "klr": item.klr, "cov_norm": item.cov_norm}.get(mode)
    return None if found is None else float(found)


def span(side: Side, mode: str) -> tuple[float, float] | None:
    """Lowest and highest value of a side, from its statistics or else from the items that are kept."""
    found = side.modes.get(mode)
    values = [found.low, found.high] if found else [value_of(item, mode) for item in [*side.lowest, *side.highest]]
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return (min(finite), max(finite)) if finite and side.n > 0 else None


def capped(side: Side, mode: str) -> bool:
    """Whether log N is the ceiling of these values: it is for `kl`, unless a fixed Z took the ceiling away."""
    found = span(side, mode)
    if not math.isfinite(side.log_n):
        return False
    return mode == "kl" and found is not None and found[0] >= -1e-6 and found[1] <= side.log_n + 1e-6


def equal(low: float, high: float) -> bool:
    """Whether all values are the same but for rounding."""
    return high - low <= 1e-9 + 1e-6 * max(abs(low), abs(high))


def headline(side: Side, mode: str, unit: Unit) -> str:
    """The side in one sentence: what its least and its most informative items say."""
    one, many = nouns(side.name)
    found = span(side, mode)
    if found is None:
        return f"No {many} were measured"
    low, high = unit.pair(*found)
    ceiling = f", of {unit.of(side.log_n):,.1f} that this sample can show" if capped(side, mode) else ""
    gain = mode.startswith("kl")
    if side.n == 1:
        return f"The only {one} {'says' if gain else 'has a norm of'} {high}{unit.tail}{ceiling}"
    if equal(*found):
        return f"All {side.n:,} {many} {'say the same:' if gain else 'have a norm of'} {high}{unit.tail}{ceiling}"
    if not gain:
        return f"The {mode_name(mode)} of the {many} runs from {low} to {high}{unit.tail}"
    return f"The least informative {many} say {low}{unit.tail}, the most informative {high}{ceiling}"


def in_play(side: Side, mode: str) -> str:
    """The same in counts: N e^-KL = exp(H(w)) is how many of the sample an item leaves in play. Only for `kl`."""
    found = span(side, mode)
    if found is None or not capped(side, mode):
        return ""
    one, _ = nouns(side.name)
    other, others = nouns(side.sample)
    most, least = (math.exp(side.log_n - value) for value in found)

    def count(value: float) -> str:
        return f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}"

    start = f"Before anything is seen, each of the {plural(side.sample_size, other, others)} counts alike."
    if side.n == 1 or equal(*found):
        return f"{start} One {one} leaves about {count(least)} of them in play."
    return (
        f"{start} The least informative {one} leaves about {count(most)} of them in play, "
        f"the most informative about {count(least)}."
    )


def main_relation(side: Side) -> Relation | None:
    """The relation that the scatter shows: the norm centred at zero against the gain."""
    return next((row for row in side.relations if (row.x, row.y) == ("cov_norm_zero", "kl")), None)


def scale_text(scale: float) -> str:
    """A scale with at most four significant digits and no idle zeros: `100`, `14.29`."""
    return f"{scale:.4g}" if math.isfinite(scale) else number(scale)


def where(side: Side) -> str:
    """The conditions without which an R^2 says nothing."""
    return f"at scale {scale_text(side.scale)} and N = {side.sample_size:,}"


def norm_verdict(side: Side, unit: Unit) -> tuple[str, str]:
    """Whether the norm stands for the gain here: a class word (`good`, `rough`, `bad`, `none`) and a sentence."""
    row, many = main_relation(side), nouns(side.name)[1]
    if row is None or row.r2 is None or not math.isfinite(row.r2):
        return "none", f"No relation can be given {where(side)}: too few {many}, or values that do not differ."
    second = f"{unit.text(side.k2_half_mean)} {unit.name} of k2/2 on average"
    figure = f"R² = {row.r2:.3f}"
    if row.n < 10:
        return "none", f"{figure} {where(side)}, but over {plural(row.n, 'value')} only: too few to mean anything."
    turned = row.pearson is not None and row.pearson < 0
    if side.k2_half_mean <= SMALL and not turned and row.r2 >= ROUGH:
        if row.r2 >= CLOSE:
            return "good", (
                f"The norm stands for the gain here: {figure} {where(side)}, with {second}, a small effect that the "
                "variance of the scores describes well. At another scale it need not."
            )
        return "rough", (
            f"The norm follows the gain roughly: {figure} {where(side)}, with {second}. Use it to sort, not to quote."
        )
    order = ""
    if row.spearman is not None and row.spearman < -0.1:
        order = f" It even sorts the {many} the other way round (Spearman {number(row.spearman)})."
    elif row.spearman is not None and row.spearman >= 0.9:
        order = f" It sorts the {many} much alike (Spearman {number(row.spearman)}), but its {unit.name} are not the gain's."
    cause = "what separates them lies in more than the variance of the scores"
    if side.k2_half_mean > SMALL:
        cause = f"with {second}, against a ceiling of {unit.text(side.log_n)}, the higher cumulants decide"
    return "bad", f"The norm does not stand for the gain at this scale: {figure} {where(side)}; {cause}.{order}"


@dataclass(frozen=True)
class Diagnostic:
    """One line of the diagnostics table."""

    name: str
    value: str
    sentence: str
    beware: bool


def diagnostics(side: Side, unit: Unit) -> list[Diagnostic]:
    """Every diagnostic of a side with what its value means here."""
    one, many = nouns(side.name)
    other, others = nouns(side.sample)
    sample = plural(side.sample_size, other, others)
    rows = []

    ess = math.nan if side.ess_median is None else side.ess_median
    few = ess < FEW
    rows.append(Diagnostic("Effective sample size, median", _measured(side.ess_median), (
        f"How many of the {sample} carry the value of a {one}; half of the {many} rest on fewer. "
        + (f"Below {FEW} it hangs on a handful: the gain may be limited by the sample, not by the {one}."
           if few else "That is enough for a stable average." if ess >= FEW else "")
    ), few))  # fmt: skip

    share = side.saturated_share
    rows.append(Diagnostic("Saturated", f"{number(100 * share)} %", (
        "No value is marked: the sample is large enough for what these items say." if share == 0 else
        f"Marked where k2/2 exceeds half of log N or fewer than {FEW} {others} carry the average. Such a value says "
        f"“out of samples”, not “informative”: it may be too low, and more {others} may raise it."
    ), share >= 0.1))  # fmt: skip

    skew = math.nan if side.skewness_mean is None else side.skewness_mean
    bent = abs(skew) >= 0.5
    rows.append(Diagnostic("Skewness of the scores, mean", _measured(side.skewness_mean), (
        f"The scores have a long tail on the {'low' if skew < 0 else 'high'} side. The norm sees only their variance "
        "and misses it." if bent else "The scores are nearly symmetric, as the norm takes them to be." if abs(skew) < 0.5
        else "Whether the scores are symmetric, as the norm takes them to be, is not known."
    ), bent))  # fmt: skip

    half = side.k2_half_mean
    large = not half <= SMALL
    rows.append(Diagnostic("k2/2, mean", f"{unit.text(half)} {unit.name}", (
        f"The variance term of the gain. log N is {unit.text(side.log_n)}. "
        + (f"Above {unit.text(SMALL)} the norm is no longer a stand-in for the gain, whatever its R²."
           if large else "Small: norm and gain can agree here.")
    ), large))  # fmt: skip

    wide = side.centre_share >= 0.1
    rows.append(Diagnostic("Share of the centre", f"{number(100 * side.centre_share)} %", (
        f"c'Gc over the mean of u'Gu: how much of the variance the mean of all {many} carries. "
        + ("Large: the norm centred at the own mean and the one centred at zero measure different things."
           if wide else "Small, yet the two centrings of the norm can still differ through their cross term.")
    ), wide))  # fmt: skip

    thin = side.sample_size < side.dimension
    rows.append(Diagnostic("Sample against dimension", f"{side.sample_size:,} / {side.dimension:,}", (
        f"Fewer {others} than dimensions: the covariance has rank below {side.dimension:,}, so the norm is blind in "
        "some directions." if thin else f"There are at least as many {others} as dimensions."
    ), thin))  # fmt: skip
    return rows


def _measured(value: float | None) -> str:
    return "not measured" if value is None else number(value)


def alerts(summary: GainSummary) -> list[str]:
    """What stands before everything else: the run's own warnings, and saturation where they do not name it."""
    found = [text for text in summary.warnings if text.strip()]
    said = " ".join(found).lower()
    for side in summary.sides:
        if side.n and side.saturated_share >= 0.25 and "saturat" not in said:
            many, others = nouns(side.name)[1], nouns(side.sample)[1]
            found.append(
                f"{number(100 * side.saturated_share)} % of the {many} are saturated: a sample of "
                f"{side.sample_size:,} {others} is too small for what they say, and their values may be too low."
            )
    return found
