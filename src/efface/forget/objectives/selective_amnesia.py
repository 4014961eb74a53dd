"""Selective amnesia: ascent on the forget set and weighted descent on the retain set, in the MLPs of a few layers only.

Paper: Agrawal, Huang, SHA256 at SemEval-2025 Task 4, arXiv 2504.12996 (2025). Which layers is found by causal tracing
(`efface.measure.causal_tracing`); in OLMo they are 0 to 5. Over the answer tokens of each group,

    L = -CE_forget + m CE_retain,   m = 1.2 in epoch 0; afterwards, with d = CE_retain - (mean CE_retain of epoch 0),
    m = clip(round(0.3 * 6^d + 0.8, 1), 1.2, 2.3) where d > 0, else 1.2

Departures from the official code and why: the mean of epoch 0 is over tokens (the code divides a sum of batch means by the
number of examples, so it is too small by the batch size and m is nearly always at its upper end; `paper_bug` brings that
back); it sees training batches only, not evaluation; every batch has rows of both groups; ascent is stopped once the forget
side has reached its target while the retain side holds (the code keeps the checkpoint of the lowest total loss, which is the
one that forgot most); CE_retain is that of the step before, so that m does not depend on how a step is cut into
forward passes and processes; modules are found by their place in the model, not by the third part of a name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor
from transformers import TrainerCallback

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.errors import ConfigError
from efface.forget.method import FitConfig, Fitted, Method, train_edit
from efface.run.files import read_json, write_json
from efface.subjects.answers import AnswerLogits, answer_logits
from efface.subjects.causal_lm import CausalLM
from efface.subjects.hooks import layers_of
from efface.subjects.prompts import Encoded, collate
from efface.train.engine import world_size
from efface.train.reference import batches
from efface.train.stopping import StopWhen
from efface.train.streams import Schedule, Stream, whole_batch

CARD = Card(
    name="selective-amnesia",
    system="selective-amnesia-semeval",
    title="Selective amnesia: constrained joint unlearning",
    summary="Gradient ascent on the forget set against a retain loss whose weight rises when it suffers, confined to the "
    "MLPs of the layers that causal tracing points to.",
    paper="Agrawal, Huang, SHA256 at SemEval-2025 Task 4, arXiv 2504.12996 (2025)",
    verb="forget",
    mechanism="objectives",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget", "retain", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="gradient_ascent", survey_class="parameter_optimisation", level="weights_subset",
        threat_model="weight holder",
    ),
    defaults_source="official code, OLMo-7B: MLPs of layers 0 to 5, learning rate 1.5e-5, batch 12 x 10, 8 epochs; the two "
    "stopping bounds are efface's own",
)  # fmt: skip


class SelectiveAmnesiaConfig(FitConfig):
    """Where it may move, how the retain weight goes, and when it stops."""

    scope: Literal["all", "layers", "lora", "mask"] = Field(
        "layers", description="layers (paper), all layers, or a mask"
    )
    layers: str | None = Field(None, description="default: 0-5, or all where the model has fewer (paper)")
    part: Literal["mlp", "attention", "all"] = Field("mlp", description="of those layers (paper: mlp)")
    learning_rate: float = Field(1.5e-5, gt=0, description="official code: 1.5e-5")
    anchor: Literal["forget", "retain"] = Field(
        "forget", description="the set whose passes are the epochs; of the other, rows are sampled beside it"
    )
    epochs: float = Field(8, gt=0, description="passes over the anchor set (official code: 8, over both sets)")
    batch_size: int = Field(60, ge=1, description="rows of each set in a step (code: 12 x 10 rows mixed)")
    micro_batch_size: int | None = Field(
        None, ge=1, description="rows of each set in one forward pass; default: the batch"
    )
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="official code: none")
    adaptive: bool = Field(True, description="let m follow the retain loss; false: m stays at its floor")
    floor: float = Field(1.2, gt=0, description="m of epoch 0, and the least (paper: 1.2)")
    ceiling: float = Field(2.3, gt=0, description="the largest m (paper: 2.3)")
    paper_bug: bool = Field(False, description="the official code's mean of epoch 0, too small by the batch size")
    forget_target: float = Field(
        0.05, gt=0, lt=1, description="stop once the answers of evaluate.forget (else the forget set) are less probable"
    )
    forget_figure: Literal["answer", "first"] = Field(
        "answer", description="that probability: exp(mean log p) of the whole answer, or of its first token"
    )
    retain_slack: float | None = Field(
        0.2, ge=0, description="and the retain NLL is at most this above the start's, in nats; none: whatever it is"
    )
    judged_rows: int = Field(256, ge=1, description="most rows of each side that the stop is judged on, evenly spaced")

    @field_validator("scope")
    @classmethod
    def _no_adapter(cls, value: str) -> str:
        if value == "lora":
            raise ValueError("it confines training to modules of the model itself: scope layers, all or mask")
        return value


def joint_loss(forget: Tensor, retain: Tensor, weight: float) -> Tensor:
    """-CE_forget + m CE_retain of two mean cross-entropies in nats; scalars."""
    return weight * retain - forget


def adaptive_retain_weight(ce: float, reference: float, *, floor: float = 1.2, ceiling: float = 2.3) -> float:
    """m of the module's equation; the rounding to one decimal is the paper's.

    Args:
        ce: CE_retain of the batch, in nats.
        reference: mean CE_retain of epoch 0.
    """
    d = ce - reference
    if d <= 0:
        return floor
    if d > 3:  # far above any ceiling, and 6^d would overflow
        return ceiling
    return min(max(round(0.3 * math.pow(6.0, d) + 0.8, 1), floor), ceiling)


class RetainWeight(TrainerCallback):  # type: ignore[misc]
    """m over a run: sums of epoch 0, the same on all processes, kept beside the checkpoints so that a killed run goes on.

    Args:
        config: floor, ceiling and switches.
        first_steps: optimiser steps of epoch 0.
        folder: where the sums are kept.
    """

    def __init__(self, config: SelectiveAmnesiaConfig, first_steps: int, folder: Path) -> None:
        self.config, self.first_steps, self.folder = config, first_steps, folder
        self.sums = {"nll": 0.0, "tokens": 0.0, "means": 0.0, "rows": 0.0}
        self.fresh = dict.fromkeys(self.sums, 0.0)
        self.last: float | None = None
        self.step = 0

    @property
    def reference(self) -> float:
        """Mean CE_retain of epoch 0 in nats; with `paper_bug` the code's figure."""
        if self.config.paper_bug:
            return self.sums["means"] / max(self.sums["rows"], 1.0)
        return self.sums["nll"] / max(self.sums["tokens"], 1.0)

    def weight(self, nll: float, tokens: int, rows: int) -> float:
        """m for this step, the same in all its forward passes and processes; the pass's loss is taken note of.

        Args:
            nll: of the retain rows of one forward pass, in nats, summed over their `tokens` answer tokens.
            rows: of that pass.
        """
        for key, value in zip(self.fresh, (nll, tokens, nll / max(tokens, 1), rows), strict=True):
            self.fresh[key] += value
        if self.step < self.first_steps or not self.config.adaptive or self.last is None:
            return self.config.floor
        return adaptive_retain_weight(self.last, self.reference, floor=self.config.floor, ceiling=self.config.ceiling)

    def _path(self, step: int) -> Path:
        return self.folder / f"retain-weight-{step}.json"

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        fresh = torch.tensor(list(self.fresh.values()), dtype=torch.float64)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            fresh = fresh.to(args.device)
            torch.distributed.all_reduce(fresh)
        found = dict(zip(self.sums, fresh.tolist(), strict=True))
        self.last = found["nll"] / max(found["tokens"], 1.0)
        if self.step < self.first_steps:
            self.sums = {key: value + found[key] for key, value in self.sums.items()}
        self.fresh = dict.fromkeys(self.sums, 0.0)
        self.step = int(state.global_step)
        if control.should_save and state.is_world_process_zero:  # before the checkpoint counts as whole
            write_json(self._path(self.step), {**self.sums, "last": self.last})

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step = int(state.global_step)
        if self.step:
            kept = {key: float(value) for key, value in read_json(self._path(self.step)).items()}
            self.last = kept.pop("last")
            self.sums = kept


def probabilities(answer: AnswerLogits, figure: str) -> Tensor:
    """[B] exp(mean log p) over each answer's tokens, or the probability of its first token."""
    logp = answer.token_logp
    if figure == "first":
        first = answer.mask.int().argmax(1, keepdim=True)
        return logp.gather(1, first).squeeze(1).exp()
    return (logp.sum(1) / answer.mask.sum(1)).exp()


def spaced(rows: Sequence[Encoded], limit: int) -> list[Encoded]:
    """At most `limit` rows, evenly spaced."""
    return list(rows[:: max(1, math.ceil(len(rows) / limit))])


class SelectiveAmnesia(Method):
    """See the module."""

    card = CARD
    config_class = SelectiveAmnesiaConfig

    def fit(self, subject: CausalLM, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`.

        Raises:
            RequestError: no retain set.
            ConfigError: no such layer, nothing left to train, or bounds of m that cross.
        """
        assert isinstance(config, SelectiveAmnesiaConfig)
        self.check(request, config)
        if config.ceiling < config.floor:
            raise ConfigError(
                f"floor={config.floor}, ceiling={config.ceiling}", "floor <= ceiling", "raise the ceiling"
            )
        depth = len(layers_of(subject.model))
        if config.scope == "layers" and config.layers is None:
            config = config.model_copy(update={"layers": f"0-{min(5, depth - 1)}"})
        assert request.retain is not None
        forget = subject.encode_rows(request.forget, name="forget")
        keep = subject.encode_rows(request.retain, name="retain")
        streams = {"forget": Stream(forget), "retain": Stream(keep)}
        size = len(streams[config.anchor].rows)
        batch = whole_batch(size, config.batch_size, config.micro_batch_size, world_size())
        schedule = Schedule(streams, anchor=config.anchor, epochs=config.epochs, batch_size=batch, seed=config.seed)
        weight = RetainWeight(config, max(1, round(size / batch)), work)
        judge = request.evaluation_sets()["forget"]  # other forms of the same facts, where the request has them
        stop = self._stop(subject, subject.encode_rows(judge, name="evaluate.forget"), keep, config)

        def loss(model: Any, parts: dict[str, dict[str, Tensor]]) -> tuple[Tensor, dict[str, float]]:
            gone, kept = answer_logits(model, parts["forget"]), answer_logits(model, parts["retain"])
            ce_forget = -(gone.logp_sum * parts["forget"]["token_share"]).sum()
            ce_retain = -(kept.logp_sum * parts["retain"]["token_share"]).sum()
            m = weight.weight(float(-kept.logp_sum.detach().sum()), int(kept.mask.sum()), len(kept.mask))
            p = probabilities(gone, config.forget_figure).detach()
            figure = float((p * parts["forget"]["row_share"]).sum())
            stop.see(figure)
            numbers = {"forget": float(ce_forget.detach()), "retain": float(ce_retain.detach()), "m": m,
                       "forget_probability": figure}  # fmt: skip
            return joint_loss(ce_forget, ce_retain, m), numbers

        return train_edit(self, subject, schedule, loss, config, work=work, out=out, callbacks=(weight, stop))

    @staticmethod
    def _stop(
        subject: CausalLM, forget: Sequence[Encoded], keep: Sequence[Encoded], config: SelectiveAmnesiaConfig
    ) -> StopWhen:
        """Stops after a step whose batch is below the target, if the judged rows are and the retain side holds."""
        gone, kept = spaced(forget, config.judged_rows), spaced(keep, config.judged_rows)
        limit = None
        if config.retain_slack is not None:
            with subject.evaluating() as model:
                limit = judged(model, subject, kept, config.forget_figure)[1] + config.retain_slack

        def confirm(_: Any) -> bool:
            with subject.evaluating() as model:
                reached = judged(model, subject, gone, config.forget_figure)[0] < config.forget_target
                return reached and (limit is None or judged(model, subject, kept, config.forget_figure)[1] <= limit)

        return StopWhen(lambda figure: figure < config.forget_target, "sum", confirm=confirm)


def judged(
    model: Any, subject: CausalLM, rows: Sequence[Encoded], figure: str, *, batch_size: int = 32
) -> tuple[float, float]:
    """Mean answer probability over the rows, and mean NLL over their answer tokens in nats."""
    p = nll = tokens = 0.0
    for part in batches(rows, batch_size):
        batch = collate([rows[i] for i in part], subject.pad_id)
        answer = answer_logits(model, {key: value.to(subject.device) for key, value in batch.items()})
        p += float(probabilities(answer, figure).sum())
        nll -= float(answer.logp_sum.sum())
        tokens += float(answer.mask.sum())
    return p / len(rows), nll / tokens


METHOD = SelectiveAmnesia()
