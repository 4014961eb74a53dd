"""Early exit: what a model would say after a lower layer, through its own final norm and head.

As in DoLa (arXiv 2309.03883). The states are taken where a layer hands them on, so that none is normed twice: the last entry
of `hidden_states` is normed already in transformers' Llama-like models.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from efface.errors import ModelError
from efface.subjects.hooks import Site, layers_of, recorded
from efface.subjects.lens import final_norm


def exit_site(layer: int) -> Site:
    """Where layer `layer` hands its states on; 0 is the embedding of the tokens."""
    return Site("embedding") if layer == 0 else Site("residual", layer - 1)


def exit_logits(model: Any, states: Tensor) -> Tensor:
    """head(norm(h)), [..., V], with the model's own norm and head.

    Args:
        states: [..., D] of the residual stream, not normed.
    """
    found: Tensor = model.get_output_embeddings()(final_norm(model)(states))
    return found


def refuse_other_head(model: Any) -> None:
    """See that leaving after the last layer is what the model does itself: no scale or cap is laid on the logits.

    Raises:
        ModelError: it is not.
    """
    ids = torch.arange(2, device=model.get_input_embeddings().weight.device)[None]
    site = exit_site(len(layers_of(model)))
    with torch.no_grad(), recorded(model, [site]) as states:
        logits = model(input_ids=ids, use_cache=False).logits
        ours = exit_logits(model, states[site])
    if not torch.allclose(ours.float(), logits.float(), rtol=1e-2, atol=1e-2 * float(logits.float().abs().max())):
        raise ModelError(
            f"the logits of {type(model).__name__} are not its head on its normed last layer", "a plain output head",
            "lower layers cannot be read; use mode=icd or cd",
        )  # fmt: skip


__all__ = ["exit_logits", "exit_site", "refuse_other_head"]
