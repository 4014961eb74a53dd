"""Packages that can be called: `efface.forget(model, request, ...)` beside `efface.forget.edit`."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    """A package whose call is one of its functions, imported on first use."""

    _target: tuple[str, str]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, name = self._target
        return getattr(importlib.import_module(module), name)(*args, **kwargs)


def callable_package(name: str, module: str, function: str) -> None:
    """Let the package `name` be called as `module.function`."""
    package = sys.modules[name]
    package.__class__ = _Verb
    package._target = (module, function)  # type: ignore[attr-defined]
    package.__doc__ = f"{package.__doc__ or ''}\n\nCalled, it is `{module}.{function}`.".strip()
