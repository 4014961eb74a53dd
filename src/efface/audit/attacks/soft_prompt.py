"""An adversarial soft prompt: k free embeddings before the question, trained on half of the forgotten facts.

No weight moves; the attacker only looks for words that do not exist. What such a prompt, trained on one half, brings back of
the other half, beyond what it brings a model that never knew it, was still there (Schwinn et al., arXiv 2402.09063, attack
each answer alone; an unseen half is what tells recovery from being told).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from efface.audit.attacks.relearning import halves
from efface.subjects.answers import AnswerLogits
from efface.subjects.causal_lm import CausalLM
from efface.subjects.prompts import IGNORED, Encoded, collate


def _answers(subject: CausalLM, prefix: Tensor, rows: Sequence[Encoded]) -> AnswerLogits:
    """Logits at answer positions behind the prefix [k, D]."""
    batch = collate(rows, subject.pad_id)
    ids, mask = batch["input_ids"].to(subject.device), batch["attention_mask"].to(subject.device)
    embedded = subject.model.get_input_embeddings()(ids)  # [B, T, D]
    k = len(prefix)
    inputs = torch.cat([prefix.to(embedded.dtype).expand(len(rows), -1, -1), embedded], dim=1)
    attention = torch.cat([mask.new_ones(len(rows), k), mask], dim=1)
    logits = (
        subject.model(inputs_embeds=inputs, attention_mask=attention, use_cache=False).logits[:, k - 1 : -1].float()
    )
    labels = batch["labels"].to(subject.device)  # position k - 1 + t predicts token t
    chosen = torch.ne(labels, IGNORED)
    return AnswerLogits(logits, labels.clamp_min(0), chosen)


def _probabilities(subject: CausalLM, prefix: Tensor, rows: Sequence[Encoded], batch_size: int) -> list[float]:
    found: list[float] = []
    with torch.no_grad():
        for at in range(0, len(rows), batch_size):
            scores = _answers(subject, prefix, rows[at : at + batch_size])
            found += (scores.logp_sum.double() / scores.mask.sum(-1)).exp().tolist()
    return found


def soft_prompt(
    subject: CausalLM, data: Any, *, tokens: int, steps: int, learning_rate: float, batch_size: int, seed: int
) -> dict[str, Any]:
    """Train the prefix on the first half and watch the second; the model is not touched.

    Args:
        data: the forget set, at least four rows.
        tokens: k.
        steps: of Adam.

    Returns:
        `before` and `after`: [n] probability of every answer of the second half behind the untrained and the trained prefix;
        `trained`: mean probability of the first half at the end.
    """
    rows = subject.encode_rows(data, name="forget")
    first, second = ([rows[i] for i in part] for part in halves(data))
    table = subject.model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(table), (tokens,), generator=generator)
    flags = [(p, p.requires_grad) for p in subject.model.parameters()]
    mode = subject.model.training
    subject.model.eval()
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        prefix = table[chosen.to(table.device)].detach().float().clone()
        before = _probabilities(subject, prefix, second, batch_size)
        prefix.requires_grad_(True)
        optimiser = torch.optim.Adam([prefix], lr=learning_rate * float(table.float().std()))
        for _ in range(steps):
            order = torch.randperm(len(first), generator=generator)[:batch_size].tolist()
            scores = _answers(subject, prefix, [first[i] for i in order])
            loss = -(scores.logp_sum / scores.mask.sum(-1)).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        trained = prefix.detach()
        after = _probabilities(subject, trained, second, batch_size)
        own = _probabilities(subject, trained, first, batch_size)
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        subject.model.train(mode)
    return {"before": before, "after": after, "trained": sum(own) / len(own)}


__all__ = ["soft_prompt"]
