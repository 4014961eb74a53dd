"""Column conventions: whatever a data set calls its columns, the rest of efface sees one form.

Canonical columns: `id` (text, stable), `question` (text, may be empty), `answer` (text), and optionally
`paraphrased_answer` (text), `perturbed_answer` (list of texts: wrong answers in the same form) and `answer_aliases` (list of
texts: other right answers). For knowledge that is named in a prompt: `concept` (text: whom or what the row is about),
`relation` (text: what of it is asked), `distractors` (list of texts: other concepts) and
`aliases` (list of texts: the concept's other names). For sliced training: `slice` (a number from 0).
Accepted besides: `prompt`/`completion`, `text` (an answer without a question), and two-turn `messages`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from datasets import Dataset

from efface.errors import RequestError

OPTIONAL = (
    "paraphrased_answer", "perturbed_answer", "answer_aliases", "concept", "relation", "distractors", "aliases", "slice"
)  # fmt: skip
LISTS = {
    "perturbed_answer": "wrong answers", "answer_aliases": "other right answers", "distractors": "other concepts",
    "aliases": "other names",
}  # fmt: skip
EMPTY_ALLOWED = ("aliases", "answer_aliases")
"""A concept may have no other name, and an answer no other form."""
Row = Mapping[str, Any]


def _text(row: Row, column: str, place: str) -> str:
    if column not in row:
        raise RequestError(f"{place}, column '{column}': missing", "text", "fill or drop the row")
    value = row[column]
    if not isinstance(value, str):
        raise RequestError(
            f"{place}, column '{column}': {type(value).__name__} ({str(value)[:40]!r})", "text",
            "make every value of this column a string",
        )  # fmt: skip
    return value


def _texts(value: Any, column: str, what: str, place: str) -> list[str]:
    found = [value] if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else value
    whole = isinstance(found, list) and all(isinstance(text, str) and text.strip() for text in found)
    if not whole or (not found and column not in EMPTY_ALLOWED):
        raise RequestError(
            f"{place}, column '{column}': {type(found).__name__}", "a list of non-empty texts",
            f"give the {what} as a JSON list of strings",
        )  # fmt: skip
    return list(found)


def _from_messages(row: Row, place: str) -> tuple[str, str]:
    turns = row["messages"]
    shape = isinstance(turns, list) and [turn.get("role") for turn in turns if isinstance(turn, Mapping)]
    if shape != ["user", "assistant"]:
        raise RequestError(
            f"{place}, column 'messages': roles {shape or type(turns).__name__}", "one user turn and one assistant turn",
            "split longer conversations into pairs",
        )  # fmt: skip
    return _text(turns[0], "content", place), _text(turns[1], "content", place)


def canonical_row(row: Row, index: int, source: str) -> dict[str, Any]:
    """One row in canonical columns.

    Args:
        row: any of the accepted layouts.
        index: position in the data set; becomes the id where the row has none.
        source: what to call the data set in an error.

    Raises:
        RequestError: missing column, wrong type or empty answer, naming row and column.
    """
    place = f"{source}, row {index}"
    if "question" in row and "answer" in row:
        question, answer = _text(row, "question", place), _text(row, "answer", place)
    elif "prompt" in row and "completion" in row:
        question, answer = _text(row, "prompt", place), _text(row, "completion", place)
    elif "messages" in row:
        question, answer = _from_messages(row, place)
    elif "text" in row:
        question, answer = "", _text(row, "text", place)
    else:
        raise RequestError(
            f"{place}: columns {sorted(row)}", "question and answer (or prompt and completion, messages, or text)",
            "rename the columns",
        )  # fmt: skip
    if not answer.strip():
        raise RequestError(f"{place}, column 'answer': empty", "some text to learn or forget", "fill or drop the row")
    identity = row.get("id", index)
    if isinstance(identity, bool) or not isinstance(identity, (str, int)) or identity == "":
        raise RequestError(f"{place}, column 'id': {identity!r}", "text or a whole number", "give each row a stable id")
    clean: dict[str, Any] = {"id": str(identity), "question": question, "answer": answer}
    if row.get("paraphrased_answer") is not None:
        clean["paraphrased_answer"] = _text(row, "paraphrased_answer", place)
    if row.get("concept") is not None:
        clean["concept"] = _text(row, "concept", place)
        if not clean["concept"].strip():
            raise RequestError(f"{place}, column 'concept': empty", "a name", "fill the column or drop it")
    if row.get("relation") is not None:
        clean["relation"] = _text(row, "relation", place)
    if row.get("slice") is not None:
        if isinstance(row["slice"], bool) or not isinstance(row["slice"], int) or row["slice"] < 0:
            raise RequestError(f"{place}, column 'slice': {row['slice']!r}", "a whole number from 0", "mend the row")
        clean["slice"] = int(row["slice"])
    for column, what in LISTS.items():
        if row.get(column) is not None:
            clean[column] = _texts(row[column], column, what, place)
    return clean


def canonical(rows: Iterable[Row], source: str) -> Dataset:
    """A data set in canonical columns.

    Optional columns are kept only where every row has them, except that a mixture is an error.

    Raises:
        RequestError: empty set, bad row, duplicate ids, or a column that only some rows fill.
    """
    clean = [canonical_row(row, index, source) for index, row in enumerate(rows)]
    if not clean:
        raise RequestError(f"{source} is empty", "at least one row", "check the path or the filter that made it")
    seen: dict[str, int] = {}
    for index, row in enumerate(clean):
        if row["id"] in seen:
            raise RequestError(
                f"{source}, row {index}: id {row['id']!r} also in row {seen[row['id']]}", "unique ids",
                "remove the duplicate or give it another id",
            )  # fmt: skip
        seen[row["id"]] = index
    for column in OPTIONAL:
        filled = [index for index, row in enumerate(clean) if column in row]
        if filled and len(filled) < len(clean):
            missing = next(index for index, row in enumerate(clean) if column not in row)
            raise RequestError(
                f"{source}, row {missing}, column '{column}': missing, while row {filled[0]} has it", "all rows or none",
                "fill the column everywhere or drop it",
            )  # fmt: skip
    return Dataset.from_list(clean)
