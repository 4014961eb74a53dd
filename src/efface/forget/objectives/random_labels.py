"""Random labels: train on, with a wrong label for every row that is to be forgotten, drawn anew each time it comes.

A baseline of Golatkar et al., arXiv 1911.04933, in the form of Jia et al., arXiv 2304.04934, and Fan et al., arXiv 2310.12508
(equation 4, without its mask). With D_f and D_r the rows to forget and to keep and CE the cross-entropy,

    min over theta of the mean over D_f and D_r together of CE(theta; x, y'),   y' = y on D_r, y' != y random on D_f

Departures from the official code, and why. It draws y' over all K classes, so that one in K labels is the right one, and with
a class to forget also the forgotten class: here y' is another class that still has rows to be kept (`labels=any` draws as the
code does). It draws once an epoch, which is the same here, since a row comes once an epoch. Weight decay leaves biases and
norms alone, as everywhere in efface. `order=sequential` takes all of D_f and then all of D_r in each epoch, as the code does
for CIFAR-10 and SVHN; a batch never holds both, and the last batch of a phase is filled up with rows that come early in the
next epoch, where the code has a smaller one.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.errors import ConfigError, RequestError
from efface.forget.method import FitConfig, Fitted, Method, train_edit
from efface.forget.objective import Prepared
from efface.subjects.learner import Learner
from efface.subjects.predictor import Predictor
from efface.subjects.samples import Sample
from efface.train.engine import world_size
from efface.train.mask_selectors import MaskRows
from efface.train.streams import Schedule, Stream, row_order, whole_batch
from efface.train.supervised import answer_loss

CARD = Card(
    name="random-labels",
    system="sparse-unlearning",
    title="Random labels",
    summary="Trains on with a fresh wrong label each time a forget row comes, and the right ones for the rest.",
    paper="Golatkar et al., Eternal sunshine of the spotless net, arXiv 1911.04933 (2020); as in arXiv 2310.12508",
    verb="forget",
    mechanism="objectives",
    modalities=("any",),
    subjects=("classifier",),
    needs=("forget", "retain", "labels", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="relabel_refusal", survey_class="parameter_optimisation", level="weights_all",
        threat_model="API user",
    ),
    defaults_source="Unlearn-Saliency, 10 % of CIFAR-10: SGD 0.013, momentum 0.9, decay 5e-4, batch 256, 10 epochs",
)  # fmt: skip


class RandomLabelsConfig(FitConfig):
    """Which labels are drawn, in which order the rows come, and the published optimisation."""

    labels: Literal["other", "any"] = Field(
        "other", description="other: another class that keeps rows (the paper); any: all classes, the code"
    )
    order: Literal["mixed", "sequential"] = Field(
        "mixed", description="mixed: forget and retain rows shuffled; sequential: in each epoch first all forget rows"
    )
    learning_rate: float = Field(0.013, gt=0, description="Unlearn-Saliency: 0.013 for 10 % of CIFAR-10")
    epochs: float = Field(10, gt=0, description="passes over all rows; Unlearn-Saliency: 10")
    batch_size: int = Field(256, ge=1, description="Unlearn-Saliency: 256")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("sgd", description="Unlearn-Saliency: SGD with momentum 0.9")
    weight_decay: float = Field(5e-4, ge=0, description="Unlearn-Saliency: 5e-4")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "constant", description="Unlearn-Saliency: milestones that ten epochs never reach"
    )
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="Unlearn-Saliency: none")
    max_grad_norm: float = Field(1e9, gt=0, description="Unlearn-Saliency does not clip")


def label_choices(label: int, kept: Collection[int], classes: int, labels: Literal["other", "any"]) -> list[int]:
    """What may be drawn for a row to forget.

    Args:
        label: its own.
        kept: classes that have rows to be kept; a class without one is being forgotten.
        classes: K, of the model.
        labels: `other` leaves out the row's own label and classes that are not kept; `any` leaves out nothing.
    """
    return list(range(classes)) if labels == "any" else sorted(set(kept) - {label})


def choices_of(
    forget: Sequence[Sample], retain: Sequence[Sample], classes: int, labels: Literal["other", "any"]
) -> list[list[int]]:
    """`label_choices` of each forget row.

    Raises:
        RequestError: no class is left for a row.
    """
    kept = {int(row.target) for row in retain}
    found = {label: label_choices(label, kept, classes, labels) for label in {int(row.target) for row in forget}}
    for index, row in enumerate(forget):
        if not found[int(row.target)]:
            raise RequestError(
                f"no other label is left for forget row {index} (class {int(row.target)}): the retain set has only this class",
                "a second class with rows to be kept", "keep rows of another class, or retrain",
            )  # fmt: skip
    return [found[int(row.target)] for row in forget]


class Relabelled(Schedule):
    """Rows to forget, each time with another label, and rows to keep, in one stream, `train`.

    Args:
        forget, retain: rows with their own labels.
        choices: what may be drawn for each forget row.
        order: `sequential` has in each epoch first the rows to forget, then those to keep, in as many whole batches as it
            takes to see them all.
        epochs: passes over both.
        batch_size: rows in an optimiser step.
        seed: of orders and labels.
    """

    def __init__(
        self, forget: Sequence[Sample], retain: Sequence[Sample], choices: Sequence[Sequence[int]], *,
        order: Literal["mixed", "sequential"], epochs: float, batch_size: int, seed: int,
    ) -> None:  # fmt: skip
        self.choices = choices
        self.drawn: list[int] = []  # none until the length is known
        stream = Stream([*forget, *retain])
        super().__init__({"train": stream}, anchor="train", epochs=epochs, batch_size=batch_size, seed=seed)
        first, second, third = (np.random.default_rng(own) for own in np.random.SeedSequence([seed, 0xF1257]).spawn(3))
        if order == "sequential":
            phases = [math.ceil(len(rows) / batch_size) for rows in (forget, retain)]
            steps = max(1, round(epochs * sum(phases)))
            self.length = steps * batch_size
            turns = math.ceil(steps / sum(phases))
            early, late = (k * batch_size for k in phases)
            f = row_order(len(forget), turns * early, first)
            r = [len(forget) + i for i in row_order(len(retain), turns * late, second)]
            plan = [f[i * early : (i + 1) * early] + r[i * late : (i + 1) * late] for i in range(turns)]
            self.plan["train"] = [index for turn in plan for index in turn][: self.length]
            self.step_tokens["train"] = self._tokens("train")
        self.drawn = third.integers(0, 2**31 - 1, self.length).tolist()

    def row(self, name: str, position: int) -> Any:
        """The example at a position, a forget row with the label that was drawn for it there."""
        sample, index = super().row(name, position), self.plan[name][position]
        if not self.drawn or index >= len(self.choices):
            return sample
        options = self.choices[index]
        return sample.labelled(options[self.drawn[position] % len(options)])


class RandomLabels(Method):
    """See the module."""

    card = CARD
    config_class: type[FitConfig] = RandomLabelsConfig

    def prepare(self, subject: Learner, request: Request, config: RandomLabelsConfig) -> Prepared:
        """The batches and the loss.

        Raises:
            ConfigError: the model has no classes.
            RequestError: no retain set, or no label is left to draw.
        """
        if not isinstance(subject, Predictor) or subject.kind != "classifier":
            raise ConfigError(
                f"{self.card.name} on a {subject.kind}", "a classifier: where there are no classes, there is no other one "
                "to draw", "use a method for this kind of model (`efface systems`)",
            )  # fmt: skip
        self.check(request, config)
        assert request.retain is not None
        forget = subject.encode_rows(request.forget, name="forget")
        retain = subject.encode_rows(request.retain, name="retain")
        schedule = Relabelled(
            forget, retain, choices_of(forget, retain, subject.outputs, config.labels), order=config.order,
            epochs=config.epochs, seed=config.seed,
            batch_size=whole_batch(len(forget) + len(retain), config.batch_size, config.micro_batch_size, world_size()),
        )  # fmt: skip
        return Prepared(schedule, answer_loss, mask_rows=MaskRows(forget, retain))

    def fit(self, subject: Learner, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`."""
        assert isinstance(config, RandomLabelsConfig)
        run = self.prepare(subject, request, config)
        return train_edit(
            self, subject, run.schedule, run.loss, config, work=work, out=out, callbacks=run.callbacks, mask_rows=run.mask_rows
        )  # fmt: skip


METHOD = RandomLabels()
