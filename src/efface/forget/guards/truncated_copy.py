"""A small assistant out of a large model: a copy of its first layers with its embedding, final norm and output head.

Unlearning from logit difference makes its assistant so (Ji et al., arXiv 2406.08607). The copy says whatever the head makes of
an early layer; training gives it a sense.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from efface.errors import ConfigError, ModelError
from efface.subjects.causal_lm import CausalLM
from efface.subjects.guarded import is_guarded
from efface.subjects.hooks import LAYER_PATHS, at_path, layers_of


def first_layers(subject: CausalLM, layers: int) -> CausalLM:
    """A subject of its own: the first layers of a model; every other part, and what is tied, is copied.

    Lists in the configuration that have one entry a layer (kinds of attention, rotary embeddings) are cut with the layers.

    Args:
        subject: a bare model; nothing in it is changed, and no tensor is shared.
        layers: how many, at least 1 and fewer than it has.

    Raises:
        ConfigError: not fewer layers than the model has.
        ModelError: an adapter or a guard is on the model, or the architecture keeps its layers under an unknown name.
    """
    if is_guarded(subject) or hasattr(subject.model, "peft_config"):
        raise ModelError(
            "a copy of some layers of a model with an adapter or a guard", "a bare model", "merge the adapter first"
        )
    depth = len(layers_of(subject.model))
    if not 1 <= layers < depth:
        raise ConfigError(
            f"an assistant of {layers} layers for a model of {depth}", f"1 to {depth - 1}", "set assistant_layers"
        )
    whole = next(found for path in LAYER_PATHS if (found := at_path(subject.model, path)) is not None)
    # what the memo holds already is not copied again: the list of layers is replaced by its shortened copy
    memo: dict[int, Any] = {}
    memo[id(whole)] = nn.ModuleList([copy.deepcopy(layer, memo) for layer in list(whole)[:layers]])
    made = copy.deepcopy(subject.model, memo)
    cut_configuration(made.config, depth, layers)
    return CausalLM(made, subject.tokenizer, prompt=subject.prompt, source=f"{subject.source}, {layers} layers")


def cut_configuration(config: Any, depth: int, layers: int) -> None:
    """Write the new depth into a configuration, in place."""
    for name, value in list(vars(config).items()):
        if isinstance(value, (list, tuple)) and len(value) == depth and "layer" in name:
            setattr(config, name, value[:layers])
    config.num_hidden_layers = layers


__all__ = ["cut_configuration", "first_layers"]
