"""A copy of some layers: it computes what the first layers do, shares nothing, and its configuration is cut with it."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch

from efface.errors import ConfigError, ModelError
from efface.forget.guards.early_exit import exit_logits
from efface.forget.guards.truncated_copy import cut_configuration, first_layers
from efface.subjects.guarded import GuardedModel


def test_the_copy_says_what_the_model_says_after_its_first_layers(tiny: Any, request_: Any) -> None:
    digest = tiny.digest
    small = first_layers(tiny, 1)
    ids = torch.tensor(tiny.encode_prompts(request_.forget)[:2])
    with torch.no_grad():
        states = tiny.model(ids, output_hidden_states=True).hidden_states[1]
        torch.testing.assert_close(small.model(ids).logits, exit_logits(tiny.model, states))
    assert small.model.config.num_hidden_layers == 1
    assert tiny.model.config.num_hidden_layers == 2
    assert len(tiny.model.model.layers) == 2
    tiny.changed()
    assert tiny.digest == digest
    assert small.digest == first_layers(tiny, 1).digest, "the edit of an assistant is bound to it"


def test_nothing_is_shared_and_what_was_tied_is_tied(tiny: Any) -> None:
    small = first_layers(tiny, 1)
    theirs = {tensor.data_ptr() for tensor in tiny.weights().values()}
    assert not theirs & {tensor.data_ptr() for tensor in small.weights().values()}
    assert small.model.get_output_embeddings().weight is small.model.get_input_embeddings().weight
    out = small.generate([[3, 4, 5]], max_new_tokens=3)
    assert len(out) == 1, "its cache has as many layers as it has"


def test_lists_of_one_entry_a_layer_are_cut() -> None:
    config = types.SimpleNamespace(
        num_hidden_layers=4, layer_types=["full", "sliding", "full", "sliding"], no_rope_layers=[1, 0, 1, 0],
        heads=[1, 2, 3, 4],
    )  # fmt: skip
    cut_configuration(config, 4, 2)
    assert config.layer_types == ["full", "sliding"]
    assert config.no_rope_layers == [1, 0]
    assert config.heads == [1, 2, 3, 4], "a list that is not by layer stays"
    assert config.num_hidden_layers == 2


@pytest.mark.parametrize("layers", [0, 2, 8])
def test_no_fewer_layers_is_refused(tiny: Any, layers: int) -> None:
    with pytest.raises(ConfigError, match="for a model of 2"):
        first_layers(tiny, layers)


def test_only_of_a_bare_model(tiny: Any) -> None:
    class Guard(GuardedModel):
        def correct(self, now: Any, output: Any) -> Any:
            return output

    tiny.model = Guard(tiny.model)
    with pytest.raises(ModelError, match="a bare model"):
        first_layers(tiny, 1)
