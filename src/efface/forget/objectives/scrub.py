"""SCRUB: stay with the original model on what is kept, leave it on what is to be forgotten.

Paper: Kurmanji et al., Towards unbounded machine unlearning, arXiv 2302.09880 (NeurIPS 2023), section 3; as run by Choi and Na,
arXiv 2311.02240. With p_T = softmax(logits / T) of the student theta, q_T the same of the teacher, which is the model before,

    KL_T(x) = T^2 KL(q_T(x) || p_T(x))
    retain pass:  minimise  E_(x,y) in retain [ gamma CE(p_1(x), y) + alpha KL_T(x) ]
    forget pass:  minimise  -E_x in forget [ KL_T(x) ]

An epoch is one pass of each kind. `order=retain-first` is the benchmark's, so that every epoch ends on the forget pass;
`forget-first` is the original paper's, which also stops the forget passes early (`forget_epochs`) and ends on retain passes.
At the start student and teacher are one and KL has no gradient: it is the retain set's CE that sets the student in motion.

Departures from the official code, and why. The teacher is no second model in memory: its log-probabilities are computed once
and cached. Every row comes once in a pass: the last batch of a pass is as small as it is and counts by its own rows, where
the benchmark's loops skip a batch that is not full.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.forget.method import FitConfig, Fitted, Method, train_edit
from efface.forget.retain import nll
from efface.subjects.answers import answer_logits
from efface.subjects.predictor import Predictor
from efface.train.engine import world_size
from efface.train.mask_selectors import MaskRows
from efface.train.reference import reference_top_k
from efface.train.streams import Schedule, Stream, row_order, whole_batch

CARD = Card(
    name="scrub",
    system="facial-identity-benchmarks",
    title="SCRUB: a student that leaves its teacher",
    summary="Alternates passes that keep the model by its own former answers on the retain set and passes that drive it away "
    "from them on what is to be forgotten.",
    paper="Kurmanji et al., Towards unbounded machine unlearning (SCRUB), arXiv 2302.09880 (NeurIPS 2023)",
    verb="forget",
    mechanism="objectives",
    modalities=("any",),
    subjects=("classifier",),
    needs=("forget", "retain", "reference", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="distillation", survey_class="parameter_optimisation", level="weights_all",
        threat_model="weight holder",
    ),
    defaults_source="the benchmark's code (arXiv 2311.02240): T = 4, 2 epochs, batch 64, SGD 0.001 without momentum, weights 1",
)  # fmt: skip

Pass = Literal["retain", "forget"]


class ScrubConfig(FitConfig):
    """The benchmark's run."""

    temperature: float = Field(4.0, gt=0, description="T of the distillation; benchmark: 4")
    kl_weight: float = Field(1.0, ge=0, description="alpha: weight of the KL on the retain set; benchmark: 1")
    ce_weight: float = Field(
        1.0, ge=0, description="gamma: weight of the cross-entropy on the retain set; benchmark: 1"
    )
    order: Literal["retain-first", "forget-first"] = Field("retain-first", description="of an epoch; benchmark: retain")
    forget_epochs: int | None = Field(
        None, ge=1, description="the first epochs that have a forget pass; none: all (benchmark)"
    )
    epochs: int = Field(2, ge=1, description="passes over each set; benchmark: 2")
    batch_size: int = Field(64, ge=1, description="rows of a step, of either set; benchmark: 64")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("sgd", description="benchmark: SGD")
    learning_rate: float = Field(1e-3, gt=0, description="benchmark: 0.001")
    momentum: float = Field(0.0, ge=0, lt=1, description="benchmark: none")
    weight_decay: float = Field(0.0, ge=0, description="benchmark: none")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="benchmark: none")
    schedule: Literal["linear", "cosine", "constant"] = Field("constant", description="benchmark: constant")
    max_grad_norm: float = Field(1e9, gt=0, description="benchmark: no clipping")


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(logits / T)), [B] in nats.

    Args:
        logits: [B, K] of the student.
        teacher: [B, K] logits or log-probabilities: they differ by a constant a row, which does not count.
        temperature: T.
    """
    student = (logits / temperature).log_softmax(-1)
    known = (teacher / temperature).log_softmax(-1)
    kl: Tensor = (known.exp() * (known - student)).sum(-1)
    return temperature**2 * kl


def loss(config: ScrubConfig, model: Any, parts: Mapping[str, dict[str, Tensor]]) -> tuple[Tensor, dict[str, float]]:
    """The loss of one batch, of whichever pass it is."""
    (name, part), *_ = parts.items()
    answer = answer_logits(model, part)
    apart = (distillation(answer.logits[:, 0], part["teacher"], config.temperature) * part["row_share"]).sum()
    if name == "forget":
        return -apart, {"forget_kl": float(apart.detach())}
    known = nll(answer, part["token_share"])
    total = config.ce_weight * known + config.kl_weight * apart
    return total, {"retain_nll": float(known.detach()), "retain_kl": float(apart.detach())}


class Passes(Schedule):
    """Batches of one stream at a time: whole passes over one after another, each in a fresh order.

    The places that a pass's last step has too many repeat its rows at weight 0, so that every row counts once a pass.

    Args:
        streams: by name.
        passes: names of streams, in the order in which they are gone through.
        batch_size: rows of an optimiser step (over all processes).
        seed: of the orders.
    """

    def __init__(self, streams: Mapping[str, Stream], passes: Sequence[str], *, batch_size: int, seed: int) -> None:
        self.sources = dict(streams)
        self.streams = {"passes": Stream([row for stream in streams.values() for row in stream.rows])}
        self.batch_size = batch_size
        self.anchor = "passes"
        self.order: list[tuple[str, int, float]] = []
        rng = np.random.default_rng(np.random.SeedSequence([seed, 0x0EFFACE]))
        for name in passes:
            n = len(streams[name].rows)
            steps = -(-n // batch_size)
            rows = row_order(n, steps * batch_size, rng)
            sizes = [min(batch_size, n - start) for start in range(0, steps * batch_size, batch_size)]
            self.order += [
                (name, row, 1 / sizes[place // batch_size] if place < n else 0.0) for place, row in enumerate(rows)
            ]
        self.length = len(self.order)

    @property
    def total_tokens(self) -> int:
        """Answers that are forwarded."""
        return self.length

    def __getitem__(self, position: int) -> dict[str, Any]:
        name, row, share = self.order[position]
        stream = self.sources[name]
        extras = {key: values[row] for key, values in stream.extras.items()}
        return {name: {"row": stream.rows[row], "extras": extras, "token_share": share, "row_share": share}}


def passes_of(config: ScrubConfig) -> list[Pass]:
    """The passes of a run in their order."""
    found: list[Pass] = []
    for epoch in range(config.epochs):
        own: list[Pass] = ["retain"]
        if config.forget_epochs is None or epoch < config.forget_epochs:
            own.insert(1 if config.order == "retain-first" else 0, "forget")
        found += own
    return found


def teacher_logp(subject: Predictor, rows: Sequence[Any]) -> Tensor:
    """[N, K] log-probabilities of all classes under the model as it is, from the cache of the reference."""
    ids, logp = reference_top_k(subject, rows, subject.outputs, batch_size=256)
    found = torch.empty(len(rows), subject.outputs)
    return found.scatter(1, torch.cat(ids), torch.cat(logp))


class Scrub(Method):
    """See the module."""

    card = CARD
    config_class = ScrubConfig

    def fit(self, subject: Predictor, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`."""
        assert isinstance(config, ScrubConfig)
        self.check(request, config)
        self.check_subject(subject)
        assert request.retain is not None
        rows = {"retain": subject.encode_rows(request.retain, name="retain"),
                "forget": subject.encode_rows(request.forget, name="forget")}  # fmt: skip
        streams = {name: Stream(part, {"teacher": teacher_logp(subject, part)}) for name, part in rows.items()}
        batch = whole_batch(max(len(part) for part in rows.values()), config.batch_size, config.micro_batch_size,
                            world_size())  # fmt: skip
        schedule = Passes(streams, passes_of(config), batch_size=batch, seed=config.seed)
        return train_edit(
            self, subject, schedule, lambda model, parts: loss(config, model, parts), config, work=work, out=out,
            mask_rows=MaskRows(rows["forget"], rows["retain"]),
        )  # fmt: skip


METHOD = Scrub()

__all__ = ["CARD", "METHOD", "Passes", "ScrubConfig", "distillation", "loss", "passes_of", "teacher_logp"]
