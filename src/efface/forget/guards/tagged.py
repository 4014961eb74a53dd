"""Training on tagged prompts: which samples stand in which batch, and the loss's targets.

Every item of a batch gives a matched sample (answer: the target) and an unmatched one (answer: its own), so both kinds
are equally many in every batch; untagged copies come beside them at a fixed share. The concept of an unmatched sample is
drawn anew in each epoch (the official code draws once and keeps it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from efface.data.tagged import Item, PairBuilder, Sample
from efface.errors import ConfigError, RequestError
from efface.subjects.causal_lm import CausalLM
from efface.subjects.prompts import Encoded, collate
from efface.train.streams import row_order

KINDS = ("matched", "unmatched", "untagged")


class Encoder:
    """Samples to tokens, each text once.

    Args:
        subject: its tokenizer must know the tags.
        loss_on: `answer` (the paper: the answer and its end) or `all` (the official code: every token).

    Raises:
        ConfigError: the prompt format does not end answers: 'forgot' would be followed by the answer.
    """

    def __init__(self, subject: CausalLM, loss_on: Literal["answer", "all"]) -> None:
        if subject.prompt.style == "plain" and not subject.prompt.append_eos:
            raise ConfigError(
                "append_eos=false", "answers that end: else 'forgot' is followed by the answer", "set append_eos=true"
            )
        self.subject, self.loss_on = subject, loss_on
        self._known: dict[tuple[str, str], Encoded] = {}

    def __call__(self, sample: Sample) -> Encoded:
        """The sample's tokens; with `loss_on="all"` every token but the first is a target."""
        key = (sample.question, sample.answer)
        if key not in self._known:
            row = self.subject.encode(*key, place=f"{sample.item} ({sample.kind})")
            if row.ids[-1] not in self.subject.stop_ids() and self.subject.prompt.style == "plain":
                raise RequestError(f"{sample.item}: no end token after the answer", "one", "check the prompt format")
            self._known[key] = row if self.loss_on == "answer" else Encoded(row.ids, 1)
        return self._known[key]


class PairSchedule(Dataset[dict[str, Any]]):
    """All samples of a run in their order; one position is one item with its pair and, at times, an untagged copy.

    Args:
        items: in any order.
        builder: makes the samples.
        encode: sample -> tokens.
        epochs: passes over the items.
        batch_size: items in an optimiser step, over all processes.
        seed: of the order.
        untagged_share: q, the share of untagged copies among all samples: 2 q / (1 - q) copies an item, spread evenly.
    """

    def __init__(
        self, items: Sequence[Item], builder: PairBuilder, encode: Callable[[Sample], Encoded], *, epochs: float,
        batch_size: int, seed: int, untagged_share: float,
    ) -> None:  # fmt: skip
        n = len(items)
        self.batch_size = batch_size
        self.length = max(1, round(epochs * n / batch_size)) * batch_size
        order = row_order(n, self.length, np.random.default_rng(np.random.SeedSequence([seed, 0x0EFFACE])))
        copies = 2 * untagged_share / (1 - untagged_share)
        self.samples: list[list[Sample]] = []
        self.rows: list[list[Encoded]] = []
        for position, index in enumerate(order):
            item, epoch = items[index], position // n
            here = [builder.matched(item), builder.unmatched(item, epoch)]
            here += [builder.untagged(item)] * (int(copies * (position + 1) + 1e-9) - int(copies * position + 1e-9))
            self.samples.append(here)
            self.rows.append([encode(sample) for sample in here])
        self.step_tokens = [
            sum(row.n_targets for rows in self.rows[start : start + batch_size] for row in rows)
            for start in range(0, self.length, batch_size)
        ]

    def __len__(self) -> int:
        return self.length

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.length // self.batch_size

    @property
    def total_samples(self) -> int:
        """Sequences of the run."""
        return sum(map(len, self.rows))

    @property
    def total_tokens(self) -> int:
        """Tokens of all sequences, padding not counted."""
        return sum(len(row.ids) for rows in self.rows for row in rows)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return {
            "rows": self.rows[position], "kinds": [KINDS.index(sample.kind) for sample in self.samples[position]],
            "token_share": 1.0 / self.step_tokens[position // self.batch_size],
        }  # fmt: skip


class PairCollator:
    """Positions of a `PairSchedule` to one padded batch, `train`, of S samples.

    `input_ids`, `attention_mask`, `labels` [S, T]; `kind` [S], an index into `KINDS`; `token_share` [S], one over the
    target tokens of the whole optimiser step.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = collate([row for item in items for row in item["rows"]], self.pad_id)
        shares = [item["token_share"] for item in items for _ in item["rows"]]
        kinds = [kind for item in items for kind in item["kinds"]]
        return {
            "train": {**batch, "kind": torch.tensor(kinds), "token_share": torch.tensor(shares, dtype=torch.float32)}
        }
