"""l1-sparse: fine-tuning on the rows to keep with an l1 penalty on the weights that fades out.

Paper: Jia et al., Model sparsity can simplify machine unlearning, arXiv 2304.04934 (NeurIPS 2023), section 4. With D_r the rows
to keep, theta in R^P all weights that train, t the epoch of T,

    min over theta of CE(theta; D_r) + gamma_t ||theta||_1,   gamma_t = gamma (1 - t / T)

The penalty pulls at every weight and the retain rows pull back at those they need, so that what only the forget rows needed
goes. Departures from the official code, and why. Under SGD the penalty's subgradient gives no exact zeros, so the code's count
of them says about nothing: the share of weights below a threshold is recorded with the edit instead, before and after. The
penalty counts once in an optimiser step, also under accumulation. Weight decay leaves biases and norms alone, the penalty,
as in the code, does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import TrainerCallback

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.forget.method import FitConfig, Fitted, Method, train_edit
from efface.forget.objective import Prepared
from efface.subjects.learner import Learner
from efface.train.gradient_stats import own_parameters
from efface.train.mask_selectors import MaskRows
from efface.train.supervised import answer_loss, supervised_schedule

CARD = Card(
    name="l1-sparse",
    system="sparse-unlearning",
    title="l1-sparse unlearning",
    summary="Fine-tunes on the retain set with an l1 penalty that fades: weights that only the forget set needed shrink away.",
    paper="Jia et al., Model sparsity can simplify machine unlearning, arXiv 2304.04934 (NeurIPS 2023)",
    verb="forget",
    mechanism="objectives",
    modalities=("any",),
    subjects=("causal-lm", "classifier", "regressor"),
    needs=("forget", "retain", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="localise_edit", survey_class="parameter_optimisation", level="weights_all",
        threat_model="weight holder",
    ),
    defaults_source="Unlearn-Sparse: SGD 0.01, momentum 0.9, decay 5e-4, batch 256, 10 epochs; gamma 5e-4 (from memory)",
)  # fmt: skip


class SparseConfig(FitConfig):
    """The optimisation of Unlearn-Sparse."""

    learning_rate: float = Field(0.01, gt=0, description="Unlearn-Sparse: 0.01")
    epochs: float = Field(10, gt=0, description="passes over the retain set; Unlearn-Sparse: 10")
    batch_size: int = Field(256, ge=1, description="Unlearn-Sparse: 256")
    optimizer: Literal["adamw", "adam", "sgd"] = Field("sgd", description="Unlearn-Sparse: SGD with momentum 0.9")
    weight_decay: float = Field(5e-4, ge=0, description="Unlearn-Sparse: 5e-4")
    schedule: Literal["linear", "cosine", "constant"] = Field("constant", description="Unlearn-Sparse: constant")
    warmup_ratio: float = Field(0.0, ge=0, le=1, description="Unlearn-Sparse: none")
    max_grad_norm: float = Field(1e9, gt=0, description="Unlearn-Sparse does not clip")


class L1SparseConfig(SparseConfig):
    """The penalty."""

    l1_gamma: float = Field(
        5e-4, ge=0, description="gamma at the start; paper: 5e-4 (memory; the parser's alpha 0.2 is for other methods)"
    )
    l1_schedule: Literal["linear", "constant"] = Field(
        "linear", description="gamma by epoch; paper: linear to zero is best"
    )
    threshold: float = Field(1e-3, gt=0, description="weights smaller than this are counted; efface")
    scope: Literal["all", "layers", "mask"] = Field(
        "all", description="what may move, and stands in the norm; paper: all"
    )


def l1_weight(gamma: float, epoch: int, epochs: float) -> float:
    """gamma_t = gamma (1 - t / T), not below zero.

    Args:
        gamma: at the start.
        epoch: t, from 0.
        epochs: T.
    """
    return gamma * max(0.0, 1 - epoch / epochs)


def l1_norm(parameters: Iterable[Tensor]) -> Tensor:
    """||theta||_1 over several tensors, float32; its gradient at exactly zero is zero."""
    return torch.stack([parameter.float().abs().sum() for parameter in parameters]).sum()


def share_below(model: torch.nn.Module, threshold: float) -> float:
    """Share of all weights whose absolute value is below the threshold."""
    own = own_parameters(model).values()
    return sum(int((p.detach().abs() < threshold).sum()) for p in own) / sum(p.numel() for p in own)


class Fading(TrainerCallback):  # type: ignore[misc]
    """Knows gamma_t of the step under way, also where a run goes on from a checkpoint, and looks at the weights at the end.

    Args:
        config: its gamma, schedule, epochs and threshold.
        rows: in an epoch.
        batch_size: rows in an optimiser step.
    """

    def __init__(self, config: L1SparseConfig, rows: int, batch_size: int) -> None:
        self.config, self.rows, self.batch_size = config, rows, batch_size
        self.gamma = config.l1_gamma
        self.share: float | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.config.l1_schedule == "linear":
            epoch = state.global_step * self.batch_size // self.rows
            self.gamma = l1_weight(self.config.l1_gamma, epoch, self.config.epochs)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.share = share_below(model, self.config.threshold)


class L1Sparse(Method):
    """See the module."""

    card = CARD
    config_class = L1SparseConfig

    def prepare(self, subject: Learner, request: Request, config: L1SparseConfig) -> Prepared:
        """The batches, the loss and its fading weight.

        Raises:
            RequestError: no retain set.
        """
        self.check(request, config)
        assert request.retain is not None
        rows = subject.encode_rows(request.retain, name="retain")
        schedule = supervised_schedule(rows, config)
        fading = Fading(config, len(rows), schedule.batch_size)

        def loss(model: Any, parts: dict[str, dict[str, Tensor]]) -> tuple[Tensor, dict[str, float]]:
            value, numbers = answer_loss(model, parts)
            norm = l1_norm(p for p in model.parameters() if p.requires_grad)
            share = parts["train"]["row_share"].sum()  # of the optimiser step
            return value + fading.gamma * norm * share, {**numbers, "l1": float(norm.detach()), "gamma": fading.gamma}

        mask_rows = MaskRows(subject.encode_rows(request.forget, name="forget"), rows)
        return Prepared(schedule, loss, (fading,), mask_rows)

    def fit(self, subject: Learner, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`. The edit's configuration says which share of the weights is below the threshold."""
        assert isinstance(config, L1SparseConfig)
        run = self.prepare(subject, request, config)
        before = share_below(subject.model, config.threshold)
        fitted = train_edit(
            self, subject, run.schedule, run.loss, config, work=work, out=out, callbacks=run.callbacks, mask_rows=run.mask_rows
        )  # fmt: skip
        (fading,) = run.callbacks
        found = {"share_below_before": before, "share_below": fading.share}
        return Fitted(fitted.edit.with_findings("weights", found), fitted.costs, [*fitted.log, found])


METHOD = L1Sparse()
