"""Audits: observe models once, compute every metric from what was observed, attack, conclude."""

from efface.verbs import callable_package

callable_package(__name__, "efface.audit.folder", "audit")
