"""Forgetting by objective: any loss, with any scope and any retain term, on the one engine.

A loss sees the answer's logits on the forget batch, log-probabilities under the reference where it asks for them, and an
alternative answer where it asks for one. It returns the mean over the optimiser step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import Field
from torch import Tensor

from efface.catalog import Card
from efface.data.refusals import REFUSALS
from efface.data.request import Request
from efface.errors import ConfigError, RequestError
from efface.forget.method import FitConfig, Fitted, Method, train_edit
from efface.forget.retain import retain_loss, retain_stream
from efface.subjects.answers import AnswerLogits, answer_logits
from efface.train.engine import LossFunction, world_size
from efface.train.mask_selectors import MaskRows
from efface.train.reference import reference_logp
from efface.train.stopping import StopWhen
from efface.train.streams import Schedule, Stream, whole_batch


class ObjectiveConfig(FitConfig):
    """What every objective shares: the two weights and the retain term."""

    forget_weight: float = Field(1.0, ge=0, description="gamma: weight of the forget loss")
    retain_weight: float = Field(1.0, ge=0, description="alpha: weight of the retain term")
    retain_term: Literal["none", "nll", "kl"] = Field("none", description="what holds the retain set in place")
    retain_top_k: int = Field(64, ge=1, description="for retain_term=kl: cached log-probabilities a token")
    anchor: Literal["forget", "retain"] = Field(
        "forget",
        description="whose passes are the epochs and fill batch_size; retain: the forget rows come round more often",
    )
    repeat_pairs: bool = Field(
        False, description="pair each forget row with one retain row for ever, as the official TOFU loader does"
    )


ConfigT = TypeVar("ConfigT", bound=ObjectiveConfig)


@dataclass(frozen=True)
class ForgetBatch:
    """What a loss may look at; B rows.

    Attributes:
        answer: logits on the answers to forget.
        answer_ref: [B] log p_ref(answer | question), where the objective uses a reference.
        alternative: logits on the alternative answers (a refusal), where used.
        alternative_ref: [B] their reference log-probability.
        token_share: [B] one over the answer tokens of the whole optimiser step.
        alternative_token_share: the same for the alternatives.
        row_share: [B] one over the rows of the whole optimiser step.
        extras: whatever else travels with the rows to forget, as their stream has it.
    """

    answer: AnswerLogits | None
    answer_ref: Tensor | None
    alternative: AnswerLogits | None
    alternative_ref: Tensor | None
    token_share: Tensor
    alternative_token_share: Tensor | None
    row_share: Tensor
    extras: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to be trained: its batches, the loss of a forward pass, what ends it, what a mask is made from."""

    schedule: Schedule
    loss: LossFunction
    callbacks: tuple[Any, ...] = ()
    mask_rows: MaskRows | None = None


class ObjectiveMethod(Method):
    """A loss as a method.

    Args:
        card: its card.
        config_class: its configuration.
        loss: `(config, batch) -> scalar`.
        reference: needs log-probabilities under the model before training.
        alternative: needs an alternative answer; drawn anew from the refusals in each pass.

    Attributes:
        plain: `prepare` says all there is to say: whoever trains its batches and loss trains this method.
    """

    plain = True

    def __init__(
        self, card: Card, config_class: type[ConfigT], loss: Callable[[ConfigT, ForgetBatch], Tensor], *,
        reference: bool = False, alternative: bool = False,
    ) -> None:  # fmt: skip
        self.card = card
        self.config_class = config_class
        self.loss: Callable[[Any, ForgetBatch], Tensor] = loss
        self.reference = reference
        self.alternative = alternative

    def check(self, request: Request, config: FitConfig) -> None:
        """Besides the card's needs: a retain term needs a retain set."""
        super().check(request, config)
        if isinstance(config, ObjectiveConfig) and config.retain_term != "none" and request.retain is None:
            raise RequestError(
                f"retain_term={config.retain_term} without a retain set", "rows to keep",
                "give them with --retain, or set retain_term=none",
            )  # fmt: skip

    def streams(self, subject: Any, request: Request, config: ObjectiveConfig) -> dict[str, Stream]:
        """The tokenised data of the run, with everything that comes from the reference."""
        rows = subject.encode_rows(request.forget, name="forget")
        extras = {"ref_logp": reference_logp(subject, rows)} if self.reference else {}
        found = {"forget": Stream(rows, extras)}
        if self.alternative:
            found["alternative"] = self._alternatives(subject, request, config)
        if config.retain_term != "none" and request.retain is not None:
            keep = subject.encode_rows(request.retain, name="retain")
            found["retain"] = self.retained(subject, keep, config)
        return found

    def retained(self, subject: Any, rows: list[Any], config: ObjectiveConfig) -> Stream:
        """The retain rows with what the retain term needs."""
        return retain_stream(config.retain_term, subject, rows, config.retain_top_k)

    def _alternatives(self, subject: Any, request: Request, config: ObjectiveConfig) -> Stream:
        """Refusals for every row: as many different ones as there are passes, so that the reference costs no more."""
        rng = np.random.default_rng(config.seed)
        count = min(len(REFUSALS), math.ceil(config.epochs))
        variants = [
            [
                subject.encode(question, REFUSALS[pick], place=f"forget row {i} with a refusal")
                for pick in rng.choice(len(REFUSALS), count, replace=False)
            ]
            for i, question in enumerate(request.forget["question"])
        ]
        if not self.reference:
            return Stream(variants, of="forget")
        flat: list[Any] = [row for group in variants for row in group]
        logp = reference_logp(subject, flat).view(len(variants), count)
        return Stream(variants, {"ref_logp": logp}, of="forget")

    @staticmethod
    def schedule(streams: dict[str, Stream], config: ObjectiveConfig) -> Schedule:
        """The batches of a run.

        Raises:
            ConfigError: the anchor is no stream of this run.
        """
        if config.anchor not in streams:
            raise ConfigError(f"anchor={config.anchor}", "a retain term and a retain set", "use anchor=forget")
        batch = whole_batch(len(streams[config.anchor].rows), config.batch_size, config.micro_batch_size, world_size())
        return Schedule(
            streams, anchor=config.anchor, epochs=config.epochs, batch_size=batch, seed=config.seed,
            repeat_pairs=config.repeat_pairs,
        )  # fmt: skip

    def prepare(self, subject: Any, request: Request, config: ObjectiveConfig) -> Prepared:
        """Everything but the training.

        Raises:
            ConfigError: the anchor is no stream of this run.
        """
        return self.assemble(subject, request, self.streams(subject, request, config), config)

    def assemble(self, subject: Any, request: Request, streams: dict[str, Stream], config: ObjectiveConfig) -> Prepared:
        """A run over given streams.

        Weights that say the refusals are attributed to refusals, as WAGLE does for preference optimisation.
        """
        schedule = self.schedule(streams, config)
        stop = self.stop(subject, schedule, config)

        def loss(model: Any, parts: dict[str, dict[str, Tensor]]) -> tuple[Tensor, dict[str, float]]:
            total, numbers = self.terms(model, parts, config)
            if stop is not None:
                stop.see(numbers[stop.watched])
            return total, numbers

        rows = None
        if config.scope == "mask":
            wanted = streams["alternative" if self.alternative else "forget"].rows
            forget = [row for one in wanted for row in (one if isinstance(one, list) else [one])]
            keep = None if request.retain is None else subject.encode_rows(request.retain, name="retain")
            rows = MaskRows(forget, keep)
        return Prepared(schedule, loss, () if stop is None else (stop,), rows)

    def stop(self, subject: Any, schedule: Schedule, config: ObjectiveConfig) -> StopWhen | None:
        """What ends the run before its schedule does; by default nothing."""
        return None

    def fit(self, subject: Any, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`."""
        assert isinstance(config, ObjectiveConfig)
        self.check(request, config)
        run = self.prepare(subject, request, config)
        return train_edit(
            self, subject, run.schedule, run.loss, config, work=work, out=out, callbacks=run.callbacks, mask_rows=run.mask_rows
        )  # fmt: skip

    def terms(
        self, model: Any, parts: dict[str, dict[str, Tensor]], config: ObjectiveConfig
    ) -> tuple[Tensor, dict[str, float]]:
        """The whole loss of one forward pass, and the numbers of the log."""
        forget, other = parts["forget"], parts.get("alternative")
        batch = ForgetBatch(
            answer=answer_logits(model, forget), answer_ref=forget.get("ref_logp"),
            alternative=None if other is None else answer_logits(model, other),
            alternative_ref=None if other is None else other.get("ref_logp"),
            token_share=forget["token_share"], row_share=forget["row_share"],
            alternative_token_share=None if other is None else other["token_share"], extras=forget,
        )  # fmt: skip
        value = self.loss(config, batch)
        numbers = {"forget": float(value.detach()), **self.told(batch, parts)}
        total = config.forget_weight * value
        if "retain" in parts:
            kept = retain_loss(config.retain_term, model, parts["retain"])
            numbers["retain"] = float(kept.detach())
            total = total + config.retain_weight * kept
        return total, numbers

    def told(self, batch: ForgetBatch, parts: dict[str, dict[str, Tensor]]) -> dict[str, float]:
        """More numbers for the log, without a part in the loss."""
        return {}
