"""Numbers about what a representation holds."""

from efface.verbs import callable_package

callable_package(__name__, "efface.measure.run", "measure")
