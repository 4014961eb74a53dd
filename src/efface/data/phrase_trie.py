"""Forbidden phrases: a trie over any symbols, walked one symbol at a time, with every phrase that may have begun.

Symbols are token ids, characters or words. A walk keeps the set of open positions, so overlapping phrases are all seen:
"new york" inside "new new york".
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from efface.errors import InputError

S = TypeVar("S", bound=Hashable)


@dataclass
class _Node(Generic[S]):
    depth: int = 0
    next: dict[S, _Node[S]] = field(default_factory=dict)
    phrases: list[int] = field(default_factory=list)
    longest: int = 0


@dataclass(frozen=True)
class Hit:
    """A phrase that is complete: its number, and the half-open range of symbols that it fills."""

    phrase: int
    start: int
    end: int


class PhraseTrie(Generic[S]):
    """Sequences by prefix.

    Args:
        phrases: each a non-empty sequence of symbols; several spellings of one phrase may share a number through `numbers`.
        numbers: of each sequence; default 0, 1, 2, ...

    Raises:
        InputError: an empty phrase.
    """

    def __init__(self, phrases: Iterable[Sequence[S]], numbers: Sequence[int] | None = None) -> None:
        self.root: _Node[S] = _Node()
        self.phrases = [tuple(phrase) for phrase in phrases]
        self.numbers = list(range(len(self.phrases))) if numbers is None else list(numbers)
        for number, phrase in zip(self.numbers, self.phrases, strict=True):
            if not phrase:
                raise InputError("an empty phrase", "at least one symbol", "leave it out")
            node = self.root
            for symbol in phrase:
                node.longest = max(node.longest, len(phrase))
                node = node.next.setdefault(symbol, _Node(node.depth + 1))
            node.longest = max(node.longest, len(phrase))
            node.phrases.append(number)

    def __len__(self) -> int:
        return len(self.phrases)

    def start(self) -> Walk[S]:
        """A walk over no symbol yet."""
        return Walk(self, ())

    def walk(self, symbols: Iterable[S]) -> Walk[S]:
        """The walk after some symbols."""
        found = self.start()
        for symbol in symbols:
            found = found.after(symbol)
        return found

    def hits(self, symbols: Sequence[S]) -> Iterator[Hit]:
        """Every phrase that stands in a sequence, by its end."""
        walk = self.start()
        for end, symbol in enumerate(symbols, start=1):
            walk = walk.after(symbol)
            for node in walk.open:
                for number in node.phrases:
                    yield Hit(number, end - node.depth, end)


@dataclass(frozen=True)
class Walk(Generic[S]):
    """A place in a trie; immutable, so that beams can share it."""

    trie: PhraseTrie[S]
    open: tuple[_Node[S], ...]

    def after(self, symbol: S) -> Walk[S]:
        """The walk one symbol on."""
        nodes = (*self.open, self.trie.root)
        return Walk(self.trie, tuple(node.next[symbol] for node in nodes if symbol in node.next))

    def completes(self) -> list[int]:
        """Numbers of the phrases that the last symbol completed."""
        return [number for node in self.open for number in node.phrases]

    def symbols(self) -> dict[S, tuple[int, list[int], float]]:
        """What may come next in a phrase: symbol -> (symbols matched then, phrases completed, share of the phrase matched)."""
        found: dict[S, tuple[int, list[int], float]] = {}
        for node in (*self.open, self.trie.root):
            for symbol, child in node.next.items():
                depth, done, share = found.get(symbol, (0, [], 0.0))
                found[symbol] = (
                    max(depth, child.depth), done + child.phrases, max(share, child.depth / max(1, child.longest))
                )  # fmt: skip
        return found


__all__ = ["Hit", "PhraseTrie", "Walk"]
