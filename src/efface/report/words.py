"""The words and numbers of the report: what a verdict means, how a value and a foreign text are shown.

The audit decides the verdicts. Here is only how they are said, so that page and model card say the same.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from efface.audit.finding import Estimate

OUTCOMES: dict[str, str] = {
    "removal-consistent": "No test could tell the result from a model that never saw the data. That is "
    "evidence of removal, not proof: a stronger test may still find a difference.",
    "suppressed": "The model no longer says it, but at least one test brought it back. The knowledge is "
    "hidden, not gone.",
    "damaged": "The model lost more than it was asked to forget. What it no longer says may simply be broken.",
    "not forgotten": "The model still gives what it was asked to forget.",
    "not judged": "The tests that a verdict needs were not run, so none is given.",
}
"""Every outcome word of the audit, best first, with what it means."""

CLAIMS: dict[str, str] = {
    "exact": "The affected parts were trained again without the data. The result is what training without "
    "the data would have given; no statistical argument is needed.",
    "certified": "A mathematical bound limits how far the result can be from a retrained model, under the "
    "assumptions that the method states.",
    "empirical": "There is no guarantee. The claim rests on the tests shown here and reaches no further.",
    "suppressed": "The method only keeps the knowledge from being said. It is still in the weights, "
    "and whoever holds the weights can bring it back.",
}
"""Every claim level of a method, strongest first, with what it means."""

GROUPS: dict[str, tuple[str, str]] = {
    "forgetting": ("Forgetting", "Does the model still give what it was asked to forget?"),
    "utility": ("Utility", "Does it still do everything else that it did before?"),
    "privacy": ("Privacy", "Can someone tell that the data was once used for training?"),
    "robustness": ("Robustness", "Does the knowledge come back when someone tries?"),
    "damage": ("Damage", "What was harmed that nobody asked to change?"),
    "quantisation": (
        "After quantisation",
        "Does rounding the weights to fewer bits bring the knowledge back?",
    ),
}
"""The groups of findings in the order of the page, with the question that each answers."""

DIRECTIONS: dict[str, str] = {
    "higher": "Higher is better.",
    "lower": "Lower is better.",
    "retrained": "Closer to the retrained model is better.",
    "none": "Descriptive: neither direction is better.",
}

GLOSSARY: list[tuple[str, str]] = [
    ("Forget set", "The examples that the model must no longer know."),
    ("Retain set", "Examples that the model must keep knowing."),
    ("Holdout set", "Examples of the same kind that no model here was trained on."),
    ("Original", "The model before forgetting."),
    ("Unlearned", "The model after forgetting: the one that is judged."),
    (
        "Retrained",
        "A model trained in the same way but without the forget set. It is the yardstick: perfect "
        "forgetting cannot be told from it.",
    ),
    (
        "95 % interval",
        "How far the value may be off because only some examples were asked: of 100 such ranges, "
        "about 95 hold the true value. Few examples give a wide range.",
    ),
    (
        "Threshold",
        "What a value must reach to count as good. It was written down before any model was scored.",
    ),
    (
        "Forget quality",
        "The p-value of a test that tries to tell the unlearned from the retrained model by their "
        "scores on the forget set. Near 1: the test sees no difference. Near 0: it sees one. The page prints "
        "log10 of it: 0 is p = 1, −2 is p = 0.01.",
    ),
    ("Model utility", "One number from 0 to 1 for what the model can still do on data that it should keep."),
    (
        "Relearning",
        "A short training on forgotten examples. Hidden knowledge comes "
        "back quickly; knowledge that is gone comes back no faster than in the retrained model.",
    ),
    (
        "Membership inference",
        "Guessing from a model's scores whether an example was used to train it. 0.5 is as good as a coin.",
    ),
    (
        "UA, RA, TA",
        "Of a classifier: the error on the forget set (unlearning accuracy), the accuracy on the retain set and on the test "
        "set. The retrained model's values are the aim.",
    ),
    (
        "MIA efficacy",
        "Share of the forget set that a simple membership attack takes for data never seen. The retrained model's share is "
        "the aim, not 100 %.",
    ),
    (
        "Average gap",
        "Mean distance of UA, MIA efficacy, RA and TA to the retrained model's, in percent points.",
    ),
    (
        "Quantisation",
        "Rounding the weights to 8 or 4 bits. Small changes of the weights can be rounded away, and "
        "with them the forgetting.",
    ),
    (
        "Digest",
        "A fingerprint (SHA-256) of a file, a data set or a model. One changed bit gives another one.",
    ),
]

MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)

_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\U000e0000-\U000e007f]"
)
_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


class Shown(NamedTuple):
    """What is shown of a foreign text, and a note where something was left out."""

    text: str
    note: str


def clean(text: str) -> str:
    """Foreign text with its invisible characters made visible.

    Control characters, marks that turn the writing direction, zero-width marks and lone surrogates become
    their code point in brackets. Line feeds and tabs stay. Words of any script stay as they are.
    """

    def visible(match: re.Match[str]) -> str:
        return f"[U+{ord(match.group()):04X}]"

    return _INVISIBLE.sub(visible, text.replace("\r\n", "\n"))


def clip(text: str, limit: int = 600, lines: int = 12) -> Shown:
    """The beginning of a long text, with a note that says how much was left out.

    Args:
        text: any text.
        limit: characters that are shown at most.
        lines: lines that are shown at most.
    """
    head = "\n".join(text[:limit].split("\n")[:lines])
    if len(head) == len(text):
        return Shown(text, "")
    return Shown(head.rstrip() + " …", f"first {len(head):,} of {len(text):,} characters")


def short_label(text: str, limit: int) -> str:
    """One line of at most `limit` characters, for figures."""
    line = " ".join(clean(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def number(value: float | None) -> str:
    """A number with three significant digits and a real minus sign; an absent one is a dash."""
    if value is None:
        return "–"
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1e6 or size < 5e-4:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}".replace("-", "−")
    if size >= 100:
        return f"{value:,.0f}".replace("-", "−")
    digits = 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:.{digits}f}".replace("-", "−")


def with_unit(text: str, unit: str) -> str:
    """A printed number with its unit."""
    if not unit:
        return text
    return f"{text} {short_label(unit, 16)}"


def interval(estimate: Estimate) -> str:
    """A value with its 95 % interval in brackets, where there is one."""
    if estimate.low is None or estimate.high is None:
        return number(estimate.value)
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def duration(seconds: float) -> str:
    """Seconds as a person would say them: `0.4 s`, `2 min 05 s`, `1 h 03 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    hours, rest = divmod(round(seconds / 60), 60)
    return f"{hours} h {rest:02d} min"


def plural(count: int, one: str, many: str | None = None) -> str:
    """`1 check`, `2 checks`, with thousands separated."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listing(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def relations(text: str) -> str:
    """Relations and signs as printed in a book: ≥, ≤ and a real minus before a number."""
    return re.sub(r"(?<![\w-])-(?=\d)", "−", text.replace(">=", "≥").replace("<=", "≤"))


def moment(text: str) -> str:
    """An ISO 8601 time as `14 March 2026, 09:31 UTC`; a text that is none stays as it is."""
    match = re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)T(\d\d:\d\d)(?::\d\d(?:\.\d+)?)?(?:Z|\+00:00)", text)
    if match is None or not 1 <= int(match[2]) <= 12:
        return text
    return f"{int(match[3])} {MONTHS[int(match[2]) - 1]} {match[1]}, {match[4]} UTC"
