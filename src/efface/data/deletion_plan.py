"""The deletion plan: which record went into which shard and slice, which orders are live, and what was deleted.

Records are shuffled by the digest of a recorded seed and the record's content, then dealt out evenly, so a sorted data set
gives no class-pure slices. Records of equal content are one record: they share a place, only the first is trained on,
and a request for one is a request for all. The place of a record is fixed once and kept when others go: that is part of the
plan and public, as in S3T (arXiv 2406.16257).
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from efface.errors import ConfigError, RequestError, RunError
from efface.numerics.slice_orders import Order, cut, positions_of
from efface.run.digests import digest_value
from efface.run.files import read_json, write_json

DELETED = "deleted"
"""Stands for the digest of a content that is gone: a digest of a person's data is personal data too."""

Place = tuple[int, int]
"""(shard, slice), both from 0."""


def record_content(row: Mapping[str, Any]) -> list[str]:
    """What makes two rows the same record: question and answer in Unicode's composed form, white space folded."""
    return [unicodedata.normalize("NFC", " ".join(str(row[name]).split())) for name in ("question", "answer")]


@dataclass(frozen=True)
class Deletion:
    """One request in the ledger.

    Attributes:
        record: digest of the record's content; the id itself is not kept here.
        place: shard and slice.
        copies: records of this content, all of which are gone.
        repeated: the content was deleted before; the request changes nothing but counts.
    """

    record: str
    place: Place
    copies: int
    repeated: bool


@dataclass
class DeletionPlan:
    """See the module.

    Args:
        seed: of the shuffle.
        slices: L, the same in every shard.
        orders: [m] lists of orders, one list a shard.
        places: record id to place.
        contents: record id to the digest of its content.
        ledger: requests in their order.
        earlier: [m][L] requests before the ledger's first, where their entries are not at hand.
    """

    seed: int
    slices: int
    orders: list[list[Order]]
    places: dict[str, Place]
    contents: dict[str, str]
    ledger: list[Deletion] = field(default_factory=list)
    earlier: list[list[int]] = field(default_factory=list)

    @classmethod
    def make(
        cls, records: Mapping[str, Any], orders: Sequence[Sequence[Order]], *, slices: int, seed: int,
        slice_of: Mapping[str, int] | None = None,
    ) -> DeletionPlan:  # fmt: skip
        """Deal records out.

        Args:
            records: id to content, any JSON value.
            orders: of every shard.
            slice_of: id to the slice that a record belongs to, where the user decides it (by how likely records are to
                be deleted); the shard is dealt out all the same.

        Raises:
            ConfigError: fewer different records than slices, or an order that is no permutation.
        """
        for order in (order for shard in orders for order in shard):
            if sorted(order) != list(range(slices)):
                raise ConfigError(f"order {order}", f"a permutation of 0 to {slices - 1}")
        if not orders or not all(orders):
            raise ConfigError("a shard without an order", "at least one shard, and one order in each")
        contents = {name: digest_value(content) for name, content in records.items()}
        shuffled = sorted(set(contents.values()), key=lambda content: digest_value([seed, content]))
        parts = len(orders) * slices
        if len(shuffled) < parts:
            raise ConfigError(
                f"{len(shuffled)} different records for {len(orders)} shards of {slices} slices", f"at least {parts}",
                "lower shards or slices",
            )  # fmt: skip
        where: dict[str, Place] = {}
        if slice_of is None:
            for part, chunk in enumerate(np.array_split(np.arange(len(shuffled)), parts)):
                where |= {shuffled[i]: (part // slices, part % slices) for i in chunk.tolist()}
        else:
            where = _dealt(shuffled, contents, slice_of, shards=len(orders), slices=slices)
        places = {name: where[content] for name, content in contents.items()}
        return cls(seed, slices, [list(shard) for shard in orders], places, contents)

    # -- reading --------------------------------------------------------------------------------------------------

    @property
    def shards(self) -> int:
        """m."""
        return len(self.orders)

    def requests(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """[m, L] requests that each slice has had, repeated ones included."""
        count = np.zeros((self.shards, self.slices), dtype=np.int64)
        if self.earlier:
            count += np.asarray(self.earlier, dtype=np.int64)
        for entry in self.ledger:
            count[entry.place] += 1
        return count

    def deleted(self) -> set[str]:
        """Digests of the contents that are gone."""
        return {entry.record for entry in self.ledger}

    def rows(self, shard: int, slices: Sequence[int]) -> list[str]:
        """Ids to train on: one of every content in these slices that is not deleted, in an order of their digests alone.

        Raises:
            RequestError: a slice has lost a record; nothing may be trained on it any more.
        """
        gone = self.requests()[shard]
        if any(gone[s] for s in slices):
            raise RequestError(f"shard {shard}, slices {list(slices)}: a slice with deleted records", "whole slices")
        wanted, seen = {(shard, s) for s in slices}, set()
        found = []
        for name, place in sorted(self.places.items()):  # of equal contents the smallest id stands for all
            if place in wanted and self.contents[name] not in seen:
                seen.add(self.contents[name])
                found.append(name)
        return sorted(found, key=lambda name: digest_value([self.seed, self.contents[name]]))

    # -- deleting -------------------------------------------------------------------------------------------------

    def delete(self, record: str, content: Any = None) -> Deletion:
        """Enter a request for a record and every copy of it.

        Args:
            record: its id.
            content: where given, must be what the plan knows under this id.

        Raises:
            RequestError: unknown id, or another content.
        """
        if record not in self.contents:
            raise RequestError(
                f"record '{record}' is not in the deletion plan", "an id that was trained on", "check it"
            )
        digest = self.contents[record]
        if digest == DELETED:
            entry = Deletion(digest_value([DELETED, record]), self.places[record], 0, True)
            self.ledger.append(entry)
            return entry
        if content is not None and digest_value(content) != digest:
            raise RequestError(
                f"record '{record}' has another content than the one that was trained on", "the same record",
                "give the rows as they were trained on, with their ids",
            )  # fmt: skip
        copies = sum(other == digest for other in self.contents.values())
        entry = Deletion(digest, self.places[record], copies, digest in self.deleted())
        self.ledger.append(entry)
        return entry

    def without(self, gone: Sequence[str], requests: Sequence[Sequence[int]]) -> DeletionPlan:
        """The plan to serve on with: requests as counts, and no digest of what was deleted.

        Args:
            gone: ids that were deleted; they stay known, so that a second request for one is counted and not refused.
            requests: [m][L] requests so far.
        """
        digests = {self.contents[name] for name in gone}
        contents = {name: DELETED if digest in digests else digest for name, digest in self.contents.items()}
        return dataclasses.replace(self, contents=contents, ledger=[], earlier=[list(row) for row in requests])

    def having(self, back: Mapping[str, str], requests: Sequence[Sequence[int]]) -> DeletionPlan:
        """`without` undone: digests by id, and the requests that are left."""
        earlier = [list(row) for row in requests] if any(map(any, requests)) else []
        return dataclasses.replace(self, contents={**self.contents, **back}, ledger=[], earlier=earlier)

    # -- lineage --------------------------------------------------------------------------------------------------

    def prefixes(self) -> list[list[int]]:
        """[m][B] live prefix of every order; 0 is dead."""
        return live_prefixes(self.orders, self.requests())

    def serving(self) -> list[Order | None]:
        """[m] the prefix that each shard serves: the longest, of equal ones the first; None where the shard failed."""
        return longest(self.orders, self.prefixes())

    # -- storage --------------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """All of it as a JSON value, with its digest."""
        plain = {
            "seed": self.seed, "slices": self.slices, "orders": [[list(o) for o in shard] for shard in self.orders],
            "places": {name: list(place) for name, place in sorted(self.places.items())},
            "contents": dict(sorted(self.contents.items())),
            "earlier": [list(row) for row in self.earlier],
            "ledger": [{**dataclasses.asdict(entry), "place": list(entry.place)} for entry in self.ledger],
        }  # fmt: skip
        return {**plain, "digest": digest_value(plain)}

    @property
    def digest(self) -> str:
        """Digest of places, orders and ledger."""
        return str(self.facts()["digest"])

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(path, self.facts())

    @classmethod
    def load(cls, path: Path) -> DeletionPlan:
        """Read a saved plan.

        Raises:
            RunError: the file is no plan, or was changed.
        """
        facts = read_json(path)
        if not isinstance(facts, dict) or "digest" not in facts:
            raise RunError(f"{path} is not a deletion plan", "one written by efface", "copy it again")
        if digest_value({key: value for key, value in facts.items() if key != "digest"}) != facts["digest"]:
            raise RunError(f"{path} was changed after it was written", None, "copy it again")
        try:
            return cls(
                seed=facts["seed"], slices=facts["slices"],
                orders=[[tuple(order) for order in shard] for shard in facts["orders"]],
                places={name: (place[0], place[1]) for name, place in facts["places"].items()}, contents=facts["contents"],
                ledger=[Deletion(**{**entry, "place": tuple(entry["place"])}) for entry in facts["ledger"]],
                earlier=facts["earlier"],
            )  # fmt: skip
        except (KeyError, TypeError, IndexError) as error:
            raise RunError(f"{path} is not a deletion plan", "one written by efface", "copy it again") from error


def _dealt(
    shuffled: Sequence[str], contents: Mapping[str, str], slice_of: Mapping[str, int], *, shards: int, slices: int
) -> dict[str, Place]:
    """Contents to their given slices, over the shards in turn.

    Raises:
        RequestError: a record without a slice, one out of range, two slices for one content, or an empty part.
    """
    wanted: dict[str, int] = {}
    for name, content in contents.items():
        chosen = slice_of.get(name)
        if chosen is None or not 0 <= chosen < slices:
            raise RequestError(f"record '{name}': slice {chosen}", f"0 to {slices - 1}", "mend the column 'slice'")
        if wanted.setdefault(content, chosen) != chosen:
            raise RequestError(
                f"record '{name}' has the content of one in slice {wanted[content]}", "one slice for both"
            )
    count = [0] * slices
    where = {}
    for content in shuffled:
        here = wanted[content]
        where[content] = (count[here] % shards, here)
        count[here] += 1
    if min(count) < shards:
        raise RequestError(f"{min(count)} records in slice {count.index(min(count))}", f"{shards} or more, one a shard")
    return where


def live_prefixes(orders: Sequence[Sequence[Order]], requests: np.ndarray[Any, np.dtype[np.int64]]) -> list[list[int]]:
    """[m][B] live prefix of every order, from the requests [m, L] that each slice has had."""
    found = []
    for shard, hits in zip(orders, requests, strict=True):
        where = positions_of(shard)
        prefix = np.full(len(shard), where.shape[1], dtype=np.int64)
        for hit in np.flatnonzero(hits):
            prefix = cut(prefix, where, int(hit))
        found.append(prefix.tolist())
    return found


def longest(orders: Sequence[Sequence[Order]], prefixes: Sequence[Sequence[int]]) -> list[Order | None]:
    """[m] the longest live prefix of each shard, of equal ones the first order's; None where there is none."""
    found: list[Order | None] = []
    for shard, lengths in zip(orders, prefixes, strict=True):
        best = max(range(len(shard)), key=lambda k: (lengths[k], -k))
        found.append(tuple(shard[best][: lengths[best]]) if lengths[best] else None)
    return found
