"""Pseudo-labels: train the forget rows on the class that the model itself likes best among those that stay.

The baseline of Kim et al., Are we truly forgetting?, arXiv 2503.06991 (2025), where it rivals far dearer methods on the logits.
With f_o the model before and C_x the classes that are no choice for a row (x, y),

    y' = argmax over classes outside C_x of f_o(x),   min over theta of E_(x,y) in forget [ CE(theta; x, y') ]

C_x holds the classes that are being forgotten: those of the forget set that no retain row has; without a retain set, all classes
of the forget set, as published. It also holds y, which is the same when classes are forgotten, and without which rows or persons
to forget would keep their own label.

Departures from the official code, and why. There the frozen original stands on the function object, and a second run in the same
process relabels with the first run's model: here the labels are computed from the subject of the run and nothing is kept.
A retain term can be added (`retain_term`); the published run has none. `scope=mask` attributes weights to the new labels.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.errors import RequestError
from efface.forget.objective import ForgetBatch, ObjectiveConfig, ObjectiveMethod
from efface.forget.retain import nll
from efface.subjects.predictor import Predictor
from efface.subjects.samples import Sample
from efface.train.streams import Stream

CARD = Card(
    name="pseudo-label",
    system="representation-audit",
    title="Pseudo-labels of the model itself",
    summary="Trains what is to be forgotten on the model's own best guess among the classes that stay; looks good at the logits "
    "and says little about the features.",
    paper="Kim et al., Are we truly forgetting?, arXiv 2503.06991 (2025), the baseline PL",
    verb="forget",
    mechanism="objectives",
    modalities=("any",),
    subjects=("classifier",),
    needs=("forget", "labels", "reference", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="suppression", mechanism="relabel_refusal", survey_class="parameter_optimisation", level="weights_all",
        threat_model="API user",
    ),
    defaults_source="UUEF code (arXiv 2503.06991): SGD, momentum 0.9, decay 5e-4, batch 256; its learning rate is searched, here "
    "0.01; epochs are efface's",
)  # fmt: skip


class PseudoLabelConfig(ObjectiveConfig):
    """The published optimisation."""

    retain_term: Literal["none", "nll", "kl"] = Field("none", description="published: forget rows only")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("sgd", description="UUEF: SGD with momentum 0.9")
    learning_rate: float = Field(0.01, gt=0, description="efface; UUEF searches it for each method")
    epochs: float = Field(10, gt=0, description="efface; passes over the forget set")
    batch_size: int = Field(256, ge=1, description="UUEF: 256")
    weight_decay: float = Field(5e-4, ge=0, description="UUEF: 5e-4")
    schedule: Literal["linear", "cosine", "constant"] = Field("constant", description="efface")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="UUEF: none")
    max_grad_norm: float = Field(1e9, gt=0, description="UUEF does not clip")


def best_retained(logits: Tensor, labels: Sequence[int], gone: Collection[int]) -> Tensor:
    """The class of the largest logit among those that may be chosen, [N] int64.

    Args:
        logits: [N, K] of the model before.
        labels: [N] the rows' own classes.
        gone: classes that are being forgotten.

    Raises:
        RequestError: a row without any class to choose.
    """
    allowed = logits.clone()
    allowed[:, sorted(gone)] = -torch.inf
    allowed[torch.arange(len(logits)), torch.as_tensor(labels)] = -torch.inf
    empty = torch.isneginf(allowed).all(1).nonzero()
    if len(empty):
        row = int(empty[0])
        raise RequestError(
            f"no class is left for forget row {row} (class {labels[row]}): {len(gone)} of {logits.shape[1]} are being forgotten",
            "a class that stays", "give a retain set that has rows of the classes to be kept",
        )  # fmt: skip
    return allowed.argmax(1)


def relabelled(subject: Predictor, forget: Sequence[Sample], retain: Sequence[Sample] | None) -> list[Sample]:
    """The forget rows with their pseudo-labels under the subject as it is.

    Args:
        retain: rows that say which classes stay; None: no class of the forget set does.
    """
    labels = [int(row.target) for row in forget]
    gone = set(labels) - ({int(row.target) for row in retain} if retain is not None else set())
    _, logits = subject.read(forget)
    chosen = best_retained(logits, labels, gone)
    return [row.labelled(label) for row, label in zip(forget, chosen.tolist(), strict=True)]


def loss(config: ObjectiveConfig, batch: ForgetBatch) -> Tensor:
    """CE on the new labels, mean over the rows of the step."""
    assert batch.answer is not None
    return nll(batch.answer, batch.token_share)


class PseudoLabel(ObjectiveMethod):
    """See the module."""

    def streams(self, subject: Any, request: Request, config: ObjectiveConfig) -> dict[str, Stream]:
        """The relabelled forget rows, and the retain rows where there is a retain term."""
        found = super().streams(subject, request, config)
        keep = None if request.retain is None else subject.encode_rows(request.retain, name="retain")
        return {**found, "forget": Stream(relabelled(subject, found["forget"].rows, keep))}


METHOD = PseudoLabel(CARD, PseudoLabelConfig, loss)

__all__ = ["CARD", "METHOD", "PseudoLabelConfig", "best_retained", "loss", "relabelled"]
