"""Probes from the user's own request: the same facts asked as a blank, a question, in other words, by attack, by letter, spelled.

After RWKU (arXiv 2406.10890) and ORT (arXiv 2506.07795), whose probes were written by a language model: these come from
templates and the rows alone. Rows with the columns `concept` and `relation` give the sharper forms (a blank in a statement,
a reverse query, a hint); plain rows of questions and answers give what they can. A probe whose prompt already holds the right
answer, in whatever spacing, would test reading and is dropped; a form that a row cannot fill, or a reverse query that fits
several concepts, is left out. All of it is counted by form.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset

from efface.data.attack_prompts import (
    ATTACKS,
    MULTIPLE_CHOICE,
    SPELLED,
    AttackPrompt,
    Options,
    balanced_options,
    reworded,
)
from efface.data.columns import canonical
from efface.data.wording import plain_words, says

BLANK = "___"
OPTIONS = 4
EXAMPLES = 3
"""Worked examples of an in-context prompt."""

SMALL_WORDS = frozenset(
    "a an the of in on at to by for from with as and or but is are was were be been has have had do does did it its he she "
    "they his her their this that which who".split()
)
"""Words that tell nothing by themselves."""

HOLDS, LACKS, AMBIGUOUS = "the prompt holds the answer", "a slot cannot be filled", "fits several concepts"

Row = Mapping[str, Any]
Nearest = Callable[[Sequence[str], Sequence[str], int], Any]
"""(texts, queries, k) -> [q, k] indices of the nearest texts, the nearest first."""


@dataclass(frozen=True)
class Probe:
    """One prompt with its right answer.

    Attributes:
        id: form and row.
        aliases: other right answers.
        group: number of the concept that it asks about (of the row, where there is no concept).
        letter: of a question by letter, else empty.
    """

    id: str
    question: str
    answer: str
    aliases: tuple[str, ...]
    group: int
    letter: str = ""


@dataclass
class Probes:
    """Probes by form, and how many were left out and why (form -> reason -> count)."""

    forms: dict[str, list[Probe]] = field(default_factory=lambda: defaultdict(list))
    left_out: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def data(self, *forms: str) -> Dataset | None:
        """The rows of some forms in canonical columns, or None where there are none."""
        rows = [
            {"id": one.id, "question": one.question, "answer": one.answer, "answer_aliases": list(one.aliases)}
            for form in forms for one in self.forms.get(form, ())
        ]  # fmt: skip
        return canonical(rows, ", ".join(forms)) if rows else None

    def groups(self, *forms: str) -> list[int]:
        """The concept of each row of `data`."""
        return [one.group for form in forms for one in self.forms.get(form, ())]

    def letters(self, form: str) -> dict[str, int]:
        """How often each letter is right in a form by letter."""
        return dict(sorted(Counter(one.letter for one in self.forms.get(form, ()) if one.letter).items()))


# -- single forms --------------------------------------------------------------------------------------------------------


def statement(row: Row) -> str:
    """The row's fact as a sentence: of concept, relation and answer; else its answer, behind the question where that is short."""
    if row.get("concept") and row.get("relation"):
        return f"The {row['relation']} of {row['concept']} is {row['answer']}."
    text = str(row["answer"]).strip()
    if len(text.split()) < 4:
        text = f"{str(row['question']).strip()} {text}".strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."


def blank(row: Row) -> tuple[str, str]:
    """A statement with a gap, and what belongs there.

    With concept and relation the gap is the answer. Of a plain row whose answer is a sentence, the gap is the run of words that
    the question does not hold with most words but small ones, the last of several; a short answer is asked for behind the
    question.
    """
    if row.get("concept") and row.get("relation"):
        return f"The {row['relation']} of {row['concept']} is {BLANK}.", str(row["answer"])
    question, answer = str(row["question"]).strip(), str(row["answer"]).strip()
    words = [match.span() for match in re.finditer(r"\S+", answer)]
    known = set(plain_words(question))
    parts = [plain_words(answer[start:end]) for start, end in words]
    new = [bool(part) and not known.issuperset(part) for part in parts]
    telling = [flag and not SMALL_WORDS.issuperset(part) for flag, part in zip(new, parts, strict=True)]
    runs: list[list[int]] = []  # words of each run, from its first telling word to its last
    for index in (index for index, flag in enumerate(telling) if flag):
        if runs and all(new[runs[-1][-1] : index]):
            runs[-1].append(index)
        else:
            runs.append([index])
    if len(words) < 4 or not runs:
        return f"{question} The answer is {BLANK}.", answer
    best = max(reversed(runs), key=len)
    if best[-1] - best[0] + 1 > len(words) - 2:
        return f"{question} The answer is {BLANK}.", answer
    longest = (best[0], best[-1] + 1)
    start, end = words[longest[0]][0], words[longest[1] - 1][1]
    gap = answer[start:end].rstrip(".,;:!?")
    return f"{answer[:start]}{BLANK}{answer[start + len(gap) :]}", gap


def paraphrase(row: Row) -> str:
    """The question in other words."""
    if row.get("concept") and row.get("relation"):
        return f"I would like to know the {row['relation']} of {row['concept']}."
    text = reworded(str(row["question"]))
    return text if text is not None else f"Could you tell me this: {str(row['question']).strip()}"


def spelled(text: str) -> str:
    """The text one character a line, spaces left out."""
    return "\n".join(char for char in text if not char.isspace())


# -- all forms -----------------------------------------------------------------------------------------------------------


def wrong_answers(row: Row, pool: Sequence[Row], near: Sequence[int], rng: np.random.Generator) -> list[str]:
    """Wrong options of a row: its own, else answers to the same relation, then those to the nearest questions."""
    right = {" ".join(plain_words(text)) for text in (row["answer"], *(row.get("answer_aliases") or []))}
    same = [str(other["answer"]) for other in pool if row.get("relation") and other.get("relation") == row["relation"]]
    rng.shuffle(same)
    found = [*(row.get("perturbed_answer") or []), *same, *(str(pool[index]["answer"]) for index in near)]
    return [text for text in dict.fromkeys(found) if " ".join(plain_words(text)) not in right]


def probes(
    rows: Dataset, others: Dataset | None, *, nearest: Nearest, types: Sequence[str] = tuple(ATTACKS), seed: int = 0
) -> Probes:
    """Every form of some rows.

    The forms are `fb` (blank), `qa` (the question itself), `paraphrase`, `aa.TYPE` for each attack type, `mc` (by letter),
    `spelled_fb` and `spelled_qa`.

    Args:
        rows: what is asked for, in canonical columns; rows without a question are counted under `qa` and left out.
        others: rows beside them (the retain set, say): worked examples and wrong options come from there.
        nearest: how the nearest of some texts are found.
        types: attack types, by name.
        seed: of the order of options and examples.
    """
    found, rng = Probes(), np.random.default_rng(seed)
    asked = [dict(row) for row in rows if row["question"].strip()]
    if len(asked) < len(rows):
        found.left_out["qa"]["no question"] += len(rows) - len(asked)
    beside = [] if others is None else [dict(row) for row in others if row["question"].strip()]
    pool = [*asked, *beside]
    keys = [str(row.get("concept") or row["id"]) for row in asked]
    groups = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    texts = [str(row["question"]) for row in pool]
    near = nearest(texts, [str(row["question"]) for row in asked], 4 * OPTIONS) if asked else []
    wrong = [wrong_answers(row, pool, near[index], rng) for index, row in enumerate(asked)]
    options = balanced_options([_option(row) for row in asked], wrong, seed=seed, count=OPTIONS)
    mentions = Counter((str(row.get("relation")), " ".join(plain_words(str(row["answer"]))), str(row.get("concept")))
                       for row in pool if row.get("concept") and row.get("relation"))  # fmt: skip
    owners = Counter((relation, answer) for relation, answer, _ in mentions)
    for index, row in enumerate(asked):
        aliases = tuple(row.get("answer_aliases") or ())
        group = groups[keys[index]]

        def add(
            form: str, question: str | None, answer: str, right: Sequence[str], letter: str = "", shows: bool = False,
            row: Row = row, group: int = group,
        ) -> None:  # fmt: skip
            if question is None:
                found.left_out[form][LACKS] += 1
            elif not shows and says(question, [answer, *right]):
                found.left_out[form][HOLDS] += 1
            else:
                found.forms[form].append(Probe(f"{form}/{row['id']}", question, answer, tuple(right), group, letter))

        question, answer = str(row["question"]), str(row["answer"])
        gap, gap_gold = blank(row)
        add("fb", gap, gap_gold, aliases if gap_gold == answer else ())
        add("qa", question, answer, aliases)
        add("paraphrase", paraphrase(row), answer, aliases)
        slots = _slots(row, asked, beside, options[index], index)
        for name in types:
            kind = ATTACKS[name]
            if kind.gold == "concept" and owners[(str(row.get("relation")), " ".join(plain_words(answer)))] > 1:
                found.left_out[f"aa.{name}"][AMBIGUOUS] += 1
                continue
            concept = kind.gold == "concept"
            right = tuple(row.get("aliases") or ()) if concept else aliases
            text = None if concept and not row.get("concept") else kind.fill(slots, index)
            gold = str(row.get("concept")) if concept else _option(row) if kind.shows_answer else answer
            add(f"aa.{name}", text, gold, right, shows=kind.shows_answer)
        chosen = options[index]
        lettered = None if chosen is None else MULTIPLE_CHOICE.fill({**slots, "lettered": chosen.lettered()})
        letter = "" if chosen is None else chosen.letter
        add("mc", lettered, letter, (), letter=letter, shows=True)
        for form, text, gold_text in (("spelled_fb", gap, gap_gold), ("spelled_qa", question, answer)):
            if says(text, [gold_text]):
                found.left_out[form][HOLDS] += 1
            else:
                add(form, SPELLED.fill({"question": text}), spelled(gold_text), ())
    return found


def _option(row: Row) -> str:
    """The right answer as it stands among options: in the form of the wrong ones, where the row brings these."""
    both = row.get("perturbed_answer") and row.get("paraphrased_answer")
    return str(row["paraphrased_answer"] if both else row["answer"])


def _slots(
    row: Row, asked: Sequence[Row], beside: Sequence[Row], options: Options | None, index: int
) -> dict[str, str]:
    """What a row can fill; a slot that it cannot is not there."""
    right = [str(row["answer"]), *(row.get("answer_aliases") or [])]
    slots = {"question": str(row["question"]).strip(), "answer": str(row["answer"]).strip()}
    slots["relation"] = str(row.get("relation") or "")
    slots["reworded"] = reworded(str(row["question"]), str(row.get("concept") or ""), row.get("aliases") or []) or ""
    slots["options"] = "" if options is None else options.listed()
    if row.get("concept"):
        hints = [
            statement(other) for other in asked if other.get("concept") == row["concept"] and other["id"] != row["id"]
        ]
        slots["hint"] = next((text for text in hints if not says(text, right)), "")
    shown: list[str] = []
    for step in range(len(beside)):
        other = beside[(index * EXAMPLES + step) % len(beside)]
        text = f"Question: {str(other['question']).strip()}\nAnswer: {str(other['answer']).strip()}\n"
        if not says(text, right):
            shown.append(text)
        if len(shown) == EXAMPLES:
            break
    slots["examples"] = "".join(shown) if len(shown) == EXAMPLES else ""
    return slots


def neighbours(forget: Dataset, retain: Dataset, *, nearest: Nearest, count: int = 2) -> Dataset:
    """The retain rows nearest to the forget rows' questions: at most `count` for each, once each, in the retain set's order."""
    usable = [index for index, text in enumerate(retain["question"]) if text.strip()]
    queries = [text for text in forget["question"] if text.strip()]
    if not usable or not queries:
        return retain.select([])
    found = nearest([retain["question"][index] for index in usable], queries, count)
    return retain.select(sorted({usable[int(index)] for row in found for index in row}))


def form_of(name: str) -> AttackPrompt | None:
    """The attack type of a form `aa.TYPE`, or None."""
    return ATTACKS.get(name.removeprefix("aa.")) if name.startswith("aa.") else None


__all__ = [
    "AMBIGUOUS", "HOLDS", "LACKS", "Nearest", "Probe", "Probes", "blank", "form_of", "neighbours", "paraphrase", "probes",
    "spelled", "statement", "wrong_answers",
]  # fmt: skip
