"""Forgetting methods: exact, by objective, by edit, by guard. Every one returns an Edit."""

from efface.verbs import callable_package

callable_package(__name__, "efface.forget.run", "forget")
