"""Looking inside: hidden states by layer at chosen positions, and the vocabulary projection (logit lens).

The projection uses the model's own final norm and output head at every layer. The last entry of `hidden_states` in
transformers' Llama-like models is already normed: it is projected without a second norm.

A vector that is *added* to the residual stream (an MLP's value vector v) goes through the norm's weight alone: E (w * v),
with v centred first where the norm centres (LayerNorm); the scale, which depends on the rest of the stream, is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from efface.errors import ModelError
from efface.subjects.causal_lm import CausalLM
from efface.subjects.hooks import at_path, at_positions, base_model
from efface.subjects.prompts import Encoded, collate

NORM_PATHS = ("model.norm", "transformer.ln_f", "gpt_neox.final_layer_norm", "model.decoder.final_layer_norm")


def final_norm(model: Any) -> Any:
    """The norm before the output head.

    Raises:
        ModelError: the architecture keeps it under an unknown name.
    """
    inner = base_model(model)
    for path in NORM_PATHS:
        place = at_path(inner, path)
        if place is not None:
            return place
    raise ModelError(
        f"no final norm found in {type(inner).__name__}", f"one of {', '.join(NORM_PATHS)}", "add its path"
    )


def last_states(subject: CausalLM, rows: Sequence[Encoded], *, batch_size: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
    """What the model holds and says at the last prompt token, the one that predicts the first answer token.

    Yields:
        for each batch of B rows in order: states [L + 1, B, D] (the embedding, then the residual stream after each layer, the
        last one normed) and the model's own logits [B, V]; float32, on the subject's device.
    """
    for start in range(0, len(rows), batch_size):
        chunk = rows[start : start + batch_size]
        batch = collate(chunk, subject.pad_id)
        with subject.evaluating() as model:
            out = model(
                input_ids=batch["input_ids"].to(subject.device), attention_mask=batch["attention_mask"].to(subject.device),
                output_hidden_states=True, use_cache=False,
            )  # fmt: skip
            at = torch.tensor([row.n_prompt - 1 for row in chunk], device=subject.device)
            states = torch.stack([at_positions(state, at).float() for state in out.hidden_states])
            yield states, at_positions(out.logits, at).float()


def hidden_states(subject: CausalLM, rows: Sequence[Encoded], *, batch_size: int = 32) -> Tensor:
    """[L + 1, N, D] float32 on the CPU: the states of `last_states`, all rows together."""
    return torch.cat([states.cpu() for states, _ in last_states(subject, rows, batch_size=batch_size)], dim=1)


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


def norm_weight(subject: CausalLM) -> tuple[Tensor, bool]:
    """The final norm's gain w [D] in float32, and whether the norm centres (LayerNorm) or not (RMSNorm).

    Read off the norm's answers to test vectors, not from a parameter's name: some norms keep w - 1.

    Raises:
        ModelError: an odd hidden size.
    """
    norm = final_norm(subject.model)
    width = int(subject.model.get_input_embeddings().weight.shape[1])
    if width % 2:
        raise ModelError(f"a hidden size of {width}", "an even one", "the norm's gain cannot be read off")
    signs = torch.ones(width, device=subject.device)
    signs[::2] = -1
    flat = torch.ones(width, device=subject.device)
    probe = torch.stack([signs, -signs, flat, -flat]) * 64.0  # large, so that the norm's epsilon vanishes
    with torch.no_grad():
        up, down, high, low = norm(probe.to(subject.dtype)).float()
    centres = bool((high - low).abs().max() < 1e-3 * (up - down).abs().max())
    return (up - down) / 2 * signs, centres


def vocabulary_projection(subject: CausalLM, vectors: Tensor, *, head: Tensor | None = None) -> Tensor:
    """E (w * v): what vectors that are added to the residual stream write, token by token.

    Args:
        subject: gives the final norm's gain w, and E.
        vectors: [N, D].
        head: [V, D] another model's output embedding (the official code of ConceptVectors projects the vectors of two
            models on the first one's); default: the subject's own.

    Returns:
        [N, V] float32 logits on the CPU, up to a scale for each vector.

    Raises:
        ModelError: shapes that do not fit.
    """
    weight = subject.model.get_output_embeddings().weight if head is None else head
    if vectors.ndim != 2 or weight.shape[1] != vectors.shape[1]:
        raise ModelError(
            f"vectors {list(vectors.shape)} and an output embedding {list(weight.shape)}", "[N, D] and [V, D]",
            "give vectors of the residual stream's width",
        )  # fmt: skip
    gain, centres = norm_weight(subject)
    with torch.no_grad():
        v = vectors.to(subject.device).float()
        v = v - v.mean(-1, keepdim=True) if centres else v
        return ((gain * v) @ weight.to(subject.device).float().T).cpu()


def top_tokens(logits: Tensor, k: int, *, bottom: bool = False) -> Tensor:
    """[N, k] ids of the k largest (or smallest) of [N, V] logits, best first.

    Raises:
        ModelError: fewer than k tokens.
    """
    if k < 1 or k > logits.shape[-1]:
        raise ModelError(f"top {k} of {logits.shape[-1]} tokens", "1 to the size of the vocabulary", "lower k")
    return logits.topk(k, dim=-1, largest=not bottom).indices
