"""Systems are found by walking the package: a module with a `CARD` is a system, nothing else registers it."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from functools import cache
from types import ModuleType

from efface.catalog.card import Card, Verb
from efface.errors import ConfigError, nearest

ROOMS = ("efface.learn", "efface.measure", "efface.forget", "efface.audit", "efface.lab")


@dataclass(frozen=True)
class Entry:
    """A card with the module that it stands in."""

    card: Card
    module: ModuleType


def _modules(package: str) -> list[str]:
    try:
        root = importlib.import_module(package)
    except ModuleNotFoundError:
        return []
    return [info.name for info in pkgutil.walk_packages(root.__path__, prefix=f"{package}.")]


@cache
def entries() -> dict[str, Entry]:
    """All systems by name.

    Raises:
        ConfigError: two modules claim one name.
    """
    found: dict[str, Entry] = {}
    for room in ROOMS:
        for name in _modules(room):
            module = importlib.import_module(name)
            card = getattr(module, "CARD", None)
            if not isinstance(card, Card):
                continue
            if card.name in found:
                other = found[card.name].module.__name__
                raise ConfigError(f"the name '{card.name}' is on two cards", "one", f"rename {name} or {other}")
            found[card.name] = Entry(card, module)
    return dict(sorted(found.items()))


def find(name: str, verb: Verb | None = None) -> Entry:
    """One system by name.

    Raises:
        ConfigError: unknown name; suggests the nearest.
    """
    known = {key: entry for key, entry in entries().items() if verb is None or entry.card.verb == verb}
    if name not in known:
        kind = {"forget": "method", "learn": "recipe", "measure": "measure", "audit": "audit"}.get(verb or "", "system")
        raise ConfigError(f"unknown {kind} '{name}'", None, nearest(name, known))
    return known[name]
