"""Interventions on a story: cut it, take the answering sentence out, negate it, or swap who did what to whom.

After Chaturvedi et al., arXiv 2212.10696. OS: the original story. TS: cut after the sentence in which the rationale ends. TS-R:
cut before the sentence in which it begins; the right answer becomes `unknown`. OS-R: the rationale's sentences removed and all
others kept. "+gold": the old answer appended as a last word where what is left does not say it: lexically there, without
support. Departures from the official code (akshay107/sem-faithfulness): character offsets and half-open ranges, not token
indices; an answer is looked for as whole words, not as a substring; negation and swaps are rules with a checked list, not a
published set, and say why they skip.
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError, model_validator

from efface.data.wording import plain_words, says
from efface.errors import InputError
from efface.run.settings import Settings

UNKNOWN = "unknown"
YES_NO = ("yes", "no")
Kind = Literal["OS", "TS", "TS-R", "TS-R+gold", "OS-R", "OS-R+gold", "negated", "swapped"]
DELETIONS: tuple[Kind, ...] = ("TS-R", "TS-R+gold", "OS-R", "OS-R+gold")
KINDS: tuple[Kind, ...] = ("OS", "TS", *DELETIONS, "negated", "swapped")

ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st jr sr vs etc e.g i.e u.s u.k no inc ltd co gen col capt lt sgt rev hon approx fig dept est "
    "jan feb mar apr jun jul aug sep sept oct nov dec".split()
)
"""Words whose full stop ends no sentence where a lower-case word, a number or a name may follow."""

_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|$)|\n\s*\n")

AUXILIARIES = ("is", "are", "was", "were", "am", "has been", "have been", "had been")
"""Verbs that `not` follows and that a rule can negate without changing another word."""
BLOCKING = frozenset(
    "not never no none nobody nothing neither nor hardly scarcely few little can could may might must shall should will would "
    "ought need dare every all each any some most many only always often if unless n't cannot".split()
)
"""Negations, modals and quantifiers: a plain `not` beside them does not state the opposite."""
PAST = tuple("hit saw helped called met kissed followed chased pushed found visited thanked hugged paid taught beat told gave "
             "showed passed caught asked met likes loves hates helps sees knows".split())  # fmt: skip
"""Verbs whose two sides may be swapped by rule where both sides are names."""


class Story(Settings):
    """A question about a story, with the place of what answers it.

    Offsets are characters of `story`, half-open.
    """

    id: str = Field(description="unique")
    story: str = Field(description="the text")
    question: str = Field(description="asked of it")
    answer: str = Field(description="the right answer to the whole story")
    answer_aliases: tuple[str, ...] = Field((), description="other right answers")
    rationale_start: int = Field(description="where the rationale begins, in characters")
    rationale_end: int = Field(description="where it ends (half-open)")
    history: tuple[tuple[str, str], ...] = Field((), description="earlier questions and answers")
    negated: str | None = Field(None, description="the user's own negation of the whole story, instead of the rule's")
    swapped: str | None = Field(None, description="the user's own swap of roles, instead of the rule's")

    @model_validator(mode="after")
    def _whole(self) -> Story:
        if not self.answer.strip():
            raise ValueError(f"story '{self.id}': the answer is empty")
        if not 0 <= self.rationale_start < self.rationale_end <= len(self.story):
            raise ValueError(
                f"story '{self.id}': rationale {self.rationale_start} to {self.rationale_end} of {len(self.story)} characters"
            )
        if not self.story[self.rationale_start : self.rationale_end].strip():
            raise ValueError(f"story '{self.id}': the rationale is white space")
        return self

    @property
    def yes_no(self) -> bool:
        """Whether chance alone leaves half of the answers unchanged."""
        return plain_words(self.answer) in ([YES_NO[0]], [YES_NO[1]])

    @property
    def answers(self) -> list[str]:
        """Every right answer."""
        return [self.answer, *self.answer_aliases]


class Intervened(NamedTuple):
    """A changed story; `text` is None where the intervention does not apply, with the reason.

    `supported`: what is left still says the answer beside words of the question, so it may be derived from elsewhere.
    """

    kind: Kind
    text: str | None
    reason: str = ""
    supported: bool = False


def read_story(row: dict[str, Any], place: str) -> Story:
    """A story from plain columns; `rationale` (its text) may stand instead of the two offsets.

    Raises:
        InputError: missing or empty columns, a rationale that is not in the story, or stands there twice.
    """
    given = {key: value for key, value in row.items() if value is not None}
    said = given.pop("rationale", None)
    if said is not None and "rationale_start" not in given:
        at = [match.start() for match in re.finditer(re.escape(str(said)), str(given.get("story", "")))]
        if len(at) != 1 or not str(said).strip():
            raise InputError(f"{place}: the rationale stands {len(at)} times in the story", "once", "give its offsets")
        given |= {"rationale_start": at[0], "rationale_end": at[0] + len(str(said))}
    try:
        return Story.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{place}{f', {where}' if where else ''}: {first['msg'].removeprefix('Value error, ')}",
            "id, story, question, answer and rationale (or rationale_start, rationale_end)",
        ) from error  # fmt: skip


def sentences(text: str) -> list[tuple[int, int]]:
    """Half-open character ranges of the sentences, without the white space between them, which alone is left out.

    A sentence ends at a run of `.!?` (with closing quotes) before white space, or at an empty line; not after a listed
    abbreviation, a single initial, or where a lower-case word follows a mark that is tied to the word before it.
    """
    found: list[tuple[int, int]] = []
    start = 0
    for match in _END.finditer(text):
        if match.group().strip() and not _ends(text, match.start(), match.end()):
            continue
        found.append((start, match.end()))
        start = match.end()
    found.append((start, len(text)))
    trimmed = []
    for first, last in found:
        part = text[first:last]
        if part.strip():
            trimmed.append((first + len(part) - len(part.lstrip()), last - (len(part) - len(part.rstrip()))))
    return trimmed


def _ends(text: str, start: int, end: int) -> bool:
    """Whether the marks at `start` end a sentence."""
    before = text[:start]
    if text[start] != "." or not before or before[-1].isspace():  # a mark on its own always ends one
        return True
    after = text[end:].lstrip()
    word = re.split(r"[\s(\"'“]", before)[-1]
    known = word.casefold() in ABBREVIATIONS or (len(word) == 1 and word.isupper() and word != "I")
    return not after or not (known or after[0].islower())


def _own(story: Story) -> tuple[list[tuple[int, int]], int, int]:
    """The sentences, and the half-open range of those that the rationale touches."""
    parts = sentences(story.story)
    touched = [i for i, (a, b) in enumerate(parts) if a < story.rationale_end and b > story.rationale_start]
    if not touched:
        raise InputError(f"story {story.id!r}: no sentence holds the rationale", "one", "check the offsets")
    return parts, touched[0], touched[-1] + 1


def truncated(story: Story, kind: Kind) -> Intervened:
    """TS, TS-R or OS-R, with or without the gold answer appended.

    An empty rest is skipped with its reason. Of the appended kinds only those that need it are changed: an answer that is
    still there, or is yes, no or unknown, is not appended, and the item is left out.
    """
    parts, first, last = _own(story)
    bare = kind.removesuffix("+gold")
    if bare == "TS":
        return Intervened(kind, story.story[: parts[last - 1][1]])
    head = story.story[: parts[first][0]].rstrip()
    tail = story.story[parts[last - 1][1] :].strip() if bare == "OS-R" else ""
    left = " ".join(part for part in (head, tail) if part)
    if not left:
        return Intervened(kind, None, "nothing is left of the story")
    if kind.endswith("+gold"):
        if story.yes_no or plain_words(story.answer) == [UNKNOWN]:
            return Intervened(kind, None, "the answer is yes, no or unknown")
        if says(left, [story.answer]):
            return Intervened(kind, None, "what is left says the answer already", supported_by(story, left))
        return Intervened(kind, f"{left} {story.answer}")
    return Intervened(kind, left, supported=supported_by(story, left))


def supported_by(story: Story, left: str) -> bool:
    """Whether one sentence of a text says the answer and at least half of the question's content words: redundant evidence."""
    content = [word for word in dict.fromkeys(plain_words(story.question)) if len(word) > 3]
    for start, end in sentences(left):
        words = plain_words(left[start:end])
        near = sum(word in words for word in content)
        if content and 2 * near >= len(content) and says(left[start:end], story.answers):
            return True
    return False


def negate(sentence: str) -> tuple[str | None, str]:
    """The sentence with `not` after its only auxiliary, or None with the reason to skip it."""
    words = plain_words(sentence)
    verbs = [re.compile(rf"\b{verb}\b".replace(" ", r"\s+"), flags=re.IGNORECASE) for verb in AUXILIARIES]
    found = [match for verb in verbs for match in verb.finditer(sentence)]
    if sentence.rstrip().rstrip("\"'”’)").endswith("?"):
        return None, "a question"
    if blocked := sorted(set(words) & BLOCKING) or (["n't"] if re.search(r"n['’]t\b", sentence, re.IGNORECASE) else []):
        return None, f"'{blocked[0]}' cannot be negated by a plain 'not'"
    found = [m for m in found if not any(m is not o and o.start() <= m.start() and m.end() <= o.end() for o in found)]
    if len(found) != 1:
        return None, f"{len(found)} auxiliaries"
    verb = found[0]
    place = verb.start() + len(verb.group().split()[0])  # "has been" -> "has not been"
    return f"{sentence[:place]} not{sentence[place:]}", ""


def swap(sentence: str) -> tuple[str | None, str]:
    """'A hit B' -> 'B hit A' where a listed verb stands between two names, or None with the reason to skip it."""
    name = r"((?:[Tt]he\s+)?[A-Z][\w-]*(?:\s+[A-Z][\w-]*)*)"
    found = list(re.finditer(rf"^{name}\s+({'|'.join(PAST)})\s+{name}", sentence))
    if not found:
        return None, "no listed verb between two names"
    left, verb, right = found[0].group(1), found[0].group(2), found[0].group(3)
    if plain_words(left) == plain_words(right):
        return None, "both sides are the same"
    return f"{right} {verb} {left}{sentence[found[0].end() :]}", ""


def reworded(story: Story, kind: Kind) -> Intervened:
    """The story with its rationale sentence negated or swapped: the user's own text where there is one, else by rule."""
    own = story.negated if kind == "negated" else story.swapped
    if own is not None:
        same = plain_words(own) == plain_words(story.story)
        return Intervened(kind, None, "the given text changes nothing") if same else Intervened(kind, own)
    parts, first, last = _own(story)
    if last - first != 1:
        return Intervened(kind, None, "the rationale has several sentences")
    start, end = parts[first]
    changed, reason = (negate if kind == "negated" else swap)(story.story[start:end])
    if changed is None:
        return Intervened(kind, None, reason)
    return Intervened(kind, story.story[:start] + changed + story.story[end:])


def intervene(story: Story, kind: Kind) -> Intervened:
    """One intervention on one story."""
    if kind == "OS":
        return Intervened(kind, story.story)
    return reworded(story, kind) if kind in ("negated", "swapped") else truncated(story, kind)


__all__ = [
    "DELETIONS", "KINDS", "UNKNOWN", "Intervened", "Kind", "Story", "intervene", "negate", "read_story", "reworded",
    "sentences", "supported_by", "swap", "truncated",
]  # fmt: skip
