"""The exception tree. Every message is one line: what was given, what was expected, what to do.

EffaceError
├── InputError            exit code 2: the user's input cannot be used
│   ├── RequestError      forget, retain or holdout data
│   ├── ModelError        a model folder, weights, tokenizer
│   ├── ConfigError       unknown method, key or value
│   ├── RunError          a run folder, an edit, a certificate's input
│   └── MissingExtraError an optional dependency is not installed
├── StorageError          exit code 2: a file could not be written or read (disk full, read-only)
└── CheckFailed           exit code 1: a check was made and did not hold
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EffaceError(Exception):
    """Base of every error that efface raises on purpose."""

    exit_code = 2


class InputError(EffaceError):
    """The input cannot be used as given.

    Args:
        given: what was found.
        expected: what would have been accepted.
        remedy: the next thing to do, as an imperative.
    """

    def __init__(self, given: str, expected: str | None = None, remedy: str | None = None) -> None:
        self.given, self.expected, self.remedy = given, expected, remedy
        parts = [given]
        if expected:
            parts.append(f"expected {expected}")
        if remedy:
            parts.append(remedy)
        super().__init__(" ".join("; ".join(parts).split()))


class RequestError(InputError):
    """The data to forget or keep cannot be used."""


class ModelError(InputError):
    """The model cannot be loaded or is not of the kind that was asked for."""


class ConfigError(InputError):
    """A method, key or value is not known."""


class RunError(InputError):
    """A run folder, an edit or a certificate does not fit what it is used for."""


class MissingExtraError(InputError):
    """An optional dependency is needed and not installed."""


class StorageError(EffaceError):
    """A file could not be written or read; nothing half written was left behind."""


class CheckFailed(EffaceError):
    """A check ran to its end and did not hold."""

    exit_code = 1


def nearest(word: str, known: Iterable[str]) -> str:
    """The remedy for an unknown name: the closest known one, or the list of all."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"choose one of: {', '.join(names)}"
