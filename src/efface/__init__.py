"""efface: make a model forget, and prove it.

    import efface

    model = efface.load("my-model")
    request = efface.Request.load(forget="forget.jsonl", retain="retain.jsonl")
    edit = efface.forget(model, request, method="npo")
    edit.apply(model)
    print(efface.audit(model, request, original="my-model", against="my-retrained-model").outcome)

The verbs are packages that can be called: `efface.forget(...)` runs a method, `efface.forget.edit` is a module.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efface.data.request import Request
    from efface.forget.edit import Edit
    from efface.subjects.load import load

__version__ = "0.1.0"
__all__ = ["Edit", "Request", "audit", "forget", "learn", "load", "measure"]

_PLACES = {
    "Edit": ("efface.forget.edit", "Edit"),
    "Request": ("efface.data.request", "Request"),
    "load": ("efface.subjects.load", "load"),
}
_VERBS = ("learn", "measure", "forget", "audit")


def __getattr__(name: str) -> Any:
    """Import on first use, so that `efface --help` does not wait for torch."""
    if name in _PLACES:
        module, attribute = _PLACES[name]
        return getattr(importlib.import_module(module), attribute)
    if name in _VERBS:
        return importlib.import_module(f"efface.{name}")
    raise AttributeError(f"module 'efface' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
