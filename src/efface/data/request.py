"""The request: what to forget, what to keep, and on what to judge it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset

from efface.data.columns import canonical
from efface.data.labelled import LABELLED, content_key, is_labelled, plain_row, read_labelled
from efface.data.readers import read_dataset
from efface.errors import RequestError
from efface.run.digests import canonical as canonical_bytes
from efface.run.digests import digest_value
from efface.run.keys import keyed_digest
from efface.run.record import RequestRecord, SetRecord


def data_digest(data: Dataset) -> str:
    """Digest of a canonical data set: ids and contents, in order."""
    sha = hashlib.sha256()
    labelled = is_labelled(data)
    for row in data:
        sha.update(canonical_bytes(plain_row(row) if labelled else row))
    return "sha256:" + sha.hexdigest()


def _keys(data: Dataset) -> dict[Any, int]:
    if is_labelled(data):
        return {content_key(row): index for index, row in enumerate(data)}
    pairs = zip(data["question"], data["answer"], strict=True)
    return {(" ".join(q.split()), " ".join(a.split())): index for index, (q, a) in enumerate(pairs)}


def _refuse_overlap(first: Dataset, second: Dataset, names: tuple[str, str]) -> None:
    if is_labelled(first) != is_labelled(second):
        raise RequestError(
            f"the {names[0]} and the {names[1]} set have other columns ({', '.join(first.column_names)}; "
            f"{', '.join(second.column_names)})", "rows of one kind", "give both in the same form",
        )  # fmt: skip
    same = "same input" if is_labelled(first) else "same question and answer"
    other = _keys(second)
    for pair, index in _keys(first).items():
        if pair in other:
            raise RequestError(
                f"{names[0]} row {index} is also {names[1]} row {other[pair]} ({same})",
                f"{names[0]} and {names[1]} without common rows", f"remove it from the {names[1]} set",
            )  # fmt: skip


def _made(rows: Any, name: str) -> Dataset:
    """Canonical or labelled rows, by their columns."""
    data = rows if isinstance(rows, Dataset) else None
    columns = set(data.column_names) if data is not None else set(rows[0]) if len(rows) else set()
    answers = columns & {"answer", "completion", "messages"}
    if not answers and columns & {*LABELLED["label"], *LABELLED["target"]}:
        return read_labelled(data if data is not None else Dataset.from_list(list(rows)))
    return canonical(rows, name)


def _sources(sets: Mapping[str, Dataset | None], given: Mapping[str, str]) -> dict[str, str]:
    return {name: given.get(name, "in memory") for name, data in sets.items() if data is not None}


@dataclass(frozen=True)
class Request:
    """A validated request: questions with answers, or labelled rows.

    Args:
        forget: rows to forget (canonical columns).
        retain: rows to keep and to train the retain term on.
        holdout: rows that the model has never seen, alike in kind to the forget rows.
        evaluate: named sets for utility (`retain`, `real_authors`, `world_facts`, or any name). Without a `retain`
            entry the retain set itself is evaluated.
        concepts: names of concepts, with an optional replacement each, for methods that take names.
        scope: the request in words; must name no person, it goes into the certificate.

    Raises:
        RequestError: empty set, or rows shared between forget, retain and holdout.
    """

    forget: Dataset
    retain: Dataset | None = None
    holdout: Dataset | None = None
    evaluate: Mapping[str, Dataset] = field(default_factory=dict)
    concepts: Mapping[str, str | None] = field(default_factory=dict)
    scope: str = ""
    received: str | None = None
    approved_by: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, data in self.sets().items():
            if len(data) == 0:
                raise RequestError(f"the {name} set is empty", "at least one row", "check its source")
        if self.retain is not None:
            _refuse_overlap(self.forget, self.retain, ("forget", "retain"))
        if self.holdout is not None:
            _refuse_overlap(self.forget, self.holdout, ("forget", "holdout"))
            if self.retain is not None:
                _refuse_overlap(self.retain, self.holdout, ("retain", "holdout"))
        object.__setattr__(self, "sources", _sources(self.sets(), self.sources))

    @classmethod
    def load(
        cls, forget: str | Path, retain: str | Path | None = None, holdout: str | Path | None = None,
        evaluate: Mapping[str, str | Path] | None = None, *, labelled: bool = False, **fields: Any,
    ) -> Request:  # fmt: skip
        """Read every set from a file or hub name (see `read_dataset`).

        Args:
            labelled: rows for a classifier or regressor (see `read_labelled`).
        """
        read = read_labelled if labelled else read_dataset
        named = {"forget": forget, "retain": retain, "holdout": holdout}
        sets: dict[str, Any] = {name: read(source) if source is not None else None for name, source in named.items()}
        extra = {name: read(source) for name, source in (evaluate or {}).items()}
        sources = {name: str(source) for name, source in named.items() if source is not None}
        sources |= {f"evaluate.{name}": str(source) for name, source in (evaluate or {}).items()}
        return cls(evaluate=extra, sources=sources, **sets, **fields)

    @classmethod
    def from_rows(cls, forget: Any, retain: Any = None, holdout: Any = None, **fields: Any) -> Request:
        """Build from lists of dictionaries or data sets in any accepted layout."""
        evaluate = {name: _made(rows, name) for name, rows in fields.pop("evaluate", {}).items()}
        return cls(
            forget=_made(forget, "forget"), retain=None if retain is None else _made(retain, "retain"),
            holdout=None if holdout is None else _made(holdout, "holdout"), evaluate=evaluate, **fields,
        )  # fmt: skip

    def sets(self) -> dict[str, Dataset]:
        """All sets that are there, by name; evaluation sets as `evaluate.<name>`."""
        named = {"forget": self.forget, "retain": self.retain, "holdout": self.holdout}
        named |= {f"evaluate.{name}": data for name, data in self.evaluate.items()}
        return {name: data for name, data in named.items() if data is not None}

    def evaluation_sets(self) -> dict[str, Dataset]:
        """The sets that an audit scores: forget, retain (its evaluation rows where given), holdout, and the others."""
        sets: dict[str, Dataset] = {"forget": self.forget}
        if "retain" not in self.evaluate and self.retain is not None:
            sets["retain"] = self.retain
        sets |= dict(self.evaluate)
        if self.holdout is not None:
            sets["holdout"] = self.holdout
        return sets

    def record(self, merkle_root: str | None = None) -> RequestRecord:
        """Sizes and digests, without any text."""
        sets = {
            name: SetRecord(source=self.sources[name], rows=len(data), digest=data_digest(data))
            for name, data in self.sets().items()
        }
        parts = {name: row.digest for name, row in sets.items()}
        names = keyed_digest(sorted(self.concepts.items())) if self.concepts else None
        identity = digest_value(parts if names is None else {**parts, "concepts": names})
        return RequestRecord(
            id=identity, scope=self.scope, received=self.received, approved_by=self.approved_by, sets=sets, concepts=names,
            merkle_root=merkle_root,
        )  # fmt: skip
