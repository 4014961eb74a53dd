"""Training of representations and small models."""

from efface.verbs import callable_package

callable_package(__name__, "efface.learn.run", "learn")
