"""What a value vector writes: through the norm's gain, centred where the norm centres, under either model's E."""

from __future__ import annotations

import pytest
import torch
from small_decoders import KINDS, decoder

from efface.errors import ModelError
from efface.subjects.hooks import value_matrix
from efface.subjects.lens import final_norm, norm_weight, top_tokens, vocabulary_projection


@pytest.mark.parametrize("kind", KINDS)
def test_gain_and_centring_are_those_of_the_norm(kind: str) -> None:
    subject = decoder(kind)
    norm = final_norm(subject.model)
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-0.5, 2.0, 16))
        if getattr(norm, "bias", None) is not None:
            norm.bias.copy_(torch.linspace(3.0, -1.0, 16))
    gain, centres = norm_weight(subject)
    torch.testing.assert_close(gain, norm.weight.detach(), rtol=1e-4, atol=1e-5)
    assert centres == (kind != "llama")


@pytest.mark.parametrize("kind", KINDS)
def test_projection_is_the_derivative_of_the_logits(kind: str) -> None:
    """Adding v to a large state x at fixed scale changes the logits by E (w * v)."""
    subject = decoder(kind)
    norm, head = final_norm(subject.model), subject.model.get_output_embeddings().weight.detach()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2.0, 16))
    v = value_matrix(subject.model, 1).detach().T[:3]
    expected = (v - v.mean(-1, keepdim=True) if kind != "llama" else v) * norm.weight.detach() @ head.T
    found = vocabulary_projection(subject, v)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    bare = v @ head.T
    assert float((found - bare).abs().max()) > 1e-2, "the gain must matter here, or the test is empty"


def test_another_models_embedding() -> None:
    first, second = decoder("llama"), decoder("llama", seed=1)
    v = value_matrix(second.model, 0).detach().T
    head = first.model.get_output_embeddings().weight.detach()
    torch.testing.assert_close(vocabulary_projection(second, v, head=head), v @ head.T, rtol=1e-4, atol=1e-4)
    assert float((vocabulary_projection(second, v) - v @ head.T).abs().max()) > 1e-2


def test_top_and_bottom() -> None:
    logits = torch.tensor([[1.0, 5.0, -2.0, 3.0]])
    assert top_tokens(logits, 2).tolist() == [[1, 3]]
    assert top_tokens(logits, 2, bottom=True).tolist() == [[2, 0]]


def test_what_does_not_fit_is_refused() -> None:
    subject = decoder("llama")
    with pytest.raises(ModelError, match=r"vectors \[3, 7\]"):
        vocabulary_projection(subject, torch.zeros(3, 7))
    with pytest.raises(ModelError, match="top 9 of 4 tokens"):
        top_tokens(torch.zeros(1, 4), 9)
