"""Task-vector negation: learn the forget set harder, then walk the same way backwards.

Paper: Ilharco et al., Editing models with task arithmetic, arXiv 2212.04089 (ICLR 2023), section 3:

    tau = theta_forget - theta_0,   theta(alpha) = theta_0 - alpha tau

alpha is the largest of a grid whose control score (mean probability of retain answers) stays at 95 % of the start's.
Departures: every floating tensor is found by name or the method stops (the public codes load non-strictly); tied
tensors are moved once; alpha is chosen on rows of the first half of the retain set, so that the other half can judge it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field, field_validator
from torch import Tensor

from efface.catalog import Card, Taxonomy
from efface.data.request import Request
from efface.errors import CheckFailed, RequestError
from efface.forget.edit import WeightEdit
from efface.forget.method import FitConfig, Fitted, Method
from efface.run.cost import measure_cost
from efface.run.files import make_folder
from efface.subjects.causal_lm import CausalLM
from efface.subjects.prompts import Encoded
from efface.train.engine import train
from efface.train.reference import mean_probability
from efface.train.scopes import scoped
from efface.train.snapshot import Snapshot
from efface.train.supervised import answer_loss, supervised_schedule

CARD = Card(
    name="task-vector",
    system="unlearning-taxonomy",
    title="Task-vector negation",
    summary="Fine-tunes on the forget set and subtracts the direction that this moved the weights in.",
    paper="Ilharco et al., Editing models with task arithmetic, arXiv 2212.04089 (ICLR 2023)",
    verb="forget",
    mechanism="edits",
    modalities=("text",),
    subjects=("causal-lm",),
    needs=("forget", "gradients"),
    claims="empirical",
    taxonomy=Taxonomy(
        intention="removal", mechanism="merging", survey_class="parameter_merging", level="weights_all",
        threat_model="weight holder",
    ),
    defaults_source="MUSE (arXiv 2407.06460): 10 epochs, learning rate 1e-5; grid and 95 % rule of arXiv 2212.04089",
)  # fmt: skip

GRID = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)


class TaskVectorConfig(FitConfig):
    """How far to walk back, and how alpha is chosen."""

    alpha: float | None = Field(
        None, gt=0, description="how far to walk back; none: the search below (needs a retain set)"
    )
    grid: tuple[float, ...] = Field(GRID, description="candidates for alpha; language models go up to 5")
    control_share: float = Field(
        0.95, gt=0, le=1, description="the control score must stay at this share (paper: 95 %)"
    )
    control_rows: int = Field(256, ge=1, description="most rows of the control score, evenly spaced")
    keep_share: float = Field(
        1.0, gt=0, le=1, description="keep only this share of tau, the largest entries of each tensor"
    )
    control_vector: bool = Field(False, description="subtract a vector fitted on as many retain rows from tau first")

    @field_validator("scope")
    @classmethod
    def _no_adapter(cls, value: str) -> str:
        if value == "lora":
            raise ValueError("task vectors move weights: scope all or layers")
        return value

    @field_validator("grid")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or list(value) != sorted(value) or value[0] <= 0:
            raise ValueError("a rising list of positive numbers")
        return value


def keep_largest(tau: Tensor, share: float) -> Tensor:
    """Zero all but the largest `share` of the entries by magnitude; ties go to the lower index."""
    if share >= 1:
        return tau
    count = max(1, round(share * tau.numel()))
    order = tau.flatten().abs().sort(descending=True, stable=True).indices[:count]
    kept = torch.zeros_like(tau).flatten()
    kept[order] = tau.flatten()[order]
    return kept.view_as(tau)


def control_rows(rows: Sequence[Encoded], limit: int) -> Sequence[Encoded]:
    """At most `limit` rows, evenly spaced, of the first half; the other half is left to judge the choice."""
    half = rows[: max(1, len(rows) // 2)]
    return half[:: -(-len(half) // limit)]


class TaskVector(Method):
    """See the module."""

    card = CARD
    config_class = TaskVectorConfig

    def fit(self, subject: CausalLM, request: Request, config: FitConfig, *, work: Path, out: Path) -> Fitted:
        """See `Method.fit`.

        Raises:
            RequestError: alpha is to be searched, or a control vector fitted, without a retain set.
            CheckFailed: tau is nothing, or no alpha keeps the control score.
        """
        assert isinstance(config, TaskVectorConfig)
        self.check(request, config)
        if request.retain is None and (config.alpha is None or config.control_vector):
            raise RequestError(
                "task-vector without a retain set", "rows for the control score", "give --retain, or set alpha=..."
            )
        base = subject.digest
        rows = subject.encode_rows(request.forget, name="forget")
        keep = [] if request.retain is None else subject.encode_rows(request.retain, name="retain")
        make_folder(work)
        with measure_cost("fit task-vector") as cost, scoped(subject.model, config):
            live = {name: p for name, p in subject.weights().items() if p.requires_grad}
            with Snapshot(live, work / "base.safetensors") as snapshot:
                tau = self._vector(subject, rows, config, snapshot, work / "forget", "forget")
                cost.items = round(len(rows) * config.epochs)
                if config.control_vector:
                    other = self._vector(subject, keep[: len(rows)], config, snapshot, work / "retain", "retain")
                    tau = {name: value - other[name] for name, value in tau.items()}
                tau = {name: keep_largest(value, config.keep_share) for name, value in tau.items()}
                alpha, steps = self._alpha(subject, tau, control_rows(keep, config.control_rows), config, snapshot)
                _walk(snapshot, tau, alpha)
                edit = WeightEdit.harvest(
                    subject, snapshot, out, base_digest=base, method=CARD.name, claim=str(CARD.claims),
                    config={**config.model_dump(mode="json"), "alpha_chosen": alpha},
                )  # fmt: skip
        subject.changed()
        shutil.rmtree(work, ignore_errors=True)
        return Fitted(edit, [cost], steps)

    def _vector(
        self,
        subject: CausalLM,
        rows: Sequence[Encoded],
        config: TaskVectorConfig,
        snapshot: Snapshot,
        folder: Path,
        name: str,
    ) -> dict[str, Tensor]:
        """theta_trained - theta_0 in float32; the subject is put back."""
        schedule = supervised_schedule(rows, config)
        train(
            subject.model,
            schedule,
            answer_loss,
            config,
            folder=folder,
            pad_id=subject.pad_id,
            label=f"learn {name} set",
        )
        subject.model.eval()
        tau = {key: live.detach().float() - snapshot.base(key).float() for key, live in snapshot.tensors.items()}
        size = sum(float(snapshot.base(key).double().square().sum()) for key in tau) ** 0.5
        snapshot.restore()
        moved = sum(float(value.double().square().sum()) for value in tau.values()) ** 0.5
        if moved < 1e-6 * size:
            raise CheckFailed(
                f"training on the {name} set moved the weights by only {moved / size:.1e} of their norm: it is memorised "
                "already and its gradient has vanished; raise learning_rate or epochs, or use another method"
            )
        return tau

    def _alpha(
        self,
        subject: CausalLM,
        tau: dict[str, Tensor],
        control: Sequence[Encoded],
        config: TaskVectorConfig,
        snapshot: Snapshot,
    ) -> tuple[float, list[dict[str, float]]]:
        """The largest alpha of the grid that keeps the control score; each candidate tried is recorded."""
        if config.alpha is not None:
            return config.alpha, []
        start = mean_probability(subject, control)
        best, tried = None, []
        for alpha in config.grid:
            _walk(snapshot, tau, alpha)
            score = mean_probability(subject, control)
            snapshot.restore()
            tried.append({"alpha": alpha, "control": score, "start": start})
            if score < config.control_share * start:
                break
            best = alpha
        if best is None:
            raise CheckFailed(
                f"no alpha keeps {config.control_share:.0%} of the control score (start {start:.3f}, alpha={config.grid[0]}: "
                f"{tried[0]['control']:.3f}); set alpha=..., lower control_share, or use control_vector=true"
            )
        return best, tried


def _walk(snapshot: Snapshot, tau: dict[str, Tensor], alpha: float) -> None:
    """theta_0 - alpha tau, in float32, into the live tensors (which hold theta_0)."""
    with torch.no_grad():
        for name, live in snapshot.tensors.items():
            live.copy_(snapshot.base(name).float() - alpha * tau[name])


METHOD = TaskVector()
