"""Paired batches: an anchor stream in a fresh order each epoch, other streams sampled beside it.

The whole schedule is made beforehand from the seed, so a resumed run sees the batches that the killed run would have
seen, and the number of target tokens in every optimiser step is known: token means are exact under accumulation
and across processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from efface.errors import ConfigError, InputError
from efface.subjects.learner import Learner
from efface.subjects.prompts import collate
from efface.subjects.samples import collate_samples


@dataclass(frozen=True)
class Stream:
    """Examples of one role.

    Args:
        rows: tokenised or labelled examples; a row may be a list of variants, one of which comes each time.
        extras: values that travel with a row: a scalar each ([N]) or one array a token ([N] of [T_i, ...]).
        of: row i belongs to row i of this stream (an alternative answer) and comes whenever that does; otherwise rows are
            sampled.
    """

    rows: Sequence[Any]
    extras: Mapping[str, Sequence[Any] | torch.Tensor] = field(default_factory=dict)
    of: str | None = None


def whole_batch(rows: int, batch_size: int, micro: int | None, world: int = 1) -> int:
    """The batch of an optimiser step: no larger than the anchor set, and a multiple of what one forward pass takes.

    Raises:
        ConfigError: no such batch exists.
    """
    unit = (micro or 1) * world
    if batch_size % unit:
        raise ConfigError(
            f"batch_size={batch_size} with micro_batch_size={micro} on {world} process(es)",
            "a batch that splits evenly", f"use a multiple of {unit}",
        )  # fmt: skip
    return max(unit, min(batch_size, rows) // unit * unit)


def row_order(n: int, length: int, rng: np.random.Generator) -> list[int]:
    """`length` indices below n: permutations one after another, so that all rows come before any comes twice."""
    rounds = -(-length // n)
    return [int(i) for i in np.concatenate([rng.permutation(n) for _ in range(rounds)])[:length]]


class Schedule(Dataset[dict[str, Any]]):
    """All examples of a training run in their order.

    Args:
        streams: by role; `anchor` names the one whose passes are the epochs.
        epochs: passes over the anchor; fractions are allowed.
        batch_size: anchor examples in an optimiser step (over all processes).
        seed: of every order and choice.
        repeat_pairs: pair anchor row i with sampled row (i + 1) mod n for ever, as the official TOFU loader does in
            effect; for comparison only.
    """

    def __init__(
        self, streams: Mapping[str, Stream], *, anchor: str, epochs: float, batch_size: int, seed: int,
        repeat_pairs: bool = False,
    ) -> None:  # fmt: skip
        self.streams = dict(streams)
        self.anchor = anchor
        self.batch_size = batch_size
        n = len(streams[anchor].rows)
        for name, stream in streams.items():
            if not stream.rows:
                raise InputError(f"the {name} stream is empty", "at least one example", "check the request")
            if stream.of is not None and len(stream.rows) != len(streams[stream.of].rows):
                raise InputError(
                    f"the {name} stream has {len(stream.rows)} rows",
                    f"{len(streams[stream.of].rows)}, one for each {stream.of} row",
                )
        self.length = max(1, round(epochs * n / batch_size)) * batch_size
        seeds = np.random.SeedSequence([seed, 0x0EFFACE]).spawn(len(streams))
        self.plan: dict[str, list[int]] = {}
        self.variants: dict[str, list[int]] = {}
        rngs = dict(zip(sorted(streams), (np.random.default_rng(s) for s in seeds), strict=True))
        self.plan[anchor] = row_order(n, self.length, rngs[anchor])
        for name, stream in streams.items():
            if name == anchor:
                continue
            if stream.of is not None:
                self.variants[name] = rngs[name].integers(0, 2**31 - 1, self.length).tolist()
            elif repeat_pairs:
                self.plan[name] = [(i + 1) % len(stream.rows) for i in self.plan[anchor]]
            else:
                self.plan[name] = row_order(len(stream.rows), self.length, rngs[name])
            if name not in self.variants and any(isinstance(row, list) for row in stream.rows):
                self.variants[name] = rngs[name].integers(0, 2**31 - 1, self.length).tolist()
        if any(isinstance(row, list) for row in streams[anchor].rows):
            self.variants[anchor] = rngs[anchor].integers(0, 2**31 - 1, self.length).tolist()
        self.plan |= {name: self.plan[stream.of] for name, stream in streams.items() if stream.of is not None}
        self.step_tokens = {name: self._tokens(name) for name in streams}

    def row(self, name: str, position: int) -> Any:
        """The example of a stream at a position of the schedule: an `Encoded` or a `Sample`."""
        row = self.streams[name].rows[self.plan[name][position]]
        return row[self.variants[name][position] % len(row)] if isinstance(row, list) else row

    def _extra(self, name: str, value: Any, position: int) -> Any:
        """The value that travels with the row: of the chosen variant, where a row has several."""
        if isinstance(self.streams[name].rows[self.plan[name][position]], list):
            return value[self.variants[name][position] % len(value)]
        return value

    def _tokens(self, name: str) -> list[int]:
        steps = range(0, self.length, self.batch_size)
        return [sum(self.row(name, i).n_targets for i in range(start, start + self.batch_size)) for start in steps]

    def __len__(self) -> int:
        return self.length

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.length // self.batch_size

    @property
    def total_tokens(self) -> int:
        """Tokens of all sequences that will be forwarded, padding not counted."""
        return sum(self.row(name, i).n_tokens for name in self.streams for i in range(self.length))

    def __getitem__(self, position: int) -> dict[str, Any]:
        step = position // self.batch_size
        item: dict[str, Any] = {}
        for name, stream in self.streams.items():
            index = self.plan[name][position]
            item[name] = {
                "row": self.row(name, position),
                "extras": {key: self._extra(name, values[index], position) for key, values in stream.extras.items()},
                "token_share": 1.0 / max(1, self.step_tokens[name][step]),
                "row_share": 1.0 / self.batch_size,
            }
        return item


class Collator:
    """Items of a `Schedule` to padded tensors.

    A stream's batch holds `input_ids`, `attention_mask`, `labels` [B, T], its extras ([B] or padded [B, T', ...], where T'
    counts from the first label column as `answer_logits` does), and two weights: `token_share` and `row_share` [B],
    one over the number of target tokens, and of rows, in the whole optimiser step. A sum weighted by them over all
    micro-batches of a step is the mean over the step.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {name: self._stream([item[name] for item in items]) for name in items[0]}

    def _stream(self, parts: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        rows = [part["row"] for part in parts]
        batch = collate(rows, self.pad_id)
        first = min(row.n_prompt for row in rows)
        width = batch["input_ids"].shape[1] - first
        for key in parts[0]["extras"]:
            values = [torch.as_tensor(part["extras"][key]) for part in parts]
            if values[0].dim() == 0:
                batch[key] = torch.stack(values)
                continue
            padded = torch.zeros((len(rows), width, *values[0].shape[1:]), dtype=values[0].dtype)
            for index, (row, value) in enumerate(zip(rows, values, strict=True)):
                start = row.n_prompt - first
                padded[index, start : start + len(value)] = value
            batch[key] = padded
        for key in ("token_share", "row_share"):
            batch[key] = torch.tensor([part[key] for part in parts], dtype=torch.float32)
        return batch


class SampleCollator:
    """Items of a `Schedule` of labelled samples to tensors: of a stream `inputs` by name [B, ...], `target` [B], its extras
    ([B] or [B, ...]), and `token_share` and `row_share` [B], both one over the rows of the optimiser step.

    Args:
        pad_id: fills up token ids.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {name: self._stream([item[name] for item in items]) for name in items[0]}

    def _stream(self, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = dict(collate_samples([part["row"] for part in parts], self.pad_id))
        for key in parts[0]["extras"]:
            batch[key] = torch.stack([torch.as_tensor(part["extras"][key]) for part in parts])
        for key in ("token_share", "row_share"):
            batch[key] = torch.tensor([part[key] for part in parts], dtype=torch.float32)
        return batch


def collator_of(subject: Learner) -> Collator | SampleCollator:
    """What makes batches for a model of this kind."""
    return Collator(subject.pad_id) if subject.kind == "causal-lm" else SampleCollator(subject.pad_id)
