"""Requests, column conventions, readers, embedded data."""

from efface.data.request import Request

__all__ = ["Request"]
