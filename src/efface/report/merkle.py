"""The Merkle root of a forget set: it shows later that a record was in it, and until then shows nothing.

A plain hash of personal data is still personal data, because whoever guesses the record can check the guess.
So every leaf is keyed: HMAC-SHA256 under a key that is kept apart from the run (RFC 2104). The tree above the
leaves follows RFC 6962, section 2.1: leaves and nodes carry different prefixes, and an odd node is promoted,
not doubled. Leaves stand in the order of their hashes, so that the order of the rows does not count.
"""

from __future__ import annotations

import hashlib
import hmac
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from efface.errors import RunError
from efface.run.keys import KEY_BYTES, secret_key

CANONICALISATION = "efface-row-v1"
"""How a row becomes bytes: JSON, keys sorted, no spaces, UTF-8, no NaN (`efface.run.digests.canonical`)."""

LEAF, NODE = b"\x00", b"\x01"

Row = tuple[str, bytes]
"""A stable id, and the row in its canonical form."""


def leaf_hash(row: Row, key: bytes) -> bytes:
    """[32] keyed hash of one row. The id's length is hashed too, so that id and row cannot run together."""
    name = row[0].encode("utf-8")
    return hmac.new(key, LEAF + len(name).to_bytes(8, "big") + name + row[1], hashlib.sha256).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(NODE + left + right).digest()


def _levels(rows: Iterable[Row], key: bytes) -> list[list[bytes]]:
    """Every level of the tree, leaves first; the last has one entry, the root."""
    if len(key) != KEY_BYTES:
        raise RunError(f"a Merkle key of {len(key)} bytes", f"{KEY_BYTES} bytes")
    level = sorted(leaf_hash(row, key) for row in rows)
    if not level:
        raise RunError("a Merkle root of no rows", "at least one row of the forget set")
    levels = [level]
    while len(level) > 1:
        pairs = [_node(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = pairs + level[-1:] if len(level) % 2 else pairs
        levels.append(level)
    return levels


def merkle_root(rows: Iterable[Row], key: bytes) -> str:
    """The root over all rows, as `sha256:<hex>`. Equal rows count as often as they stand there.

    Args:
        rows: (id, canonical JSON) of every row, in any order.
        key: 32 secret bytes (see `load_or_create_key`).

    Raises:
        RunError: no rows, or a key of another length.
    """
    return "sha256:" + _levels(rows, key)[-1][0].hex()


@dataclass(frozen=True)
class InclusionProof:
    """The way from one leaf to the root.

    Attributes:
        index: position of the leaf, counted from 0, among `rows` leaves.
        rows: number of leaves of the tree.
        path: hex digests of the neighbours, from the leaf up; a promoted node has none.
    """

    index: int
    rows: int
    path: tuple[str, ...]


def prove_inclusion(rows: Iterable[Row], row: Row, key: bytes) -> InclusionProof:
    """A proof that `row` is one of `rows`.

    Raises:
        RunError: it is not.
    """
    levels = _levels(rows, key)
    leaf = leaf_hash(row, key)
    start = index = bisect_left(levels[0], leaf)
    if index == len(levels[0]) or levels[0][index] != leaf:
        raise RunError("this record is not in the forget set", "the same id and the same content, letter for letter")
    path = []
    for level in levels[:-1]:
        if index ^ 1 < len(level):
            path.append(level[index ^ 1].hex())
        index //= 2
    return InclusionProof(start, len(levels[0]), tuple(path))


def check_inclusion(root: str, row: Row, proof: InclusionProof, key: bytes) -> bool:
    """Whether the proof leads from `row` to `root`. A neighbour's side follows from index and size."""
    index, size, path = proof.index, proof.rows, list(proof.path)
    if not 0 <= index < size:
        return False
    value = leaf_hash(row, key)
    while size > 1:
        if index ^ 1 < size:
            if not path:
                return False
            try:
                other = bytes.fromhex(path.pop(0))
            except ValueError:
                return False
            value = _node(other, value) if index % 2 else _node(value, other)
        index, size = index // 2, (size + 1) // 2
    return not path and hmac.compare_digest("sha256:" + value.hex(), root)


def load_or_create_key(path: Path | None = None) -> bytes:
    """The key of the leaves: 32 random bytes, made on first use, never inside a run folder.

    Args:
        path: the key file; default `keys/merkle.key` in `EFFACE_HOME`.

    Raises:
        RunError: the path lies inside a run folder, others may read the file, or it is no key.
        StorageError: it cannot be written or read.
    """
    return secret_key(
        "merkle", path,
        lost="restore it from a backup: roots made with a lost key can never be proved again",
    )  # fmt: skip
