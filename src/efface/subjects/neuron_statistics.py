"""What an MLP's neurons do on given rows: mean and standard deviation of each, and the keys at the end of prompts.

A neuron is one number a token: its gate (before the activation function) or its key (what the down-projection reads); see
`hooks.Site`. Padding never counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from efface.errors import InputError
from efface.numerics.running_variance import RunningVariance
from efface.subjects.causal_lm import CausalLM
from efface.subjects.hooks import Site, at_positions, recorded
from efface.subjects.prompts import IGNORED, Encoded, pad

Tokens = Literal["all", "prompt", "answer"]


def neuron_statistics(
    subject: CausalLM, rows: Sequence[Encoded], sites: Iterable[Site], *, tokens: Tokens = "all", batch_size: int = 32,
    change: Callable[[Tensor], Tensor] = lambda x: x,
) -> dict[Site, RunningVariance]:  # fmt: skip
    """Mean and variance of every neuron of the sites over the tokens of the rows.

    Args:
        tokens: of whole rows, of their prompts, or of their answers alone.
        change: what is taken of each value (its absolute value, for instance).

    Raises:
        InputError: no row, or values that are not finite.
    """
    wanted: list[Site] = list(sites)
    found: dict[Site, RunningVariance] = {}
    if not rows:
        raise InputError("no row to read neurons on", "one or more", "give the set rows")
    with subject.evaluating() as model, recorded(model, wanted) as seen:
        for start in range(0, len(rows), batch_size):
            batch = subject.batch(rows[start : start + batch_size])
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
            answer = torch.ne(batch["labels"], IGNORED)
            inside = batch["attention_mask"].bool()
            inside = answer if tokens == "answer" else inside & ~answer if tokens == "prompt" else inside
            for site in wanted:
                values = change(seen[site][inside.to(seen[site].device)].float()).cpu()  # [n, h]
                found[site] = RunningVariance.of(values).merge(found.get(site))
    return found


def prompt_keys(subject: CausalLM, prompts: Sequence[Sequence[int]], site: Site, *, batch_size: int = 32) -> Tensor:
    """[N, h] float32 on the CPU: what flows through a site at the last token of each prompt.

    Raises:
        InputError: no prompt.
    """
    if not prompts:
        raise InputError("no prompt to read keys on", "one or more", "give the set rows with questions")
    found = []
    with subject.evaluating() as model, recorded(model, [site]) as seen:
        for start in range(0, len(prompts), batch_size):
            part = prompts[start : start + batch_size]
            batch = {name: value.to(subject.device) for name, value in pad(part, subject.pad_id, side="right").items()}
            model(**batch, use_cache=False)
            found.append(at_positions(seen[site], torch.tensor([len(ids) - 1 for ids in part])).float().cpu())
    return torch.cat(found)


def some(n: int, limit: int, seed: int) -> list[int]:
    """At most `limit` of n indices, in order; which ones depends on the seed."""
    if n <= limit:
        return list(range(n))
    return sorted(torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:limit].tolist())


__all__ = ["Tokens", "neuron_statistics", "prompt_keys", "some"]
