"""The proof of relearning and probing holds; its pieces against plain forms."""

from __future__ import annotations

import pytest
import torch

from efface.lab.shadows import digits, fit_stack, new_stack, stack_logits
from efface.proofs import relearning_and_probing as proof


def test_hiding_a_class_moves_one_number_and_hides_it() -> None:
    images, labels = digits()
    images, labels = images[:300], labels[:300]
    stack = fit_stack(new_stack(2, 0, 16), images, labels, torch.ones(2, 300), steps=60, learning_rate=1e-2)
    threes = labels == 3
    assert (stack_logits(stack, images[threes]).argmax(-1) == 3).double().mean() > 0.9
    hidden = proof.hide_class(stack, images[threes], 3)
    assert not (stack_logits(hidden, images[threes]).argmax(-1) == 3).any()
    moved = {name: (hidden[name] != stack[name]).nonzero().tolist() for name in stack}
    assert moved == {"0.weight": [], "0.bias": [], "2.weight": [], "2.bias": [[0, 3], [1, 3]]}
    barely = {name: tensor.clone() for name, tensor in hidden.items()}
    barely["2.bias"][:, 3] += 2e-3  # a little less would have left one visible
    assert (stack_logits(barely, images[threes]).argmax(-1) == 3).any(1).all()


@pytest.mark.slow
def test_the_proof_holds() -> None:
    result = proof.PROOF.run()
    assert len(result.checks) == 4
    assert [check.name for check, holds in zip(result.checks, result.holding, strict=True) if not holds] == []
    assert result.holds
