"""Requests that come one after another, as one forget set: rows of request k have ids `k:...`, in the order of the requests.

`A + B` names the joined set of the sources A and B wherever one source is named, so that a run over several requests can be
audited again from its record. A row that two requests share is refused: the second would find nothing to forget.
"""

from __future__ import annotations

from collections.abc import Sequence

from datasets import Dataset

from efface.errors import RequestError

JOIN = " + "
"""Between the sources of a joined set."""


def join(parts: Sequence[Dataset], names: Sequence[str]) -> Dataset:
    """One canonical set from several; columns that only some of them have are left out.

    Args:
        parts: canonical sets, in the order of the requests.
        names: what to call them in an error.

    Raises:
        RequestError: two requests with the same question and answer.
    """
    seen: dict[tuple[str, str], tuple[int, int]] = {}
    for number, data in enumerate(parts):
        for row, (question, answer) in enumerate(zip(data["question"], data["answer"], strict=True)):
            key = (" ".join(question.split()), " ".join(answer.split()))
            other, place = seen.setdefault(key, (number, row))
            if other != number:
                raise RequestError(
                    f"request {number + 1} ({names[number]}) row {row} is also request {other + 1} ({names[other]}) row {place}",
                    "requests without common rows", "remove it from the later one: it is forgotten by then",
                )  # fmt: skip
    shared = [name for name in parts[0].column_names if all(name in data.column_names for data in parts)]
    return Dataset.from_list([
        {**row, "id": f"{number}:{row['id']}"}
        for number, data in enumerate(parts, 1) for row in data.select_columns(shared)
    ])  # fmt: skip


def request_of(identity: str) -> int:
    """The number of the request, from 1, that a row of a joined set belongs to.

    Raises:
        RequestError: an id without a number before its first colon.
    """
    number, colon, _ = identity.partition(":")
    if not colon or not number.isdigit():
        raise RequestError(f"the id '{identity}'", "the id of a row of several requests, as 1:...", "join them again")
    return int(number)


def split_joined(data: Dataset) -> list[Dataset]:
    """The requests of a joined set, in order; rows keep their numbered ids."""
    numbers = [request_of(identity) for identity in data["id"]]
    return [data.select([i for i, n in enumerate(numbers) if n == k]) for k in sorted(set(numbers))]


__all__ = ["JOIN", "join", "request_of", "split_joined"]
