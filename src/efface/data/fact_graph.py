"""The fact graph: who stands to whom in what relation, which facts are to be forgotten, and the ways that lead to a fact.

Edges are facts (s, r, o) with other spellings of o and a mark: forget, retain, or none (other facts, for descriptions only).
A path ends in a fact, and its earlier hops say who s is without naming s: forwards (s', r', s), or backwards, by a value that
s alone has. Used by the attack of arXiv 2506.17279; built from a request's rows or from a table of one's own.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from efface.data.request import Request
from efface.data.tagged import normalise
from efface.errors import RequestError

Mark = Literal["forget", "retain", "none"]
MARKS: tuple[Mark, ...] = ("forget", "retain", "none")
MIXED = "one mark for each fact"


@dataclass(frozen=True)
class Fact:
    """One edge.

    Attributes:
        id: of the row that it comes from.
        subject, relation, object: as texts.
        aliases: other spellings of the object.
        mark: whether it is to be forgotten, to be kept, or neither.
        questions: how the user's own rows ask for it; may be empty.
    """

    id: str
    subject: str
    relation: str
    object: str
    aliases: tuple[str, ...] = ()
    mark: Mark = "none"
    questions: tuple[str, ...] = ()

    @property
    def values(self) -> tuple[str, ...]:
        """The object and its other spellings."""
        return (self.object, *self.aliases)

    @property
    def key(self) -> tuple[str, str, str]:
        """What makes two rows one fact."""
        return normalise(self.subject), normalise(self.relation), normalise(self.object)


@dataclass(frozen=True)
class Hop:
    """One step: from the subject to the object, or `backwards`."""

    fact: Fact
    backwards: bool = False

    @property
    def start(self) -> str:
        """Where it leaves."""
        return self.fact.object if self.backwards else self.fact.subject

    @property
    def end(self) -> str:
        """Where it arrives."""
        return self.fact.subject if self.backwards else self.fact.object


FactPath = tuple[Hop, ...]
"""Hops, each of which leaves where the one before arrived; the last is the fact itself, forwards."""


@dataclass(frozen=True)
class FactGraph:
    """Facts by their ends.

    Raises:
        RequestError: no fact, a fact without words, or one fact that is both to be forgotten and to be kept.
    """

    facts: tuple[Fact, ...]
    _by_subject: dict[str, list[Fact]] = field(default_factory=dict, repr=False)
    _by_object: dict[str, list[Fact]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.facts:
            raise RequestError("a fact graph without a fact", "rows with concept, relation and answer")
        seen: dict[tuple[str, str, str], Fact] = {}
        for fact in self.facts:
            if not all(fact.key):
                raise RequestError(
                    f"fact '{fact.id}': ({fact.subject!r}, {fact.relation!r}, {fact.object!r})",
                    "a subject, a relation and an answer with a letter or digit each", "mend or drop the row",
                )  # fmt: skip
            if fact.key in seen:
                raise RequestError(f"facts '{seen[fact.key].id}' and '{fact.id}' are the same", "each fact once")
            seen[fact.key] = fact
            self._by_subject.setdefault(fact.key[0], []).append(fact)
            self._by_object.setdefault(fact.key[2], []).append(fact)

    # -- looking round ----------------------------------------------------------------------------------------------

    def marked(self, mark: Mark) -> list[Fact]:
        """The facts of one mark, in order."""
        return [fact for fact in self.facts if fact.mark == mark]

    def about(self, subject: str) -> list[Fact]:
        """The facts that leave an entity."""
        return self._by_subject.get(normalise(subject), [])

    def leading_to(self, value: str) -> list[Fact]:
        """The facts that arrive at an entity or value."""
        return self._by_object.get(normalise(value), [])

    def of_relation(self, relation: str) -> list[Fact]:
        """The facts of a relation, in order."""
        wanted = normalise(relation)
        return [fact for fact in self.facts if fact.key[1] == wanted]

    def single_valued(self, fact: Fact) -> bool:
        """Whether (s, r) leads to this object alone, so that the question has one answer."""
        return sum(other.key[1] == fact.key[1] for other in self.about(fact.subject)) == 1

    def tells_apart(self, fact: Fact) -> bool:
        """Whether s is the only one with (r, o), so that "the one whose r is o" means s."""
        return sum(other.key[1] == fact.key[1] for other in self.leading_to(fact.object)) == 1

    # -- ways -------------------------------------------------------------------------------------------------------

    def arriving(self, entity: str) -> Iterator[Hop]:
        """Every hop that says unmistakably who an entity is: forwards to it, or backwards from a value of its own."""
        for fact in self.leading_to(entity):
            if self.single_valued(fact):
                yield Hop(fact)
        for fact in self.about(entity):
            if self.tells_apart(fact):
                yield Hop(fact, backwards=True)

    def paths(self, fact: Fact, length: int) -> Iterator[FactPath]:
        """Every path of so many hops that ends in the fact and comes to no place twice.

        Args:
            fact: the last hop, taken forwards.
            length: 1 gives the fact alone.
        """
        yield from self._longer((Hop(fact),), length)

    def _longer(self, path: FactPath, length: int) -> Iterator[FactPath]:
        if len(path) == length:
            yield path
            return
        places = {normalise(path[0].start), *(normalise(hop.end) for hop in path)}
        for hop in self.arriving(path[0].start):
            if normalise(hop.start) not in places:
                yield from self._longer((hop, *path), length)


def from_rows(rows: Iterable[tuple[Mapping[str, Any], Mark]]) -> FactGraph:
    """A graph from rows with columns concept, relation, answer and, where there are any, answer_aliases, id, question.

    Rows that give the same fact (other wordings of it) become one fact with all its questions and aliases.

    Raises:
        RequestError: a column is missing, or two rows mark one fact differently.
    """
    found: dict[tuple[str, str, str], Fact] = {}
    for index, (row, mark) in enumerate(rows):
        missing = [name for name in ("concept", "relation", "answer") if not isinstance(row.get(name), str)]
        if missing:
            raise RequestError(
                f"row {row.get('id', index)}: no {' and no '.join(missing)}", "columns concept, relation and answer",
                "add them, or give a table of facts (sleek.graph=FILE)",
            )  # fmt: skip
        asked = (row["question"],) if row.get("question") else ()
        fact = Fact(
            str(row.get("id", index)), row["concept"], row["relation"], row["answer"], tuple(row.get("answer_aliases") or ()),
            mark, asked,
        )  # fmt: skip
        known = found.get(fact.key)
        if known is None:
            found[fact.key] = fact
            continue
        if mark != known.mark and "none" not in (mark, known.mark):
            raise RequestError(f"rows '{known.id}' ({known.mark}) and '{fact.id}' ({mark}) give the same fact", MIXED)
        found[fact.key] = Fact(
            known.id, known.subject, known.relation, known.object, tuple(dict.fromkeys((*known.aliases, *fact.aliases))),
            mark if known.mark == "none" else known.mark, tuple(dict.fromkeys((*known.questions, *asked))),
        )  # fmt: skip
    return FactGraph(tuple(found.values()))


def read_table(path: Path) -> list[tuple[dict[str, Any], Mark]]:
    """Rows of a JSON list or a CSV file with columns concept, relation, answer, answer_aliases, mark (default none).

    In CSV, `answer_aliases` is a JSON list in its field.

    Raises:
        RequestError: the file is missing or broken, or a mark is none of forget, retain, none.
    """
    if path.suffix not in {".json", ".csv"}:
        raise RequestError(f"a table of facts at '{path}'", "a .json or .csv file", "convert it")
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = json.loads(text) if path.suffix == ".json" else list(csv.DictReader(io.StringIO(text, newline="")))
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError("not a list of objects")
        if path.suffix == ".csv":
            for row in rows:
                row["answer_aliases"] = json.loads(row.get("answer_aliases") or "[]")
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise RequestError(f"{path} is no table of facts ({error})", "rows with concept, relation, answer") from error
    found: list[tuple[dict[str, Any], Mark]] = []
    for index, row in enumerate(rows):
        mark, aliases = row.get("mark") or "none", row.get("answer_aliases") or []
        if mark not in MARKS:
            raise RequestError(f"{path}, row {index}: mark '{mark}'", f"one of {', '.join(MARKS)}")
        if not isinstance(aliases, list) or not all(isinstance(text, str) and text.strip() for text in aliases):
            raise RequestError(f"{path}, row {index}: answer_aliases {aliases!r}", "a list of texts")
        found.append(({**row, "id": row.get("id") or f"table/{index}"}, cast(Mark, mark)))
    return found


def from_request(request: Request, table: Path | None = None) -> FactGraph:
    """The graph of a request's forget and retain rows, and of a table where one is given.

    Rows without concept and relation are left to the table: it then has to mark facts to forget itself.

    Raises:
        RequestError: nothing is marked to be forgotten, or as `from_rows` and `read_table`.
    """
    rows: list[tuple[Mapping[str, Any], Mark]] = []
    parts: tuple[tuple[Any, Mark], ...] = ((request.forget, "forget"), (request.retain, "retain"))
    for data, mark in parts:
        if data is not None and (
            {"concept", "relation"} <= set(data.column_names) or (table is None and mark == "forget")
        ):
            rows += [(row, mark) for row in data]
    if table is not None:
        rows += read_table(table)
    graph = from_rows(rows)
    if not graph.marked("forget"):
        raise RequestError(
            "no fact is marked to be forgotten", "forget rows with concept and relation, or a marked table"
        )
    return graph


__all__ = ["Fact", "FactGraph", "FactPath", "Hop", "Mark", "from_request", "from_rows", "read_table"]
