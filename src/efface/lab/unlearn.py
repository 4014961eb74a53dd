"""Forget, look, put back: fit a method on a lab model and let a function see the edited model before the edit goes.

What every proof does between its model and its figures.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from efface.data.request import Request
from efface.forget.method import find_method
from efface.subjects.learner import Learner

S = TypeVar("S", bound=Learner)


@contextlib.contextmanager
def forgotten(method: str, subject: S, request: Request, **values: Any) -> Iterator[S]:
    """The subject with a freshly fitted edit on it; on leaving, its former bits are back.

    Args:
        method: a forgetting method's name.
        subject: the trained model, of any kind that the method takes.
        request: what to forget and keep.
        values: of the method's configuration; what is not given has its default.
    """
    chosen = find_method(method)
    config = chosen.configure(values)
    with tempfile.TemporaryDirectory(prefix="efface-proof-") as folder:
        edit = chosen.fit(subject, request, config, work=Path(folder) / "work", out=Path(folder) / "edit").edit
        edit.apply(subject)
        try:
            yield subject
        finally:
            edit.remove(subject)
