"""A trick that an audit must catch: the head's bias of a class is lowered so far that the class is never said again.

No forgetting method: the features are untouched, and whoever fits a new head has the class back. At the logits it looks
perfect (arXiv 2503.06991 names such edits as what accuracy alone cannot see).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from efface.errors import InputError
from efface.subjects.predictor import Predictor

SHIFT = -20.0


@contextlib.contextmanager
def head_trick(subject: Predictor, label: int, shift: float = SHIFT) -> Iterator[Predictor]:
    """The subject with `shift` added to the bias of a class; on leaving, its former bits are back.

    Args:
        label: index of the class to hide.

    Raises:
        InputError: no such class, or a head without a bias.
    """
    bias = subject.head.bias
    if bias is None or not 0 <= label < subject.outputs:
        given = f"class {label} of {subject.outputs}" if bias is not None else "a head without a bias"
        raise InputError(given, "a class of the model, and a head with a bias", "choose another")
    before = bias.detach().clone()
    try:
        with torch.no_grad():
            bias[label] += shift
        subject.changed()
        yield subject
    finally:
        with torch.no_grad():
            bias.copy_(before)
        subject.changed()


__all__ = ["SHIFT", "head_trick"]
