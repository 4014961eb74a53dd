"""Cards and their discovery."""

from efface.catalog.card import Card, Taxonomy
from efface.catalog.discovery import Entry, entries, find

__all__ = ["Card", "Entry", "Taxonomy", "entries", "find"]
