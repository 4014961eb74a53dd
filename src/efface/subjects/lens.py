"""Looking inside: hidden states by layer at chosen positions, and the vocabulary projection (logit lens).

The projection uses the model's own final norm and output head at every layer. The last entry of `hidden_states` in
transformers' Llama-like models is already normed: it is projected without a second norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from efface.errors import ModelError
from efface.subjects.causal_lm import CausalLM
from efface.subjects.prompts import Encoded, collate

NORM_PATHS = ("model.norm", "transformer.ln_f", "gpt_neox.final_layer_norm", "model.decoder.final_layer_norm")


def final_norm(model: Any) -> Any:
    """The norm before the output head.

    Raises:
        ModelError: the architecture keeps it under an unknown name.
    """
    inner = getattr(model, "get_base_model", lambda: model)()
    for path in NORM_PATHS:
        place: Any = inner
        for part in path.split("."):
            place = getattr(place, part, None)
            if place is None:
                break
        if place is not None:
            return place
    raise ModelError(
        f"no final norm found in {type(inner).__name__}", f"one of {', '.join(NORM_PATHS)}", "add its path"
    )


def hidden_states(subject: CausalLM, rows: Sequence[Encoded], *, batch_size: int = 32) -> Tensor:
    """States at the last prompt token, the one that predicts the first answer token.

    Returns:
        [L + 1, N, D] float32: the embedding, then the residual stream after each layer (the last one normed).
    """
    parts = []
    with subject.evaluating() as model:
        for start in range(0, len(rows), batch_size):
            chunk = rows[start : start + batch_size]
            batch = collate(chunk, subject.pad_id)
            out = model(
                input_ids=batch["input_ids"].to(subject.device), attention_mask=batch["attention_mask"].to(subject.device),
                output_hidden_states=True, use_cache=False,
            )  # fmt: skip
            at = torch.tensor([row.n_prompt - 1 for row in chunk], device=subject.device)
            index = torch.arange(len(chunk), device=subject.device)
            parts.append(torch.stack([state[index, at].float().cpu() for state in out.hidden_states]))
    return torch.cat(parts, dim=1)


def logit_lens(subject: CausalLM, rows: Sequence[Encoded]) -> Tensor:
    """Early exit at every layer: log-probabilities [L + 1, N, V] for the first answer token."""
    states = hidden_states(subject, rows)
    norm = final_norm(subject.model)
    head = subject.model.get_output_embeddings()
    with torch.no_grad():
        layers = []
        for layer, state in enumerate(states):
            x = state.to(subject.device, subject.dtype)
            layers.append(head(x if layer == len(states) - 1 else norm(x)).float().log_softmax(-1).cpu())
    return torch.stack(layers)
